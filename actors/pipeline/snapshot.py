"""What one stage puts into a checkpoint: its loop, its rule, and the gradients under way to it.

At the marker the stage below a link has not yet taken the gradients that the link's delay stands
for. They are copied as they come, during the next batches, so that nothing is kept in memory for a
checkpoint that is not being made; then the part is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from actors.pipeline.program import LoopState, StageProgram
from actors.units import Tensors, Unit

__all__ = ["StageSnapshot", "StageSnapshots", "gradients_of", "loop_of"]

_UNITS = ("open", "uncorrected")


class StageSnapshot:
    """A part of a checkpoint in the making.

    Args:
        program: of the stage.
        state: where its loop stands.
        content: what else is saved, by name; made of tensors nobody writes to, numbers and text.
    """

    def __init__(self, program: StageProgram, state: LoopState, content: Mapping[str, Any]) -> None:
        self.step = state.batches
        self._awaited = {(unit.batch, unit.part) for unit in state.under_way(program)}
        self._gradients: list[dict[str, Any]] = []
        self._content = {
            **content,
            "loop": {**asdict(state), **{name: _plain(getattr(state, name)) for name in _UNITS}},
        }

    @property
    def complete(self) -> bool:
        """Whether every gradient that was under way has come."""
        return not self._awaited

    def took(self, batch: int, part: int, gradients: Tensors) -> None:
        """Note a gradient that the stage has taken; others than those under way do not matter."""
        if (batch, part) in self._awaited:
            self._awaited.remove((batch, part))
            # A received tensor may be a view of a frame; it is saved before its memory goes.
            tensors = list(gradients)
            self._gradients.append({"batch": batch, "part": part, "tensors": tensors})

    def content(self) -> dict[str, Any]:
        """Return the part: nested dictionaries and lists of tensors, numbers and text."""
        return {**self._content, "gradients": self._gradients}


class StageSnapshots:
    """The parts that a stage has begun and not yet saved, the oldest first.

    Args:
        program: of the stage.
        save: takes each part when it is complete, with the number of batches behind it.
    """

    def __init__(self, program: StageProgram, save: Callable[[int, dict[str, Any]], None]) -> None:
        self._program = program
        self._save = save
        self._begun: list[StageSnapshot] = []

    def begin(
        self,
        state: LoopState,
        content: Mapping[str, Any],
        waiting: Mapping[tuple[int, int], Tensors],
    ) -> None:
        """Begin a part.

        Args:
            state: where the loop stands.
            content: see `StageSnapshot`.
            waiting: gradients that have been taken and wait for their turn, by batch and
                micro-batch.
        """
        snapshot = StageSnapshot(self._program, state, content)
        self._begun.append(snapshot)
        for (batch, part), gradients in waiting.items():
            snapshot.took(batch, part, gradients)
        self._save_complete()

    def took(self, batch: int, part: int, gradients: Tensors) -> None:
        """Note a gradient that the stage has taken."""
        for snapshot in self._begun:
            snapshot.took(batch, part, gradients)
        self._save_complete()

    def _save_complete(self) -> None:
        while self._begun and self._begun[0].complete:
            snapshot = self._begun.pop(0)
            self._save(snapshot.step, snapshot.content())


def loop_of(part: Mapping[str, Any]) -> LoopState:
    """Return where the loop of a saved part goes on."""
    loop = dict(part["loop"])
    return LoopState(**{**loop, **{name: _units(loop[name]) for name in _UNITS}})


def gradients_of(part: Mapping[str, Any]) -> dict[tuple[int, int], Tensors]:
    """Return the gradients under way of a saved part, by batch and micro-batch."""
    return {(g["batch"], g["part"]): tuple(g["tensors"]) for g in part["gradients"]}


def _plain(units: Iterable[Unit]) -> list[dict[str, Any]]:
    return [asdict(unit) for unit in units]


def _units(plain: Iterable[Mapping[str, Any]]) -> tuple[Unit, ...]:
    return tuple(Unit(**unit) for unit in plain)
