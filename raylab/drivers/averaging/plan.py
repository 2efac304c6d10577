"""A question about averaging becomes a plan: what is not given is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from raylab.drivers.averaging.measure import Measured, measure
from raylab.errors import ConfigError
from raylab.models import build, names
from raylab.planner import (
    ALL_REDUCES,
    AVERAGING_METHODS,
    AllReduce,
    AveragingPlan,
    Network,
    averaging_plan,
    plan_from_measured,
    scaled_ring_s,
)
from raylab.planner.published_table import PAPER_BATCH, PAPER_NETWORKS

__all__ = ["AveragingQuestion", "plan_averaging"]

_CLASSES = 10
_IMAGE_SIZE_PX = 32
_CHANNELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingQuestion:
    """What is known, and what is to be measured.

    Args:
        model: a network by its name; None: `parameters` are given.
        parameters: of the network; None: those of `model`.
        bytes_per_parameter: that are sent; 4: float32, 2: bfloat16.
        num_classes: of the network. None: if `step_s` is given and `model` is in DASGD's Table II,
            it is the table's network, with 1,000 classes; else 10.
        image_size: in pixels, like `num_classes`; None otherwise: 32.
        network: between the workers; None: the cluster's is measured.
        step_s: t_p, of a local step; None: measured.
        workers: of the plan, where the network is measured; None: as many as are timed.
        timed: workers to time; None: one on each node, at least two.
        tau: fixed; None: chosen.
        delay: fixed; None: chosen.
        algorithm: whose t_c decides, where it is not measured.
        local_batch: samples in a step of one worker.
        samples: of an epoch; default: ImageNet's.
    """

    model: str | None = None
    parameters: int | None = None
    bytes_per_parameter: int = 4
    num_classes: int | None = None
    image_size: int | None = None
    network: Network | None = None
    step_s: float | None = None
    workers: int | None = None
    timed: int | None = None
    tau: int | None = None
    delay: int | None = None
    algorithm: AllReduce = "tree"
    local_batch: int = PAPER_BATCH
    samples: int = 1_281_167

    def __post_init__(self) -> None:
        if (self.model is None) == (self.parameters is None):
            raise ConfigError("either a model or a number of parameters must be given")
        if self.model is None and self.step_s is None:
            raise ConfigError("a step can only be measured of a model, not of a size alone")
        if self.network is not None and self.workers not in (None, self.network.workers):
            raise ConfigError(
                f"the network has {self.network.workers} workers, but got workers={self.workers}"
            )


def plan_averaging(question: AveragingQuestion) -> dict[str, Any]:
    """Answer with what `raylab.report.averaging_tables` shows, all times in seconds.

    Ray must be connected where anything is to be measured.

    Raises:
        InputError: the question does not fit together, or the cluster.
        RaylabError: a worker failed.
    """
    parameters, whose = _parameters(question)
    size = parameters * question.bytes_per_parameter
    measured = _measured(question, size)
    step_s = question.step_s if measured is None or measured.step_s is None else measured.step_s
    assert step_s is not None, "what is not given is measured"  # noqa: S101
    plans = _plans(question, size, step_s, measured)
    decides = "measured" if question.network is None else question.algorithm
    chosen = plans[decides]
    workers = _workers(question, measured)
    return {
        "model": question.model,
        "parameters": parameters,
        "parameters_of": whose,
        "bytes": size,
        "workers": workers,
        "network": None if question.network is None else asdict(question.network),
        "measured": None if measured is None else asdict(measured),
        "step_s": step_s,
        "local_batch": question.local_batch,
        "samples": question.samples,
        "averages": [_average(name, plan) for name, plan in plans.items()],
        "methods": _methods(question, chosen, workers),
        "choice": {
            "algorithm": decides,
            "tau": chosen.tau,
            "delay": chosen.delay,
            "hidden": chosen.hidden,
        },
    }


def _parameters(question: AveragingQuestion) -> tuple[int, str]:
    """Return how many there are, and of which network they are."""
    if question.parameters is not None:
        return question.parameters, "as given"
    published = PAPER_NETWORKS.get(question.model or "")
    unshaped = question.num_classes is None and question.image_size is None
    if published is not None and unshaped and question.step_s is not None:
        return published.parameters, f"{published.title} of DASGD's Table II"
    with torch.device("meta"):
        model = _build(question)
    classes, image = question.num_classes or _CLASSES, question.image_size or _IMAGE_SIZE_PX
    whose = f"{classes} classes, {image}×{image} images"
    return sum(parameter.numel() for parameter in model.parameters()), whose


def _build(question: AveragingQuestion) -> nn.Sequential:
    if question.model not in names() and question.model in PAPER_NETWORKS:
        raise ConfigError(
            f"{question.model!r} is known by its size only: leave out the number of classes and "
            "the image size and give the time of a step, or take a model that raylab train lists"
        )
    return build(
        question.model or "",
        in_channels=_CHANNELS,
        num_classes=question.num_classes or _CLASSES,
        image_size=question.image_size or _IMAGE_SIZE_PX,
    )


def _measured(question: AveragingQuestion, size: int) -> Measured | None:
    if question.network is not None and question.step_s is not None:
        return None
    image = question.image_size or _IMAGE_SIZE_PX
    return measure(
        model=_build(question) if question.step_s is None else None,
        input_shape=(question.local_batch, _CHANNELS, image, image),
        average_bytes=size if question.network is None else None,
        workers=question.timed,
    )


def _workers(question: AveragingQuestion, measured: Measured | None) -> int:
    if question.network is not None:
        return question.network.workers
    assert measured is not None, "a network that is not given is measured"  # noqa: S101
    return question.workers or measured.workers


def _plans(
    question: AveragingQuestion, size: int, step_s: float, measured: Measured | None
) -> dict[str, AveragingPlan]:
    """Return the plan by each all-reduce, or by the one that was measured."""
    fixed = {"tau": question.tau, "delay": question.delay}
    if question.network is not None:
        return {
            each: averaging_plan(size, step_s, question.network, algorithm=each, **fixed)
            for each in ALL_REDUCES
        }
    assert measured is not None, "a network that is not given is measured"  # noqa: S101
    assert measured.all_reduce_s is not None  # noqa: S101
    average_s = scaled_ring_s(measured.all_reduce_s, measured.workers, _workers(question, measured))
    period = plan_from_measured(average_s, step_s, **fixed)
    plan = AveragingPlan(tau=period.tau, delay=period.delay, step_s=step_s, all_reduce_s=average_s)
    return {"measured": plan}


def _average(name: str, plan: AveragingPlan) -> dict[str, Any]:
    return {
        "algorithm": name,
        "all_reduce_s": plan.all_reduce_s,
        "delay": plan.delay,
        "tau": plan.tau,
        "hidden": plan.hidden,
        "share": {method: plan.share(method) for method in AVERAGING_METHODS},
    }


def _methods(
    question: AveragingQuestion, plan: AveragingPlan, workers: int
) -> list[dict[str, Any]]:
    batch = question.local_batch * workers
    periods = {
        "minibatch_sgd": (1, 0),
        "local_sgd": (plan.tau, 0),
        "dasgd": (plan.tau, plan.delay),
    }
    rows = []
    for method in AVERAGING_METHODS:
        epoch_s = plan.epoch_s(method, samples=question.samples, global_batch=batch)
        tau, delay = periods[method]
        rows.append(
            {
                "method": method,
                "tau": tau,
                "delay": delay,
                "blocked_s": plan.waits_s(method),
                "share": plan.share(method),
                "epoch_s": epoch_s,
                "samples_per_s": question.samples / epoch_s,
            }
        )
    return rows
