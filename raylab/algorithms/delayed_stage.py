"""The computation of one stage under every method of the family: forward, backward, update.

Satisfies `actors.protocols.StageRule` without importing it: the same object runs in a Ray actor,
in one process, and under a simulated clock.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raylab.algorithms.batch_buffers import BatchBuffers
from raylab.algorithms.in_flight import InFlight, OpenUnit
from raylab.algorithms.late_losses import LateLosses
from raylab.algorithms.memory import GraphBytes, bytes_of
from raylab.algorithms.packing import as_list, packed
from raylab.algorithms.sigma import SufficientDirection
from raylab.algorithms.stage_figures import StageFigures, correct_predictions
from raylab.algorithms.stage_settings import (
    OptimizerFactory,
    ScheduleFactory,
    StageSettings,
    Tensors,
    Unit,
    draw_key,
)
from raylab.algorithms.stage_state import (
    BESIDE,
    copied,
    load_module,
    load_optimizer,
    load_weights,
    module_state,
    optimizer_state,
)
from raylab.algorithms.weight_versions import WeightVersions
from raylab.errors import ModelError

__all__ = ["DelayedStage"]


class DelayedStage:
    """One stage of a network.

    Args:
        module: the blocks of the stage; it is trained in place.
        settings: the numbers of the stage.
        optimizer: makes a torch optimiser from the stage's parameters.
        schedule: makes a learning-rate scheduler from it, stepped once an update; None: constant.
        loss_fn: (outputs, labels) -> mean loss over the samples; used at the last stage.
        companion: a network beside the stage that is trained with it, but is no part of its state;
            only where D = 0.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: StageSettings,
        *,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
        companion: nn.Module | None = None,
    ) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.module = module.to(self.device).train()
        self.updates = 0
        self._loss_fn = loss_fn
        self._sums = getattr(loss_fn, "reduction", "mean") == "sum"
        self._companion = companion
        beside = [] if companion is None else [*companion.to(self.device).parameters()]
        self._trained = [p for p in (*self.module.parameters(), *beside) if p.requires_grad]
        self._names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        self._optimizer = optimizer(self._trained) if self._trained else None
        self._schedule = schedule(self._optimizer) if schedule and self._optimizer else None
        # With D = 0 or a flush every backward comes before the next update: no version is needed.
        self._stale = settings.delay != 0 and not settings.flush
        self._replays = settings.replay and self._stale
        self._recomputes = settings.recompute and self._stale
        self._versions = WeightVersions(self.module, settings.weight_version)
        self._buffers = BatchBuffers(self.module)
        self._graphs = GraphBytes()
        self._open: dict[tuple[int, int], InFlight] = {}
        self._staleness: list[int] = []
        self._seen = False
        self._rechecks: dict[tuple[int, int], InFlight] = {}
        self._sigma = SufficientDirection()
        self._figures = StageFigures()
        self._losses = LateLosses(self.device, lambda *each: self._figures.train.add(*each))

    # ----------------------------------------------------------------- training

    def forward(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of `unit`; at the last stage its loss, and return nothing.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite. On a GPU it is told up to 15 batches
                later, or at the next report, with the number of the batch that it was.
        """
        self._mode(training=True)
        entry = InFlight(self._receive(inputs), labels, self.updates)
        self._open[unit.batch, unit.part] = entry
        if self._replays:
            outputs = self._play(unit, entry)
        elif self._recomputes:
            outputs = self._keep_input(unit, entry)
        else:
            self._grow_graph(unit, entry)
            outputs = entry.outputs
        self._note_memory(0 if self._replays or self._recomputes else len(self._open))
        return () if self.settings.last else tuple(t.detach() for t in outputs)

    def backward(self, unit: Unit, gradients: Tensors) -> Tensors:
        """Add the gradient of `unit` to the window's; return the error gradients at its inputs."""
        entry = self._open[unit.batch, unit.part]
        if self._replays or self._recomputes:
            self._mode(training=True)
            if self._replays:
                self._grow_graph(unit, entry)
            else:
                self._grow_again(unit, entry)
            self._note_memory(1)
        del self._open[unit.batch, unit.part]
        if unit.part + 1 == unit.parts:
            self._staleness.append(self.updates - entry.version)
        return self._shrunk(self._back_propagate(unit, entry, gradients))

    def correct(self, unit: Unit, gradients: Tensors) -> None:
        """Learn from a gradient that came after its backward; only `SyntheticStage` does.

        Raises:
            ModelError: always, as this stage waits for its gradients.
        """
        raise ModelError(f"a stage that waits for gradients cannot correct {unit}, {gradients}")

    def update(self) -> None:
        """Apply the mean gradient of the window's M batches: (16) of ADL; (5.9) of HUO for M = 1.

        A window before the first gradient is a step with g = 0 (5.8): weight decay, momentum and
        Adam's step count act. The mean is over M also where the last window is only part full.
        """
        if not self._seen:
            for p in self._trained:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in self._trained if p.grad is not None]
        if self.settings.accumulate > 1 and grads:
            torch._foreach_mul_(grads, 1.0 / self.settings.accumulate)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.settings.clip_norm)
        if self.settings.clip_value is not None and grads:
            nn.utils.clip_grad_value_(self._trained, self.settings.clip_value)
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        if self._schedule is not None:
            self._schedule.step()
        self._versions.updated()
        self._seen = False
        self.updates += 1
        self._figures.applied(self._staleness)
        self._staleness = []

    # ----------------------------------------------------------------- the measurement of sigma

    def recheck(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute a batch anew at the weights of now, with its draws and copies of the buffers."""
        self._mode(training=True)
        entry = InFlight(self._receive(inputs), labels, self.updates, weights=[*self._trained])
        self._rechecks[unit.batch, unit.part] = entry
        self._draw(unit, part=0)
        with self._autocast():
            entry.outputs = self._call(self._buffers.copies(), entry.inputs)
            if self.settings.last:
                entry.outputs = [self._loss(entry.outputs, labels)[0]]
        return () if self.settings.last else tuple(t.detach() for t in entry.outputs)

    def compare(self, unit: Unit, gradients: Tensors, *, due: bool) -> Tensors:
        """Back-propagate a recheck; keep its gradient if that of the same batch is applied next."""
        entry = self._rechecks.pop((unit.batch, unit.part))
        at_inputs, fresh = self._differentiate(entry, *self._ends(unit, entry, gradients))
        if due:
            self._sigma.expect(unit.batch, fresh)
        return at_inputs

    # ----------------------------------------------------------------- the rest of the protocol

    def evaluate(self, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of a test batch with the weights of now; count its loss at the end.

        Running statistics are used, not moved; nothing is drawn.
        """
        self._mode(training=False)
        with torch.no_grad(), self._autocast():
            outputs = self._call({}, [t.to(self.device) for t in inputs if t is not None])
            if self.settings.last:
                loss, score, targets = self._loss(outputs, labels)
                size = targets[0].shape[0]
                mean = float(loss) / (size if self._sums else 1)
                correct = correct_predictions(score, targets[0])
                self._figures.test.add(mean, size, None if correct is None else int(correct))
                return ()
        return tuple(outputs)

    def report(self) -> dict[str, Any]:
        """Return the figures since the last report, and the learning rate of the next update."""
        self._losses.fetch()
        row = self._figures.row()
        self._figures = StageFigures()
        if self._optimizer is not None:
            row["learning_rate"] = float(self._optimizer.param_groups[0]["lr"])
        return row

    def state(self) -> dict[str, Tensor]:
        """Return weights and buffers by name, copied to the CPU."""
        return {name: t.detach().cpu().clone() for name, t in self.module.state_dict().items()}

    def measure(self, inputs: Tensors, repeats: int) -> list[tuple[float, float]]:
        """Time forward and backward, with its share of an update, on a copy of the stage.

        The last stage is timed up to its output, the loss being small beside it.

        Returns:
            (forward, backward) in seconds, one pair a repeat.
        """
        # In one go, so that the copied optimiser steps the copied parameters.
        twin, optimizer = copy.deepcopy((self.module.train(), self._optimizer))
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            given = self._protected(self._receive(inputs))
            with self._autocast():
                outputs = as_list(twin(packed(given)))
            self._synchronise()
            forwarded = time.perf_counter()
            ends = [t for t in outputs if t.requires_grad]
            if ends:
                torch.autograd.backward(ends, [torch.zeros_like(t) for t in ends])
            self._synchronise()
            returned = time.perf_counter()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self._synchronise()
            update_s = (time.perf_counter() - returned) / self.settings.accumulate
            times.append((forwarded - started, returned - forwarded + update_s))
        return times

    # ----------------------------------------------------------------- checkpoints

    def save(self) -> dict[str, Any]:
        """Return all that the stage is between two batches, see `actors.protocols.StageRule`.

        What may be written to later is copied; old weights and inputs in flight never are.
        """
        self._losses.fetch()
        names = self._parameter_names()
        versions = {
            entry.version: self._weights_of(entry)
            for entry in self._open.values()
            if entry.weights and entry.version != self.updates and not self._replays
        }
        return {
            "weights": module_state(self.module),
            "companion": module_state(self._companion) if self._companion else None,
            "optimizer": optimizer_state(self._optimizer, names) if self._optimizer else None,
            "schedule": copy.deepcopy(self._schedule.state_dict()) if self._schedule else None,
            "gradients": {
                names[id(p)]: copied(p.grad) for p in self._trained if p.grad is not None
            },
            "seen": self._seen,
            "updates": self.updates,
            "staleness": list(self._staleness),
            "versions": {
                version: {name: t.detach().cpu() for name, t in weights.items()}
                for version, weights in versions.items()
            },
            "open": [
                {
                    "batch": batch,
                    "part": part,
                    "version": entry.version,
                    "inputs": [t.detach().cpu() for t in entry.inputs],
                }
                for (batch, part), entry in self._open.items()
            ],
            "figures": self._figures.state(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned; graphs of open batches are grown again from their inputs,
        with the weights of their forward and the same draws, and no running statistic moves.
        """
        names = self._parameter_names()
        load_module(self.module, saved["weights"])
        if self._companion is not None and saved["companion"] is not None:
            load_module(self._companion, saved["companion"])
        if self._optimizer is not None:
            load_optimizer(self._optimizer, names, saved["optimizer"])
        if self._schedule is not None:
            self._schedule.load_state_dict(copy.deepcopy(saved["schedule"]))
        for p in self._trained:
            kept = saved["gradients"].get(names[id(p)])
            p.grad = None if kept is None else kept.to(self.device, copy=True)
        self._seen = saved["seen"]
        self.updates = saved["updates"]
        self._staleness = list(saved["staleness"])
        figures = saved["figures"]
        self._figures = StageFigures() if figures is None else StageFigures.restored(figures)
        self._versions.updated()
        self._open = {}
        self._mode(training=True)
        old: dict[int, dict[str, Tensor]] = {}
        for each in saved["open"]:
            version = each["version"]
            if version != self.updates and version not in old:
                old[version] = {
                    name: t.to(self.device).requires_grad_()
                    for name, t in saved["versions"].get(version, {}).items()
                }
            entry = InFlight(self._receive(each["inputs"]), (), version)
            self._open[each["batch"], each["part"]] = entry
            self._reopen(OpenUnit(each["batch"], each["part"]), entry, old.get(version))

    # ----------------------------------------------------------------- inside

    def _reopen(self, unit: OpenUnit, entry: InFlight, old: dict[str, Tensor] | None) -> None:
        """Give a restored batch what its forward had given it; `old` None: weights of now."""
        if self._replays:
            return
        current = self.settings.weight_version == "current"
        weights = self._versions.now()
        if current and old is not None:
            entry.copies = old
            now = {name: p.detach().clone() for name, p in self.module.named_parameters()}
            entry.weights = [weights[name] for name in self._names]
            # The graph refers to the parameters' memory, and shall have seen the old weights there.
            load_weights(self.module, old)
            self._grow_again(unit, entry)
            load_weights(self.module, now)
            return
        entry.copies = self._versions.copies() if current else {}
        entry.weights = [(old or weights)[name] for name in self._names]
        if not self._recomputes:
            self._grow_again(unit, entry)

    def _weights_of(self, entry: InFlight) -> dict[str, Tensor]:
        return entry.copies or dict(zip(self._names, entry.weights, strict=True))

    def _parameter_names(self) -> dict[int, str]:
        beside = self._companion.named_parameters(BESIDE) if self._companion else ()
        return {id(p): name for name, p in (*self.module.named_parameters(), *beside)}

    def _receive(self, inputs: Tensors) -> list[Tensor]:
        """Return the inputs as leaves of this stage's graph, on its device."""
        received = [t.to(self.device) for t in inputs if t is not None]
        if self.settings.stage == 0:
            return received
        return [
            t.detach().requires_grad_(t.is_floating_point() or t.is_complex()) for t in received
        ]

    def _call(self, state: dict[str, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the blocks, with the weights and buffers of `state` where it has any."""
        inputs = self._protected(inputs)
        if not state:
            return as_list(self.module(packed(inputs)))
        return as_list(functional_call(self.module, state, (packed(inputs),)))

    def _protected(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [t.clone() for t in inputs] if self.settings.protect_inputs else inputs

    def _play(self, unit: Unit, entry: InFlight) -> list[Tensor]:
        """Forward without a graph, into copies of the buffers: the replay moves the real ones."""
        self._draw(unit)
        with torch.no_grad(), self._autocast():
            return self._call(self._buffers.copies(), entry.inputs)

    def _keep_input(self, unit: Unit, entry: InFlight) -> list[Tensor]:
        """Forward without a graph; unlike a play it is the one that moves the buffers."""
        self._draw(unit)
        weights = self._versions.now()
        entry.weights = [weights[name] for name in self._names]
        with torch.no_grad(), self._autocast():
            return self._call(weights, entry.inputs)

    def _grow_again(self, unit: Unit | OpenUnit, entry: InFlight) -> None:
        """Grow the graph of a forward that has been, at its weights, moving no buffer."""
        self._draw(unit)
        state = dict(zip(self._names, entry.weights, strict=True))
        held = [*self.module.parameters(), *self.module.buffers(), *entry.weights]
        with self._autocast(), self._graphs.grown(entry.inputs, held):
            entry.outputs = self._call({**state, **self._buffers.copies()}, entry.inputs)
        entry.graph_bytes = self._graphs.last

    def _note_memory(self, graphs: int) -> None:
        """Count what is in flight, with the batch that is being worked on."""
        entries = self._open.values()
        # A replay reads the parameters themselves, however old the batch is.
        versions = {
            e.version: self._weights_of(e)
            for e in entries
            if e.weights and e.version != self.updates and not self._replays
        }
        self._figures.in_flight(
            graphs,
            len(entries),
            sum(entry.bytes() for entry in entries),
            # The version of now is a copy beside the parameters, too.
            sum(bytes_of(each.values()) for each in versions.values()) + self._versions.bytes(),
        )

    def _grow_graph(self, unit: Unit, entry: InFlight) -> None:
        """Forward with a graph, at the version of the weights that the backward is to read."""
        self._draw(unit)
        weights = self._versions.now() if self._stale and not self._replays else None
        buffers = self._buffers.copies() if unit.parts > 1 else {}
        state = {**(weights or {}), **buffers}
        held = [*self.module.parameters(), *self.module.buffers(), *(weights or {}).values()]
        with self._autocast(), self._graphs.grown(entry.inputs, held):
            entry.outputs = self._call(state, entry.inputs)
            entry.weights = [weights[n] for n in self._names] if weights else [*self._trained]
            if self.settings.last:
                entry.outputs = [self._count_loss(unit, entry.outputs, entry.labels)]
        entry.graph_bytes = self._graphs.last
        if weights and self.settings.resumable and self.settings.weight_version == "current":
            entry.copies = self._versions.copies()
        if buffers:
            # From `state`: a module that replaces a buffer has put the new one there.
            buffers = {name: state[name] for name in buffers}
            self._buffers.moved(buffers, share=unit.share, last=unit.part + 1 == unit.parts)

    def _count_loss(self, unit: Unit, outputs: Sequence[Tensor], labels: Tensors) -> Tensor:
        loss, score, targets = self._loss(outputs, labels)
        size = targets[0].shape[0]
        correct = correct_predictions(score.detach(), targets[0])
        self._losses.came(unit.batch, loss.detach(), size if self._sums else 1, size, correct)
        # A sum over samples adds up over micro-batches as it is; a mean counts by its share.
        return loss if self._sums else loss * unit.share

    def _loss(
        self, outputs: Sequence[Tensor], labels: Tensors
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        targets = [t.to(self.device) for t in labels if t is not None]
        if self._loss_fn is None:
            raise ModelError("the last stage must be given a loss function, but got None")
        loss = self._loss_fn(packed(outputs), packed(targets))
        return loss.reshape(()), outputs[0], targets

    def _ends(
        self,
        unit: Unit,  # noqa: ARG002 - what others count a loss of their own by
        entry: InFlight,
        gradients: Tensors,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what a backward starts from, and the error gradients there."""
        if self.settings.last:
            return entry.outputs, [torch.ones_like(entry.outputs[0])]
        pairs = [
            (out, gradient.to(self.device))
            for out, gradient in zip(entry.outputs, gradients, strict=True)
            if gradient is not None and out.requires_grad
        ]
        return [out for out, _ in pairs], [gradient for _, gradient in pairs]

    def _differentiate(
        self, entry: InFlight, ends: Sequence[Tensor], given: Sequence[Tensor]
    ) -> tuple[Tensors, Tensors]:
        """Return the gradients at the inputs and at the weights, None where there are none."""
        wanted = [t for t in entry.inputs if t.requires_grad]
        if not any(end.requires_grad for end in ends):
            return tuple(None for _ in entry.inputs), tuple(None for _ in entry.weights)
        found: Tensors = torch.autograd.grad(
            ends, [*wanted, *entry.weights], given, allow_unused=True
        )
        at_inputs = iter(found[: len(wanted)])
        return (
            tuple(next(at_inputs) if t.requires_grad else None for t in entry.inputs),
            found[len(wanted) :],
        )

    def _back_propagate(self, unit: Unit, entry: InFlight, gradients: Tensors) -> Tensors:
        ends, given = self._ends(unit, entry, gradients)
        at_inputs, at_weights = self._differentiate(entry, ends, given)
        self._seen = True
        if measured := self._sigma.compare(unit.batch, at_weights):
            self._figures.directed(*measured)
        # autograd may hand out one tensor twice, or the one that travels on: p.grad is scaled in
        # place later, so it must be nobody else's.
        taken = {_memory(t) for t in (*at_inputs, *given) if t is not None}
        for p, gradient in zip(self._trained, at_weights, strict=True):
            if gradient is None:
                continue
            if p.grad is not None:
                p.grad.add_(gradient)
                continue
            if gradient.layout is torch.strided:
                if _memory(gradient) in taken or 0 in gradient.stride():
                    gradient = gradient.clone(memory_format=torch.contiguous_format)
                taken.add(_memory(gradient))
            p.grad = gradient
        return at_inputs

    def _shrunk(self, gradients: Tensors) -> Tensors:
        """Return what passes down: with a factor of beta a link, stage k of K has beta^(K-k).

        Gradient shrinking of FDG (Zhuang et al. 2021): the later a gradient comes, the less of it.
        """
        beta = self.settings.gradient_shrink
        if beta == 1:
            return gradients
        return tuple(None if t is None else t * beta for t in gradients)

    def _draw(self, unit: Unit, part: int | None = None) -> None:
        part = unit.part if part is None else part
        key = draw_key(self.settings.seed, self.settings.stage, unit.batch, part)
        # Not torch.manual_seed: it keeps a formatted stack for every accelerator not yet in use,
        # which costs a millisecond a call and is never freed.
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"
        )

    def _mode(self, *, training: bool) -> None:
        if self.module.training is not training:
            self.module.train(training)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
