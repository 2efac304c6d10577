"""Pipelines in one process, built as the trainer builds them, for tests without Ray."""

from __future__ import annotations

import copy
import functools
import os
import random
import select
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from actors.checkpoint_plan import CheckpointPlan
from actors.pipeline.in_process import run_in_process
from actors.pipeline.runner import StageRunner
from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.algorithms.stage.module_copy import copied_module
from raylab.algorithms.stage.rules import stage_rule
from raylab.drivers.pipeline.network import Network
from raylab.drivers.pipeline.programs import programs, recheck_ages, stage_settings
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.drivers.samples_first import check_samples_first
from raylab.optimizers import make_optimizer
from raylab.planner import cut_features, trace_blocks
from tests.reference.pipeline import Optimiser

__all__ = [
    "InProcess",
    "companion_state",
    "even_cuts",
    "run_pipeline",
    "schedule_of",
    "torch_optimiser",
]


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """What a pipeline in one process leaves: the model, its rules, its runners, its rows.

    `companions` are the weights that the networks beside the stages had at the start.
    """

    model: nn.Module
    rules: list[DelayedStage]
    runners: list[StageRunner]
    rows: list[dict[str, Any]]
    staleness: list[list[list[int]]]
    companions: list[dict[str, Tensor]]


def even_cuts(model: nn.Sequential, stages: int) -> list[int]:
    return [len(model) * k // stages for k in range(1, stages)]


def torch_optimiser(optimiser: Optimiser) -> Callable[..., Optimizer]:
    """Return torch's own optimiser, or the project's, for the reference's formulas."""
    if optimiser.kind in ("nag", "lars", "clars"):
        trust = {} if optimiser.kind == "nag" else {"trust": optimiser.trust}
        return make_optimizer(
            optimiser.kind,
            optimiser.lr,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
            **trust,
        )
    if optimiser.kind == "sgd":
        return functools.partial(
            torch.optim.SGD,
            lr=optimiser.lr,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
        )
    return functools.partial(
        torch.optim.Adam,
        lr=optimiser.lr,
        betas=optimiser.betas,
        eps=optimiser.eps,
        weight_decay=optimiser.weight_decay,
    )


def schedule_of(factor: Callable[[int], float] | None) -> Callable[[Optimizer], LambdaLR] | None:
    return None if factor is None else lambda optimizer: LambdaLR(optimizer, factor)


class _Recording:
    """Makes a stage note the staleness of every gradient, update by update."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.windows: list[list[int]] = []

    def update(self) -> None:
        self.windows.append(list(self.window.staleness))
        super().update()


def run_pipeline(
    model: nn.Sequential,
    *,
    method: str,
    cuts: Sequence[int],
    epochs: Sequence[Iterable[tuple[Tensor, Tensor]]],
    optimiser: Optimiser,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
    lr_factor: Callable[[int], float] | None = None,
    link_delays: Sequence[int] | None = None,
    shuffle: random.Random | None = None,
    test: Sequence[tuple[Tensor, Tensor]] | None = None,
    checkpoints: CheckpointPlan | None = None,
    save: Callable[[int, dict[str, Any]], None] | None = None,
    parts_saved: Sequence[Mapping[str, Any]] | None = None,
    writes_weights: bool = False,
    **settings: Any,
) -> InProcess:
    """Train with the project's loops, rules and mailboxes, in this thread."""
    chosen = PipelineSettings(
        method=method,
        stages=tuple(cuts) if cuts else 1,
        delay=None if link_delays is None else tuple(link_delays),
        **settings,
    )
    network = Network(model)
    x, _ = next(iter(epochs[0]))
    check_samples_first(torch_optimiser(optimiser), nn.Sequential(*network.blocks), x, len(x))
    crossing = _crossing(chosen, network, cuts, next(iter(epochs[0])), loss_fn)
    recording = type("Recording", (_Recording, stage_rule(chosen.rule)), {})
    plan = programs(chosen, chosen.link_delays(), report_every=0)
    rules = [
        recording(
            module,
            stage_settings(
                chosen,
                program,
                protect_inputs=False,
                writes_weights=writes_weights,
                device="cpu",
                resumable=checkpoints is not None,
                cut=cut,
            ),
            optimizer=torch_optimiser(optimiser),
            schedule=schedule_of(lr_factor),
            loss_fn=loss_fn if program.last or program.labelled else None,
        )
        for module, program, cut in zip(network.stages(cuts), plan, crossing, strict=True)
    ]
    companions = [copy.deepcopy(companion_state(rule)) for rule in rules]
    runners, rows = run_in_process(
        plan,
        rules,
        _Epochs(epochs),
        test,
        epochs=len(epochs),
        parts=chosen.parts,
        loss_shares=loss_terms(loss_fn).shares,
        shuffle=shuffle,
        recheck_every=chosen.sigma_every * chosen.accumulate,
        recheck_ages=recheck_ages(plan),
        checkpoints=checkpoints,
        save=save,
        parts_saved=parts_saved,
    )
    trained = network.trained(rule.state() for rule in rules)
    return InProcess(
        model=copied_module(trained),
        rules=list(rules),
        runners=runners,
        rows=rows,
        staleness=[rule.windows for rule in rules],
        companions=companions,
    )


def companion_state(rule: DelayedStage) -> dict[str, Tensor]:
    """Return the weights of the network beside a stage, none if there is none."""
    beside = getattr(rule, "synthesizer", None) or getattr(rule, "classifier", None)
    return {} if beside is None else beside.state_dict()


def _crossing(chosen, network, cuts, batch, loss_fn) -> list[Any]:
    if chosen.rule.feedback == "error":
        return [None] * chosen.count
    x, y = batch
    traces = trace_blocks(network.blocks, network.names, (x,), (y,), loss_fn)
    return cut_features(chosen.rule, traces, cuts, network.names, (y,))


class _Epochs:
    """Batches that differ from epoch to epoch."""

    def __init__(self, epochs: Sequence[Iterable[tuple[Tensor, Tensor]]]) -> None:
        self._epochs = epochs
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Any:
        return iter(self._epochs[self._epoch])


def wait_until_gone(pid: int, timeout_s: float = 30) -> None:
    """Wait for the end of a process that may have ended already."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([handle], [], [], timeout_s)
        assert ready, f"process {pid} is still there"
    finally:
        os.close(handle)
