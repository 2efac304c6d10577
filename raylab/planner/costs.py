"""What a pipeline's stages and messages cost, as a prediction needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LinkCost", "MessageCost", "PipelineCosts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCost:
    """One message between neighbours, in seconds.

    Args:
        latency_s: from before it is put until a receiver that waits for it has it.
        put_s: the sender's own time for it.
        take_s: the receiver's own time for it, if it is there already.
    """

    latency_s: float = 0.0
    put_s: float = 0.0
    take_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """The messages of one link.

    Args:
        full: one with the tensors of a whole batch.
        empty: one with next to nothing: a marker, or the limit of many micro-batches.
    """

    full: MessageCost = MessageCost()
    empty: MessageCost = MessageCost()

    def of(self, share: float) -> MessageCost:
        """Return the cost of a message with `share` of a batch, in [0, 1].

        >>> LinkCost(full=MessageCost(latency_s=3.0), empty=MessageCost(latency_s=1.0)).of(0.5)
        MessageCost(latency_s=2.0, put_s=0.0, take_s=0.0)
        """
        full, empty = self.full, self.empty
        return MessageCost(
            latency_s=empty.latency_s + share * (full.latency_s - empty.latency_s),
            put_s=empty.put_s + share * (full.put_s - empty.put_s),
            take_s=empty.take_s + share * (full.take_s - empty.take_s),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCosts:
    """A whole pipeline.

    Args:
        stages: (forward, backward with update) of each stage for a whole batch, in seconds.
        links: K-1, from below.
    """

    stages: Sequence[tuple[float, float]]
    links: Sequence[LinkCost]

    @property
    def message_s(self) -> list[float]:
        """Latency of a whole batch's message over each link, in seconds."""
        return [link.full.latency_s for link in self.links]
