"""Arguments of Python are held against the rules of the command line before anything starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raylab import AveragingTrainer, ParameterServerTrainer, PipelineTrainer, Schedule
from raylab.drivers.arguments import optimizer_argument, schedule_argument, schedule_over
from raylab.errors import ConfigError

pytestmark = pytest.mark.unit


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def _pipeline(**arguments: Any) -> PipelineTrainer:
    if "resources" in arguments:
        arguments["resources_per_stage"] = arguments.pop("resources")
    return PipelineTrainer(_model(), nn.CrossEntropyLoss(), **arguments)


def _averaging(**arguments: Any) -> AveragingTrainer:
    if "resources" in arguments:
        arguments["resources_per_worker"] = arguments.pop("resources")
    return AveragingTrainer(_model(), nn.CrossEntropyLoss(), **arguments)


def _server(**arguments: Any) -> ParameterServerTrainer:
    if "resources" in arguments:
        arguments["resources_per_worker"] = arguments.pop("resources")
    return ParameterServerTrainer("ridge", **arguments)


@pytest.mark.parametrize("trainer", [_pipeline, _averaging, _server])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 2**70}, f"seed >= 0 and < {2**32} must hold for a whole number, but got {2**70}"),
        ({"wait_s": "1"}, "wait_s > 0 must hold for a number, but got '1'"),
        ({"wait_s": 0}, "wait_s > 0 must hold for a number, but got 0"),
        ({"checkpoint_every": 1.5}, "checkpoint_every >= 0 must hold for a whole number, but got"),
        ({"checkpoint_minutes": float("nan")}, "checkpoint_minutes >= 0 must hold for a number"),
        ({"run_config": {}}, "run_config must be a ray.train.RunConfig, or None, but got {}"),
        ({"run_config": {"name": "x"}}, "run_config must be a ray.train.RunConfig, or None"),
        ({"resources": {"CPU": -1}}, "must have amounts >= 0 by the names of Ray"),
        ({"resources": {"CPU": "2"}}, "must have amounts >= 0 by the names of Ray"),
        ({"resources": {"GPU": 1}}, "must ask for some CPU"),
        ({"resources": 2}, "must be a mapping, such as"),
    ],
)
def test_an_argument_of_every_trainer_has_the_rule_of_its_key(
    trainer: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        trainer(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("trainer", [_pipeline, _averaging])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "sgdd"}, "optimizer must be one of"),
        ({"optimizer": "lars"}, "the rate of lars goes with the samples of an update"),
        ({"optimizer": 0.1}, "optimizer must be a callable from parameters to an optimiser"),
        ({"schedule": "cosin"}, "schedule must be one of constant, steps, cosine, polynomial"),
        ({"schedule": "steps"}, "needs milestones: give raylab.Schedule(kind='steps'"),
        ({"schedule": 3}, "schedule must be a raylab.Schedule"),
        ({"tensorboard": "yes"}, "tensorboard must be true or false, but got 'yes'"),
        ({"clip_norm": "1"}, "clip_norm > 0 must hold, but got '1'"),
    ],
)
def test_an_optimiser_and_a_schedule_are_refused_by_their_own_rule(
    trainer: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        trainer(**arguments)


@pytest.mark.parametrize("trainer", [_pipeline, _averaging])
def test_what_is_bound_to_other_parameters_is_refused_with_the_way_out(
    trainer: Callable[..., Any],
) -> None:
    made = torch.optim.Adam(_model().parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"partial\(torch\.optim\.Adam, lr"):
        trainer(optimizer=made)
    with pytest.raises(ConfigError, match=r"partial\(torch\.optim\.lr_scheduler\.StepLR"):
        trainer(schedule=torch.optim.lr_scheduler.StepLR(made, 1))


def test_a_name_makes_the_optimiser_of_the_command_line() -> None:
    for name, rate in (("sgd", 0.05), ("SGD", 0.05), ("nag", 0.05), ("adam", 1e-3)):
        made = optimizer_argument(name)(_model().parameters())
        assert made.param_groups[0]["lr"] == rate
    for same in ("sgd", None):
        group = optimizer_argument(same)(_model().parameters()).param_groups[0]
        assert (group["lr"], group["momentum"]) == (0.05, 0.9)


def test_a_kind_of_schedule_goes_over_the_epochs_of_the_run() -> None:
    assert schedule_over(schedule_argument("cosine"), 7) == Schedule(kind="cosine", epochs=7)
    assert schedule_over(schedule_argument("constant"), 7).factor(3, 1.0) == 1.0
    own = Schedule(kind="polynomial", epochs=3)
    assert schedule_over(schedule_argument(own), 7) is own
    assert schedule_over(schedule_argument(None), 7) is None


@pytest.mark.parametrize("trainer", [_pipeline, _averaging])
def test_names_are_taken_where_callables_are(trainer: Callable[..., Any]) -> None:
    assert trainer(optimizer="adam", schedule="cosine")
