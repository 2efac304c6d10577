"""The computation of one stage under every method of the family: forward, backward, update.

Satisfies `actors.pipeline.protocols.StageRule` without importing it: the same object runs in a Ray
actor, in one process, and under a simulated clock.

    StageBlocks    the blocks, run once
    StageLoss      the loss over what they put out
    OpenBatches    what is kept between a batch's forward and its backward
    UpdateWindow   the parameters, the gradient of M batches, the update
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raylab.algorithms.stage.blocks import StageBlocks
from raylab.algorithms.stage.figures import StageFigures
from raylab.algorithms.stage.in_flight import InFlight
from raylab.algorithms.stage.layerwise import collect
from raylab.algorithms.stage.loss import StageLoss
from raylab.algorithms.stage.module_copy import (
    copied_state,
    extra_states,
    load_extra_states,
)
from raylab.algorithms.stage.open_batches import OpenBatches
from raylab.algorithms.stage.settings import (
    OptimizerFactory,
    ScheduleFactory,
    StageSettings,
    Tensors,
    Unit,
)
from raylab.algorithms.stage.sigma import SufficientDirection
from raylab.algorithms.stage.state import load_module, module_state
from raylab.algorithms.stage.timing import time_stage
from raylab.algorithms.stage.update_window import UpdateWindow
from raylab.errors import ModelError

__all__ = ["DelayedStage"]


class DelayedStage:
    """One stage of a network.

    A stage with an error gradient of its own overrides `ends`.

    Args:
        module: the blocks of the stage; it is trained in place.
        settings: the numbers of the stage.
        optimizer: makes a torch optimiser from the stage's parameters.
        schedule: makes a learning-rate scheduler from it, stepped once an update; None: constant.
        loss_fn: (outputs, labels) -> mean loss over the samples; used at the last stage.
        companion: a network beside the stage that is trained with it, but is no part of its state;
            only where D = 0.
    """

    passes_down: ClassVar[bool] = True
    """Whether the stage below waits for the gradients at this one's inputs."""

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
        self.figures = StageFigures()
        self.blocks = StageBlocks(
            module, settings, passes_down=self.passes_down and settings.stage > 0
        )
        self.loss = StageLoss(loss_fn, self.blocks, self.figures)
        self.window = UpdateWindow(
            self.blocks.module,
            settings,
            optimizer=optimizer,
            schedule=schedule,
            companion=None if companion is None else companion.to(self.blocks.device),
        )
        self._open = OpenBatches(settings, self.blocks, self.loss, self.window, self.figures)
        self._sigma = SufficientDirection()
        self._rechecks: dict[tuple[int, int], InFlight] = {}

    # ----------------------------------------------------------------- training

    def forward(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of `unit`; at the last stage its loss, and return nothing.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite. On a GPU it is told up to 15 batches
                later, or at the next report, with the number of the batch that it was.
        """
        outputs = self._open.begin(unit, inputs, labels)
        return () if self.settings.last else tuple(t.detach() for t in outputs)

    def backward(self, unit: Unit, gradients: Tensors) -> Tensors:
        """Add the gradient of `unit` to the window's; return the error gradients at its inputs."""
        entry = self._open.end(unit)
        if unit.part + 1 == unit.parts:
            self.window.staleness.append(self.window.updates - entry.version)
        ends, given = self.ends(unit, entry, gradients)
        with self._open.reading(unit, entry):
            at_inputs, at_weights = entry.differentiated(ends, given)
        if measured := self._sigma.compare(unit.batch, at_weights):
            self.figures.directed(*measured)
        self.window.add(at_weights, (*at_inputs, *given))
        collect(self.window.optimizer, entry.recorded)
        return self._shrunk(at_inputs)

    def ends(
        self,
        unit: Unit,  # noqa: ARG002 - what others count a loss of their own by
        entry: InFlight,
        gradients: Tensors,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what the backward of a unit starts from, and the gradients there.

        Args:
            unit: of training.
            entry: its graph.
            gradients: that the stage above has sent for it.
        """
        if self.settings.last:
            return entry.outputs, [torch.ones_like(entry.outputs[0])]
        pairs = [
            (out, gradient.to(self.blocks.device))
            for out, gradient in zip(entry.outputs, gradients, strict=True)
            if gradient is not None and out.requires_grad
        ]
        return [out for out, _ in pairs], [gradient for _, gradient in pairs]

    def correct(self, unit: Unit, gradients: Tensors) -> None:
        """Learn from a gradient that came after its backward; only `SyntheticStage` does.

        Raises:
            ModelError: always, as this stage waits for its gradients.
        """
        raise ModelError(f"a stage that waits for gradients cannot correct {unit}, {gradients}")

    def update(self) -> None:
        """Apply the mean gradient of the window's M batches: (16) of ADL; (5.9) of HUO for M = 1.

        A window before the first gradient is a step with g = 0 (5.8), see `UpdateWindow.apply`.
        """
        self._open.updating()
        self.figures.applied(self.window.apply())
        self._open.updated()

    def _shrunk(self, gradients: Tensors) -> Tensors:
        """Return what passes down: with a factor of beta a link, stage k of K has beta^(K-k).

        Gradient shrinking of FDG (Zhuang et al. 2021): the later a gradient comes, the less of it.
        """
        beta = self.settings.gradient_shrink
        if beta == 1:
            return gradients
        return tuple(None if t is None else t * beta for t in gradients)

    # ----------------------------------------------------------------- the measurement of sigma

    def recheck(self, unit: Unit, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute a batch anew at the weights of now, with its draws, on copies of all it could
        write to.
        """
        blocks = self.blocks
        blocks.mode(training=True)
        entry = InFlight(blocks.received(inputs), labels, self.window.updates)
        entry.copies = blocks.copies()
        entry.weights = [t for t in entry.copies.values() if t.requires_grad]
        entry.whole = self._open.whole
        self._rechecks[unit.batch, unit.part] = entry
        with blocks.drawing(unit, part=0), blocks.autocast():
            entry.outputs = blocks.run_aside(entry.inputs, entry.copies)
            if self.settings.last:
                entry.outputs = [self.loss.of(entry.outputs, labels)]
        return () if self.settings.last else tuple(t.detach() for t in entry.outputs)

    def compare(self, unit: Unit, gradients: Tensors, *, due: bool) -> Tensors:
        """Back-propagate a recheck; keep its gradient if that of the same batch is applied next."""
        entry = self._rechecks.pop((unit.batch, unit.part))
        with self.blocks.holding(entry.copies):
            at_inputs, fresh = entry.differentiated(*self.ends(unit, entry, gradients))
        if due:
            self._sigma.expect(unit.batch, fresh)
        return at_inputs

    # ----------------------------------------------------------------- the rest of the protocol

    def evaluate(self, inputs: Tensors, labels: Tensors) -> Tensors:
        """Compute the features of a test batch with the weights of now; count its loss at the end.

        Running statistics are used, not moved; nothing is drawn.
        """
        self.blocks.mode(training=False)
        with torch.no_grad(), self.blocks.autocast():
            outputs = self.blocks.run(self.blocks.here(inputs), {})
            if self.settings.last:
                self.loss.tested(outputs, labels)
                return ()
        return tuple(outputs)

    def report(self) -> dict[str, Any]:
        """Return the figures since the last report, and the learning rate of the next update."""
        self.loss.fetch()
        row = self.figures.take()
        if (rate := self.window.learning_rate) is not None:
            row["learning_rate"] = rate
        return {**row, **self.window.layer_figures()}

    def state(self) -> dict[str, Any]:
        """Return weights, buffers and extra states by name, copied to the CPU."""
        return {name: copied_state(t) for name, t in self.blocks.module.state_dict().items()}

    def measure(self, inputs: Tensors, repeats: int) -> list[tuple[float, float]]:
        """Time the stage on a copy of it, see `time_stage`."""
        return time_stage(self.blocks, self.window, self.settings.accumulate, inputs, repeats)

    def save(self) -> dict[str, Any]:
        """Return all that the stage is between two batches.

        What may be written to later is copied; old weights and inputs in flight never are.
        """
        self.loss.fetch()
        return {
            "weights": module_state(self.blocks.module),
            "extra": extra_states(self.blocks.module),
            **self.window.save(),
            **self._open.save(),
            "figures": self.figures.state(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned; graphs of open batches are grown again."""
        load_module(self.blocks.module, saved["weights"])
        # The last version saved no extra states.
        load_extra_states(self.blocks.module, saved.get("extra", {}))
        self.window.restore(saved)
        self.figures.restore(saved["figures"])
        self._open.restore(saved)
