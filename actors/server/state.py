"""What a parameter server knows of its run: what it has behind it, and what it has open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.server.certification import Certification
from actors.server.changes import Trail
from actors.server.roll import Roll
from actors.server.saving import Saving
from actors.server.staleness import StalenessCounts
from actors.units import Tensors

__all__ = ["ServerState"]


@dataclass(slots=True, kw_only=True)
class ServerState:
    """The books of one server, which all parts of its loop read and write.

    Args:
        certification: of the run, whose first certificate has not been asked for.
    """

    certification: Certification
    roll: Roll = field(default_factory=Roll)
    saving: Saving = field(default_factory=Saving)
    staleness: StalenessCounts = field(default_factory=StalenessCounts)
    trail: Trail = field(default_factory=Trail)
    """Of what the answers' vector is changed by."""
    version: int = 0
    """t, updates so far."""
    in_phase: int = 0
    """Of them, in the phase of now."""
    samples: int = 0
    messages: int = 0
    era: int = 0
    """How often the run has gone back to an earlier certificate."""
    refused: int = 0
    repeats: int = 0
    between: bool = False
    """Whether the run goes on from between two certificates, so that its first is an extra one."""
    paused: bool = False
    ended_by: str = ""
    """Why the run ends; empty while it goes on."""
    final: Tensors | None = None
    """The answer that the run ends with, once every worker has been told that it is over."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One a certificate."""

    @property
    def going(self) -> bool:
        """Whether tasks are given out."""
        return not self.ended_by and not self.paused

    def add_row(self, figures: Mapping[str, float], report: Mapping[str, Any]) -> None:
        """Write down a certificate's figures, and those of the rule since the last row."""
        self.rows.append(
            {
                "step": self.version,
                "messages": self.messages,
                "samples_seen": self.samples,
                **figures,
                **self.staleness.taken(),
                "refused": self.refused,
                **report,
            }
        )

    def save(self) -> dict[str, Any]:
        """Return where the run stands, for the server's part of a checkpoint."""
        return {
            "version": self.version,
            "samples": self.samples,
            "messages": self.messages,
            "in_phase": self.in_phase,
            "next_certificate": self.certification.due_samples,
            "numbers": self.roll.numbers(),
            "certifying": self.certification.open,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` returned, before any worker has joined."""
        self.version = saved["version"]
        self.samples = saved["samples"]
        self.messages = saved["messages"]
        self.in_phase = saved["in_phase"]
        self.certification.due_samples = saved["next_certificate"]
        # Older checkpoints do not say; any certificate could end a run that went on from them.
        self.between = not saved.get("certifying", True)
        self.roll.restore(saved["numbers"])
