"""The batches between their forward and their backward at one stage, and what is kept of each.

graph       the forward grows it, at weights that stay as they are until the backward
recompute   the input and those weights; the graph is grown before the backward
replay      the input alone; before the backward comes a forward at the weights of then
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from raylab.algorithms.stage.blocks import StageBlocks
from raylab.algorithms.stage.figures import StageFigures
from raylab.algorithms.stage.in_flight import InFlight, OpenUnit, goes_as_a_whole
from raylab.algorithms.stage.layerwise import recording
from raylab.algorithms.stage.loss import StageLoss
from raylab.algorithms.stage.memory import GraphBytes
from raylab.algorithms.stage.settings import StageSettings, Tensors, Unit
from raylab.algorithms.stage.state import load_weights
from raylab.algorithms.stage.update_window import UpdateWindow
from raylab.algorithms.stage.weight_versions import WeightVersions

__all__ = ["OpenBatches"]

_AS_IT_IS = contextlib.nullcontext()


class OpenBatches:
    """The open batches of one stage.

    Args:
        settings: the numbers of the stage.
        blocks: of the stage.
        loss: of its outputs; asked at the last stage.
        window: the parameters, and how often they have moved.
        figures: of the stage; what is in flight is noted there.
    """

    def __init__(
        self,
        settings: StageSettings,
        blocks: StageBlocks,
        loss: StageLoss,
        window: UpdateWindow,
        figures: StageFigures,
    ) -> None:
        self._settings = settings
        self._blocks = blocks
        self._loss = loss
        self._window = window
        self._figures = figures
        self._names = [n for n, p in blocks.module.named_parameters() if p.requires_grad]
        # With D = 0 or a flush every backward comes before the next update: no version is needed.
        stale = settings.delay != 0 and not settings.flush
        self._replays = stale and settings.replay
        self._recomputes = stale and settings.recompute
        # Micro-batches whose forwards write into weights would spoil each other's graphs.
        apart = settings.writes_weights and settings.flush and settings.delay != 0
        self._versioned = apart or (stale and not settings.replay)
        self._aliased = settings.weight_version == "current"
        self._versions = WeightVersions(blocks.module, settings.weight_version)
        self._graphs = GraphBytes()
        self.whole = False
        """Whether the graphs can only be gone through as a whole, see `goes_as_a_whole`."""
        self._moves_again = False
        """Whether a backward has computed something again that moves buffers."""
        self._open: dict[tuple[int, int], InFlight] = {}
        self._bytes = 0
        """Of all that is open, beside weights."""

    def begin(self, unit: Unit, inputs: Tensors, labels: Tensors) -> list[Tensor]:
        """Forward a unit, and keep what its backward will need; return its outputs."""
        self._blocks.mode(training=True)
        entry = InFlight(self._blocks.received(inputs), labels, self._window.updates)
        graphless = self._replays or self._recomputes
        if self._replays:
            outputs = self._play(unit, entry)
        elif self._recomputes:
            outputs = self._keep_input(unit, entry)
        else:
            self._grow(unit, entry)
            outputs = entry.outputs
        self._add(unit, entry)
        self._note(0 if graphless else len(self._open), self._bytes)
        return outputs

    def end(self, unit: Unit) -> InFlight:
        """Return a unit with its graph; it is open no more."""
        entry = self._open[unit.batch, unit.part]
        self._bytes -= entry.bytes()
        if self._replays or self._recomputes:
            self._blocks.mode(training=True)
            if self._replays:
                self._grow(unit, entry)
            else:
                self._grow_again(unit, entry)
            self._note(1, self._bytes + entry.bytes())
        del self._open[unit.batch, unit.part]
        return entry

    def reading(self, unit: Unit, entry: InFlight) -> AbstractContextManager[None]:
        """Return the context of a unit's backward: what runs forward there reads its weights."""
        # Micro-batches share the move of a batch's statistics, which has been by now: what one of
        # them computes again moves copies. Seldom any does, so it is looked at with a first graph.
        if unit.parts > 1 and (entry.first or self._moves_again):
            return self._reading_copies(entry)
        if self._versioned:
            return self._blocks.holding(dict(zip(self._names, entry.weights, strict=True)))
        return _AS_IT_IS

    @contextlib.contextmanager
    def _reading_copies(self, entry: InFlight) -> Iterator[None]:
        buffers = self._blocks.buffers.copies()
        weights = zip(self._names, entry.weights, strict=True) if self._versioned else ()
        with self._blocks.holding({**buffers, **dict(weights)}):
            yield
        if any(each._version for each in buffers.values()):
            self._moves_again = True

    def updating(self) -> None:
        """The parameters are about to move."""
        now = self._window.updates
        if self._versioned and any(entry.version == now for entry in self._open.values()):
            self._versions.part()

    def updated(self) -> None:
        """The parameters have moved."""
        self._versions.updated()

    def save(self) -> dict[str, Any]:
        """Return the open units and the weights of their forwards.

        Both are as they are in memory where that is the CPU's: nobody will write to them.
        """
        versions = {
            entry.version: entry.copies or dict(zip(self._names, entry.weights, strict=True))
            for entry in self._open.values()
            if entry.weights and entry.version != self._window.updates and not self._replays
        }
        return {
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
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what `save` returned, in a stage whose parameters have been restored.

        Graphs are grown again from their inputs, with the weights of their forward and the same
        draws, and no running statistic moves.
        """
        self._versions.updated()
        self._open, self._bytes = {}, 0
        self._blocks.mode(training=True)
        old: dict[int, dict[str, Tensor]] = {}
        for each in saved["open"]:
            version = each["version"]
            if version != self._window.updates and version not in old:
                old[version] = {
                    name: t.to(self._blocks.device).requires_grad_()
                    for name, t in saved["versions"].get(version, {}).items()
                }
            unit = OpenUnit(each["batch"], each["part"])
            entry = InFlight(self._blocks.received(each["inputs"]), (), version)
            self._reopen(unit, entry, old.get(version))
            self._add(unit, entry)

    # ----------------------------------------------------------------- the ways to run a forward

    def _play(self, unit: Unit, entry: InFlight) -> list[Tensor]:
        """Forward without a graph, into copies of the buffers: the replay moves the real ones."""
        with torch.no_grad(), self._blocks.drawing(unit), self._blocks.autocast():
            return self._blocks.run_aside(entry.inputs, self._blocks.buffers.copies())

    def _keep_input(self, unit: Unit, entry: InFlight) -> list[Tensor]:
        """Forward without a graph; unlike a play it is the one that moves the buffers."""
        weights = self._versions.now()
        entry.weights = [weights[name] for name in self._names]
        with torch.no_grad(), self._blocks.drawing(unit), self._blocks.autocast():
            outputs = self._blocks.run(entry.inputs, weights)
        self._versions.ran(entry.weights)
        return outputs

    def _grow(self, unit: Unit, entry: InFlight) -> None:
        """Forward with a graph, at the version of the weights that the backward is to read."""
        blocks = self._blocks
        weights = self._versions.now() if self._versioned else None
        buffers = blocks.buffers.copies() if unit.parts > 1 else {}
        state = {**(weights or {}), **buffers}
        held = [*blocks.module.parameters(), *blocks.module.buffers(), *(weights or {}).values()]
        with (
            blocks.drawing(unit),
            blocks.autocast(),
            self._graphs.grown(entry.inputs, held),
            recording(self._window.optimizer) as entry.recorded,
        ):
            entry.outputs = blocks.run(entry.inputs, state)
            if weights:
                entry.weights = [weights[n] for n in self._names]
                self._versions.ran(entry.weights)
            else:
                entry.weights = [*self._window.trained]
            if self._settings.last:
                entry.outputs = [self._loss.counted(unit, entry.outputs, entry.labels)]
        self._grown(entry)
        if weights and self._settings.resumable and self._aliased:
            entry.copies = self._versions.copies()
        if buffers:
            # From `state`: a module that replaces a buffer has put the new one there.
            buffers = {name: state[name] for name in buffers}
            blocks.buffers.moved(buffers, share=unit.share, last=unit.part + 1 == unit.parts)

    def _grow_again(self, unit: Unit, entry: InFlight) -> None:
        """Grow the graph of a forward that has been, at its weights, moving no buffer."""
        blocks = self._blocks
        state = dict(zip(self._names, entry.weights, strict=True))
        held = [*blocks.module.parameters(), *blocks.module.buffers(), *entry.weights]
        with (
            blocks.drawing(unit),
            blocks.autocast(),
            self._graphs.grown(entry.inputs, held),
            recording(self._window.optimizer) as entry.recorded,
        ):
            entry.outputs = blocks.run_aside(entry.inputs, {**state, **blocks.buffers.copies()})
        self._grown(entry)

    def _grown(self, entry: InFlight) -> None:
        """Note what has become known of a graph."""
        entry.graph_bytes = self._graphs.last
        entry.first = self._graphs.first
        if entry.first:
            self.whole = self.whole or goes_as_a_whole(entry.outputs)
        entry.whole = self.whole

    def _reopen(self, unit: Unit, entry: InFlight, old: dict[str, Tensor] | None) -> None:
        """Give a restored batch what its forward had given it; `old` None: weights of now."""
        if self._replays:
            return
        module, weights = self._blocks.module, self._versions.now()
        if self._aliased and old is not None:
            entry.copies = old
            now = {name: p.detach().clone() for name, p in module.named_parameters()}
            entry.weights = [weights[name] for name in self._names]
            # The graph refers to the parameters' memory, and shall have seen the old weights there.
            load_weights(module, old)
            self._grow_again(unit, entry)
            load_weights(module, now)
            return
        entry.copies = self._versions.copies() if self._aliased else {}
        entry.weights = [(old or weights)[name] for name in self._names]
        if not self._recomputes:
            self._grow_again(unit, entry)

    # ----------------------------------------------------------------- what is in flight

    def _add(self, unit: Unit, entry: InFlight) -> None:
        self._open[unit.batch, unit.part] = entry
        self._bytes += entry.bytes()

    def _note(self, graphs: int, activation_bytes: int) -> None:
        """Count what is in flight, with the batch that is being worked on."""
        old = 0
        if self._versioned and (self._settings.resumable or not self._aliased):
            now = self._window.updates
            old = len({entry.version for entry in self._open.values() if entry.version != now})
        self._figures.in_flight(
            graphs, len(self._open), activation_bytes, self._versions.bytes(old)
        )
