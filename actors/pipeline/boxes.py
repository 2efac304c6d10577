"""The boxes of one stage: which of them a message comes from, and which it goes to."""

from __future__ import annotations

from dataclasses import dataclass

from actors.pipeline.prefetch import Prefetcher
from actors.pipeline.program import (
    Backward,
    Box,
    Compare,
    Correct,
    Instruction,
    PassToken,
    Report,
    Update,
)
from actors.pipeline.source import Source
from actors.wires.mailbox import FeatureBox, Outbox

__all__ = ["Boxes"]


@dataclass(slots=True, kw_only=True)
class Boxes:
    """The boxes of one stage. Stage 0 has nothing below it, the last stage nothing above."""

    features_in: FeatureBox
    labels_in: FeatureBox | None = None
    gradients_in: FeatureBox | None = None
    features_out: Outbox | None = None
    gradients_out: Outbox | None = None

    def named(self) -> dict[str, FeatureBox | Outbox]:
        """Return the boxes that are there."""
        every: dict[str, FeatureBox | Outbox | None] = {
            "features_in": self.features_in,
            "labels_in": self.labels_in,
            "gradients_in": self.gradients_in,
            "features_out": self.features_out,
            "gradients_out": self.gradients_out,
        }
        return {name: box for name, box in every.items() if box is not None}

    def inbox(self, name: Box) -> FeatureBox | None:
        """Return the box that the loop calls so."""
        if name == "features":
            return self.features_in
        return self.labels_in if name == "labels" else self.gradients_in

    def outbox(self, instruction: Instruction) -> Outbox | None:
        """Return the box that an instruction puts its message into, None if it has none."""
        if isinstance(instruction, (Backward, Compare)):
            return self.gradients_out
        if isinstance(instruction, PassToken) and instruction.towards == "below":
            return self.gradients_out
        if isinstance(instruction, Report) and instruction.epoch is None:
            return None
        if isinstance(instruction, (Correct, Update)):
            return None
        return self.features_out

    def source(self) -> Source | None:
        """Return what reads the batches, at stage 0."""
        box = self.features_in
        if isinstance(box, Prefetcher):
            box = box.box
        return box if isinstance(box, Source) else None

    def close(self) -> None:
        """Close every box."""
        for box in self.named().values():
            box.close()
