"""The rule of one replica: a local step, an average that nobody waits for, a late merge.

    minibatch_sgd  begin: forward, backward, start the mean of the gradients   end: wait, update
    the others     begin: forward, backward, update x;  if (k+1) mod tau = 0 start the mean of x
                   end:   if (k+1-d) mod tau = 0 wait, x <- xi x + (1-xi) mean
                   (DASGD eq. 7)

Two halves, so that W replicas in one process can all begin a step before one of them ends it, which
is what the network does for W processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from raylab.algorithms.averaging.averages import Average
from raylab.algorithms.averaging.collective import Pending
from raylab.algorithms.averaging.figures import WorkerFigures
from raylab.algorithms.averaging.flat import FlatTensors, trainable
from raylab.algorithms.averaging.layer_samples import read_samples, write_samples
from raylab.algorithms.averaging.method import AveragingNumbers
from raylab.algorithms.stage.host_draws import HostDraws
from raylab.algorithms.stage.layerwise import collect, recording, watch
from raylab.algorithms.stage.loss_terms import loss_terms
from raylab.algorithms.stage.one_value import one_value_told
from raylab.algorithms.stage.settings import OptimizerFactory, ScheduleFactory, draw_key
from raylab.algorithms.stage.trained_by import check_loss_fn, trained_by
from raylab.errors import NonFiniteLossError

__all__ = ["AveragingWorker", "WorkerSettings", "autocast", "on_device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """The numbers of one replica.

    Args:
        rule: tau, d and xi.
        worker: index of the replica, from 0.
        seed: of the draws inside the network, keyed by worker and step.
        clip_norm: largest Euclidean norm of the gradient that is applied, None: no limit.
        clip_value: largest magnitude of an element of it, None: no limit.
        precision: "float32" computes in the dtype of the weights, "bfloat16" under autocast.
        device: where the replica computes.
    """

    rule: AveragingNumbers
    worker: int = 0
    seed: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


class AveragingWorker:
    """One replica.

    Args:
        model: of the replica, its own; moved to the device.
        settings: its numbers.
        optimizer: from parameters to a torch optimiser, whose state stays local.
        schedule: from an optimiser to a torch scheduler, stepped once an update; None: none.
        loss_fn: (outputs, labels) -> mean loss over the samples of a batch.
        average: makes the replica's means from its first weights, flat.
        figures: counts what the replica does; None: figures of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: WorkerSettings,
        *,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None,
        loss_fn: Callable[..., Tensor],
        average: Callable[[Tensor], Average],
        figures: WorkerFigures | None = None,
    ) -> None:
        self.settings = settings
        self.model = model.to(settings.device)
        self._host = HostDraws(self.model)
        self.step = 0
        """k, local steps done."""
        self.parameters = trainable(self.model)
        self.weights = FlatTensors(self.parameters)
        self.optimizer = optimizer(self.parameters)
        # Before the scheduler is made: it may split the groups.
        self._layerwise = watch(self.optimizer, self.model, by_hand=True)
        self._freezes_fc = getattr(schedule, "freezes_fc", None)
        linear = [each for each in self.model.modules() if isinstance(each, nn.Linear)]
        self._fully_connected = [p for each in linear for p in each.parameters(recurse=False)]
        self.schedule = schedule(self.optimizer) if schedule else None
        check_loss_fn(loss_fn)
        self._held = trained_by(self.optimizer, self.parameters)
        self.average = average(self.weights.read())
        self.figures = figures or WorkerFigures(
            loss_terms(loss_fn).on(torch.device(settings.device))
        )
        self._loss_fn = loss_fn
        self._pending: Pending[Tensor] | None = None

    def begin(self, x: Any, y: Any) -> None:
        """Do the local half of step k.

        Args:
            x: what the model is called with, a tensor or a nest of them.
            y: what the loss is called with.
        """
        self.model.train()
        self.optimizer.zero_grad()
        if len(self._held) < len(self.parameters):
            self.model.zero_grad()  # those that the optimiser has not taken would add up
        with self._draws(), autocast(self.settings), recording(self.optimizer) as recorded:
            target = on_device(y, self.settings.device)
            with one_value_told():
                output = self.model(on_device(x, self.settings.device))
            loss = self._loss_fn(output, target).reshape(())
        loss.backward()  # type: ignore[no-untyped-call]
        collect(self.optimizer, recorded)
        self.figures.trained(loss, output, target)
        if self.settings.rule.averages == "gradients":
            gradients = self._gradients().read()
            samples = read_samples(self._layerwise, gradients)
            self._pending = self.average.start(torch.cat([gradients, samples]))
            return
        self._update()
        if self.settings.rule.starts(self.step):
            # A copy goes away: the weights move on while it is under way.
            self._pending = self.average.start(self.weights.read())

    def end(self) -> None:
        """Do the half of step k that may wait for others.

        Raises:
            NonFiniteLossError: the loss of this step is NaN or infinite; on a GPU it is told some
                steps later.
        """
        rule = self.settings.rule
        if rule.averages == "gradients":
            gradients, samples = self._taken().tensor_split([self.weights.numel])
            self._gradients().write(gradients)
            write_samples(self._layerwise, samples)
            self._update()
        elif self._pending is not None and rule.merges(self.step):
            self.weights.blend(self._taken(), rule.xi)
        self.step += 1
        if not self.figures.finite(self.settings.device):
            raise NonFiniteLossError(
                f"the loss must be finite, but it is not at step {self.step} of worker "
                f"{self.settings.worker}: choose a smaller learning rate"
            )

    @property
    def in_flight(self) -> bool:
        """Whether an average is under way."""
        return self._pending is not None

    def drop(self) -> None:
        """Wait for an average that is under way at the end of a run, and leave it out."""
        if self._pending is not None:
            self._taken()

    def state(self) -> dict[str, Any]:
        """Return all that a replica goes on from; nothing may be in flight.

        Raises:
            RuntimeError: an average is.
        """
        if self._pending is not None:
            raise RuntimeError("a replica is saved between two averages, but one is in flight")
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "average": self.average.state(),
            "sent_bytes": self.average.sent_bytes,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` has returned."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None and state["schedule"] is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.average.restore(state["average"])
        self.average.sent_bytes = state["sent_bytes"]

    def reschedule(self, update: int) -> None:
        """Go on with the rate of another update: a worker's share of an epoch has changed."""
        if self.schedule is not None:
            self.schedule.last_epoch = update - 1
            self.schedule.step()

    def _taken(self) -> Tensor:
        """Return the mean that is under way."""
        pending, self._pending = self._pending, None
        assert pending is not None  # noqa: S101 - callers have looked
        with self.figures.blocked():
            return pending.wait()

    def _update(self) -> None:
        if self._freezes_fc is not None and self._freezes_fc(self.step):
            for each in self._fully_connected:
                each.grad = None  # FC-freeze: neither gradient nor momentum nor decay moves it
        if self.settings.clip_value is not None:
            nn.utils.clip_grad_value_(self._held, self.settings.clip_value)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._held, self.settings.clip_norm)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    def _gradients(self) -> FlatTensors:
        """Return all gradients; one that a batch has not made is zero."""
        for each in self.parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        return FlatTensors(each.grad for each in self.parameters if each.grad is not None)

    @contextlib.contextmanager
    def _draws(self) -> Any:
        """Draw what the network draws from a key, whatever else draws in this process."""
        settings = self.settings
        devices = [settings.device] if settings.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices):
            key = draw_key(settings.seed, settings.worker, self.step, 0)
            torch.manual_seed(key)
            with self._host.keyed(key):
                yield


def autocast(settings: WorkerSettings) -> AbstractContextManager[Any]:
    """Return the context in which a replica computes."""
    if settings.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(settings.device).type, dtype=torch.bfloat16)


def on_device(value: Any, device: str) -> Any:
    """Return a nest of tensors with all of them on a device."""
    return _pytree.tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), value)
