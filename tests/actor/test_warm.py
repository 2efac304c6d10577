"""Actors that are left to the next group."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import ray
import torch
from ray.train import RunConfig
from torch import nn
from torch.nn import functional as F

from actors.errors import LinkError
from actors.groups.warm import WarmActors
from actors.pipeline.supervisor import Supervisor
from raylab import PipelineTrainer
from tests.helpers import torch_optimiser, wait_until_gone
from tests.reference.networks import batches, conv_bn64
from tests.reference.pipeline import Optimiser

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("cold")]


def stages(*cpus: float) -> Supervisor:
    return Supervisor([{"CPU": each} for each in cpus], threads=1, seed=0, wait_s=60)


def processes(group: Supervisor) -> list[int]:
    return [home.pid for home in group.homes]


def lived_in(*cpus: float) -> list[int]:
    with stages(*cpus) as group:
        return processes(group)


def test_a_group_takes_the_actors_that_one_like_it_has_left():
    with WarmActors() as warm:
        first = lived_in(0.1, 0.2)
        assert warm.count == 2
        assert lived_in(0.1, 0.2) == first
        others = lived_in(0.2, 0.1)
    assert set(others).isdisjoint(first)


def test_leaving_the_context_ends_what_waits():
    with WarmActors() as warm:
        left = lived_in(0.1)
    assert warm.count == 0
    for pid in left:
        wait_until_gone(pid)


def test_nothing_is_left_where_nobody_keeps_it():
    with WarmActors() as outer, WarmActors(most=0):
        left = lived_in(0.1)
    assert outer.count == 0
    for pid in left:
        wait_until_gone(pid)


def test_the_group_that_has_waited_longest_makes_room():
    with WarmActors(most=2) as warm:
        first, second, third = lived_in(0.1), lived_in(0.2), lived_in(0.3)
        assert warm.count == 2
        assert lived_in(0.3) == third
        assert lived_in(0.2) == second
        assert lived_in(0.1) != first


def test_actors_that_wait_give_way_to_a_group_that_needs_their_resources():
    with WarmActors() as warm:
        lived_in(1.0, 1.0)
        lived_in(1.5)
        assert warm.count == 1


def test_what_waits_in_an_outer_context_gives_way_too():
    with WarmActors() as outer:
        lived_in(1.5)
        with WarmActors():
            lived_in(1.0)
        assert outer.count == 0


def test_a_group_that_ended_with_an_error_leaves_nothing():
    with WarmActors() as warm:
        with pytest.raises(LinkError), stages(0.1):
            raise LinkError("cut")
        assert warm.count == 0


def test_an_actor_that_died_while_it_waited_is_not_taken():
    with WarmActors():
        with stages(0.1, 0.1) as group:
            first = processes(group)
            victim = group.handle(0)
        ray.kill(victim)
        wait_until_gone(first[0])
        assert set(lived_in(0.1, 0.1)).isdisjoint(first)


def test_a_renewed_stage_is_as_a_new_one(tmp_path):
    """Also after another model, method and seed; the weights are those of new processes."""

    def weights(name: str, method: str, seed: int) -> Sequence[torch.Tensor]:
        trainer = PipelineTrainer(
            nn.Sequential(*conv_bn64(4), nn.Dropout(0.5)),
            F.cross_entropy,
            method=method,
            stages=2,
            seed=seed,
            optimizer=torch_optimiser(Optimiser(kind="sgd", lr=0.05, momentum=0.9)),
            resources_per_stage={"CPU": 0.1},
            run_config=RunConfig(storage_path=str(tmp_path), name=name),
        )
        data = batches("conv", 4, seed=5)
        result = trainer.fit(data, epochs=1, progress=False)
        return [tensor for _, tensor in sorted(result.model.state_dict().items())]

    with WarmActors(most=0):
        cold = weights("cold", "adl", 3)
    with WarmActors():
        weights("other", "fr", 4)
        warm = weights("warm", "adl", 3)
    assert all(torch.equal(a, b) for a, b in zip(cold, warm, strict=True))
