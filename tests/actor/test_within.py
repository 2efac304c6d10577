"""Runs in a placement group that somebody else has made, of exactly their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

pytestmark = pytest.mark.actor

SHORT = {
    "stages": {**PIPELINE, "epochs": 1},
    "server": {**SERVER, "epochs": 2.0, "workers": [2, 8]},
    "servers": {**SERVER, "method": "asysvrg", "problem": "logistic", "epochs": 2.0, "servers": 2},
    "threads": {**THREADS, "epochs": 2.0},
    "replicas": {**AVERAGING, "epochs": 1, "workers": [2, 8]},
}


@pytest.fixture
def full(cold: None) -> Iterator[Callable[[Mapping[str, Any]], PlacementGroup]]:
    """Make a placement group for a run, in a cluster that then has nothing else to give."""
    made: list[PlacementGroup] = []

    def make(keys: Mapping[str, Any]) -> PlacementGroup:
        needs = bundles(run_config(keys))
        rest = ray.cluster_resources()["CPU"] - sum(each["CPU"] for each in needs)
        for each in (needs, [{"CPU": round(rest, 4)}]):
            made.append(placement_group(each))
            assert made[-1].wait(60)
        return made[-2]

    yield make
    for each in made:
        remove_placement_group(each)


def go(keys: Mapping[str, Any], folder: Path, name: str, **more: Any) -> Any:
    config = run_config({**keys, "storage": str(folder), "name": name, "wait_s": 20.0, **more})
    return train(config, progress=False).summary


@pytest.mark.parametrize("name", ["stages", "server", "servers", "threads"])
def test_runs_follow_one_another_in_one_placement_group_of_their_size(name, full, tmp_path):
    """With the fewest workers where there may be more or fewer, and with the same actors."""
    keys, group = SHORT[name], full(SHORT[name])
    with WarmActors() as warm:
        for each in ("first", "second"):
            with Within(group):
                summary = go(keys, tmp_path, each)
        assert warm.count == len(bundles(run_config(keys)))
    assert summary["metrics"].get("workers", 2) == 2
    assert placement_group_table(group)["state"] == "CREATED"


def test_actors_that_wait_give_way_to_others_in_the_placement_group(full, tmp_path):
    three = {**SHORT["stages"], "stages": 3}
    with WarmActors() as warm, Within(full(three)):
        go(SHORT["stages"], tmp_path, "two")
        assert warm.count == 2
        go(SHORT["server"], tmp_path, "server")
        assert warm.count == 3
        go(three, tmp_path, "three")


@pytest.mark.parametrize(
    "keys",
    [
        {**SHORT["stages"], "stages": 3},
        SHORT["server"],
        {**SHORT["replicas"], "workers": 3},
        {**SHORT["stages"], "cpus_per_stage": 0.2},
    ],
)
def test_a_placement_group_that_is_too_small_is_said_to_be(keys, full, tmp_path):
    group = full(SHORT["stages"])
    told = r"must have a free bundle for each of its \d \w+s, the largest of which needs 0\.\d CPU"
    with Within(group), pytest.raises(ResourceError, match=told):
        go(keys, tmp_path, "run")
    assert placement_group_table(group)["state"] == "CREATED"


@ray.remote(num_cpus=0)
def trials(folder: Path) -> list[dict[str, Any]]:
    """A driver that lives in the placement group itself, as that of a search's trials does."""
    group = get_current_placement_group()
    assert group is not None
    with WarmActors(), Within(group):
        return [go(SHORT[name], folder, name) for name in ("stages", "replicas")]


def test_a_driver_may_live_in_the_placement_group_and_hand_it_on_to_whom_it_starts(full, tmp_path):
    group = full(SHORT["stages"])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    call = trials.options(scheduling_strategy=inside).remote(tmp_path)
    stages, replicas = ray.get(call, timeout=250)
    assert stages["epochs"] == replicas["epochs"] == 1
    assert replicas["workers"] == 2
    assert placement_group_table(group)["state"] == "CREATED"
