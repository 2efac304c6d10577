"""What a run will ask of the cluster, and room for it in a placement group that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import ray

from actors.errors import PlacementError
from actors.groups.within import Within, within
from raylab.config import run_config
from raylab.drivers.demand import bundles
from raylab.errors import ConfigError

pytestmark = pytest.mark.unit

CPU = {"CPU": 1.0}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"method": "adl", "stages": 3}, [CPU] * 3),
        ({"method": "ddg", "stages": [3, 6], "cpus_per_stage": 0.5}, [{"CPU": 0.5}] * 3),
        ({"method": "bp", "gpus_per_stage": 0.5}, [{"CPU": 1.0, "GPU": 0.5}] * 2),
        ({"method": "dis_dfsdca", "workers": 3}, [CPU] * 4),
        ({"method": "dis_dfsdca"}, [CPU] * 5),
        ({"method": "sdca"}, [CPU] * 2),
        ({"method": "asysvrg", "workers": [2, 8], "servers": 3}, [CPU] * 5),
        ({"method": "asysgd", "problem": "cartpole", "workers": 2}, [CPU] * 3),
        ({"method": "shared_asysvrg", "workers": 3, "cpus_per_worker": 0.5}, [{"CPU": 1.5}]),
        ({"method": "dasgd", "workers": 3, "cpus_per_worker": 2.0}, [{"CPU": 2.0}] * 3),
        ({"method": "local_sgd", "workers": [2, 4], "gpus_per_worker": 1.0},
         [{"CPU": 1.0, "GPU": 1.0}] * 2),
    ],
)  # fmt: skip
def test_every_actor_of_a_run_has_a_bundle(keys: Mapping[str, Any], expected: Sequence[Any]):
    assert bundles(run_config(keys)) == expected
    assert not ray.is_initialized()


def test_what_no_run_can_have_is_an_error():
    with pytest.raises(ConfigError, match=r"fewest and the most of them, but got \[4, 2\]"):
        bundles(run_config({"method": "asysvrg", "workers": [4, 2]}))


class Bundles:
    """Stands for a placement group that has been made."""

    def __init__(self, *specs: Mapping[str, float]) -> None:
        self.bundle_specs = specs

    def wait(self, _: float) -> bool:
        return True


def lent(*specs: Mapping[str, float]) -> Within:
    return Within(Bundles(*specs))  # type: ignore[arg-type]


def test_actors_have_the_bundles_of_their_places_until_they_are_given_back():
    given = lent({"CPU": 2.0}, CPU, {"CPU": 1.0, "GPU": 0.5}, CPU)
    first = given.take([CPU, CPU], 1, "stage")
    second = given.take([CPU], 1, "stage")
    assert (first.bundles, second.bundles) == ([0, 1], [2])
    first.give_back()
    assert given.take([CPU], 1, "stage").bundles == [0]
    first.give_back()
    # What another has taken meanwhile is not given back by who has done so before.
    assert given.take([CPU, CPU], 1, "stage").bundles == [1, 3]


def test_an_actor_has_a_bundle_that_is_large_enough():
    given = lent(CPU, {"CPU": 1.0, "GPU": 0.3}, {"CPU": 2.0, "GPU": 1.0})
    assert given.take([{"CPU": 1.0, "GPU": 0.1 + 0.2}, {"CPU": 2.0}], 1, "stage").bundles == [1, 2]


def test_two_contexts_of_one_placement_group_know_of_each_other():
    group: Any = Bundles(CPU, CPU)
    kept = Within(group).take([CPU], 1, "stage")
    assert Within(group).take([CPU], 1, "stage").bundles == [1]
    with pytest.raises(PlacementError, match="of its 2 bundles 0 are free"):
        Within(group).take([CPU], 1, "stage")
    made = Within(group).take([CPU], 1, "stage", make_room=kept.give_back)
    assert made.bundles == [0]


def test_too_small_a_placement_group_says_what_is_missing():
    given = lent(CPU, {"CPU": 0.5})
    with pytest.raises(
        PlacementError,
        match=r"a free bundle for each of its 3 stages, the largest of which needs 1 CPU, but of "
        r"its 2 bundles 2 are free, the largest of which has 1 CPU: give it more",
    ):
        given.take([CPU] * 3, 1, "stage")
    # Nothing was taken for those that there was room for.
    assert given.take([CPU], 1, "stage").bundles == [0]


def test_the_innermost_placement_group_is_the_one():
    assert within() is None
    with lent(CPU) as outer:
        with outer, lent(CPU) as inner:
            assert within() is inner
        assert within() is outer
    assert within() is None
