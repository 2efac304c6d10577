"""Runs in a placement group that somebody else has made, of exactly their size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.groups.warm import WarmActors
from actors.groups.within import Within
from raylab import ResourceError
from raylab.config import run_config
from raylab.drivers.commands import train
from raylab.drivers.demand import bundles
from tests.actor.test_stopped import AVERAGING, PIPELINE, SERVER, THREADS

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("cold")]

SHORT = {
    "stages": {**PIPELINE, "epochs": 1},
    "server": {**SERVER, "epochs": 2.0},
    "servers": {**SERVER, "method": "asysvrg", "problem": "logistic", "epochs": 2.0, "servers": 2},
    "threads": {**THREADS, "epochs": 2.0},
    "replicas": {**AVERAGING, "epochs": 1},
}


@pytest.fixture
def full(request: pytest.FixtureRequest) -> Iterator[PlacementGroup]:
    """A placement group for a run of the test, in a cluster that has nothing else to give."""
    needs = bundles(run_config(request.param))
    group = placement_group(needs)
    assert group.wait(30)
    free: float = ray.available_resources().get("CPU", 0.0)
    rest = placement_group([{"CPU": round(free, 4)}])
    assert rest.wait(30)
    yield group
    for each in (rest, group):
        remove_placement_group(each)


def go(keys: Mapping[str, Any], folder: Path, name: str, **more: Any) -> Any:
    config = run_config({**keys, "storage": str(folder), "name": name, "wait_s": 20.0, **more})
    return train(config, progress=False).summary


@pytest.mark.parametrize(
    ("full", "keys"),
    [pytest.param(keys, keys, id=name) for name, keys in SHORT.items()],
    indirect=["full"],
)
def test_runs_follow_one_another_in_one_placement_group_of_their_size(full, keys, tmp_path):
    with WarmActors() as warm:
        for name in ("first", "second"):
            with Within(full):
                summary = go(keys, tmp_path, name)
            assert summary["epochs"] >= 1
        assert warm.count == (0 if keys["method"] == "dasgd" else len(bundles(run_config(keys))))
    assert placement_group_table(full)["state"] == "CREATED"


@pytest.mark.parametrize("full", [{**PIPELINE, "stages": 3}], indirect=True)
def test_actors_that_wait_give_way_to_others_in_the_placement_group(full, tmp_path):
    short = {**SHORT["server"], "checkpoint_minutes": 0.0}
    with WarmActors() as warm, Within(full):
        go(SHORT["stages"], tmp_path, "two")
        assert warm.count == 2
        go(short, tmp_path, "server")
        assert warm.count == 3
        go(SHORT["replicas"], tmp_path, "replicas")
        assert warm.count == 0
        go(SHORT["stages"], tmp_path, "three", stages=3)


@pytest.mark.parametrize("full", [PIPELINE], indirect=True)
@pytest.mark.parametrize(
    "keys",
    [
        {**SHORT["stages"], "stages": 3},
        {**SHORT["server"]},
        {**SHORT["replicas"], "workers": 3},
        {**SHORT["stages"], "cpus_per_stage": 0.2},
    ],
)
def test_a_placement_group_that_is_too_small_is_said_to_be(full, keys, tmp_path):
    told = r"must have a free bundle for each of its \d \w+s, the largest of which needs 0\.\d CPU"
    with Within(full), pytest.raises(ResourceError, match=told):
        go(keys, tmp_path, "run")
    assert placement_group_table(full)["state"] == "CREATED"


@pytest.mark.parametrize(
    "keys",
    [
        {**SHORT["server"], "workers": [2, 8]},
        {**SHORT["replicas"], "workers": [2, 8]},
    ],
    ids=["server", "replicas"],
)
def test_a_run_with_a_range_of_workers_has_the_fewest(keys, tmp_path):
    group = placement_group(bundles(run_config(keys)))
    with Within(group):
        summary = go(keys, tmp_path, "run")
    assert summary["metrics"]["workers"] == 2
    remove_placement_group(group)


@ray.remote(num_cpus=0)
def trial(keys: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A driver that lives in the placement group itself, as a trial's does."""
    group = get_current_placement_group()
    assert group is not None
    with Within(group):
        found: dict[str, Any] = go(keys, folder, "trial")
    return found


@pytest.mark.parametrize("name", ["stages", "replicas"])
@pytest.mark.parametrize("full", [PIPELINE], indirect=True)
def test_a_driver_may_live_in_the_placement_group_and_hand_it_on_to_whom_it_starts(
    full, name, tmp_path
):
    inside = PlacementGroupSchedulingStrategy(full, placement_group_capture_child_tasks=True)
    call = trial.options(scheduling_strategy=inside).remote(SHORT[name], tmp_path)
    assert ray.get(call, timeout=120)["epochs"] == 1
    assert placement_group_table(full)["state"] == "CREATED"
