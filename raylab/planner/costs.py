"""What a pipeline's stages and messages cost, as a prediction needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

__all__ = ["LinkCost", "MessageCost", "PipelineCosts", "StageCost", "response_factor"]

_MOST_UTILISED = 0.95


def response_factor(cores: int, utilisation: float) -> float:
    """Return how many times longer work takes that waits for one of several cores: the response
    over the service time of the queue M/M/c, by Erlang's formulas B and C.

    Args:
        cores: c.
        utilisation: of the cores, by all such work; from 0.95 on it is taken as 0.95.

    >>> response_factor(1, 0.5), round(response_factor(2, 0.5), 3)
    (2.0, 1.333)
    """
    busy = min(utilisation, _MOST_UTILISED)
    load, lost = cores * busy, 1.0
    for n in range(1, cores + 1):
        lost = load * lost / (n + load * lost)
    waits = lost / (1 - busy * (1 - lost))
    return 1 + waits / (cores * (1 - busy))


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCost:
    """One message between neighbours, in seconds.

    Args:
        latency_s: from before it is put until a receiver that waits for it has it.
        put_s: the sender's own time for it.
        take_s: the receiver's own time for it, if it is there already.
        cpu_s: processor time of putting one and taking one.
    """

    latency_s: float = 0.0
    put_s: float = 0.0
    take_s: float = 0.0
    cpu_s: float = 0.0

    def slowed(self, factor: float) -> MessageCost:
        """Return it where handling waits for a core: longer, with as much processor time."""
        return replace(
            self,
            latency_s=factor * self.latency_s,
            put_s=factor * self.put_s,
            take_s=factor * self.take_s,
        )


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

        >>> LinkCost(full=MessageCost(put_s=3.0), empty=MessageCost(put_s=1.0)).of(0.5).put_s
        2.0
        """
        full, empty = self.full, self.empty
        return MessageCost(
            latency_s=empty.latency_s + share * (full.latency_s - empty.latency_s),
            put_s=empty.put_s + share * (full.put_s - empty.put_s),
            take_s=empty.take_s + share * (full.take_s - empty.take_s),
            cpu_s=empty.cpu_s + share * (full.cpu_s - empty.cpu_s),
        )

    def slowed(self, factor: float) -> LinkCost:
        """Return it where handling waits for a core, see `MessageCost.slowed`."""
        return LinkCost(full=self.full.slowed(factor), empty=self.empty.slowed(factor))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage with one batch, in seconds.

    Args:
        forward_s: of the forward.
        backward_s: of the backward and its share of an update.
        cpu_s: processor time of both.
        node: whose cores it shares.
    """

    forward_s: float
    backward_s: float
    cpu_s: float = 0.0
    node: str = ""

    @property
    def total_s(self) -> float:
        """Forward and backward, in seconds."""
        return self.forward_s + self.backward_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCosts:
    """A whole pipeline.

    Args:
        together: of the stages, while all compute at once.
        alone: of the stages, while the others rest: it differs where they share cores.
        links: K-1, from below.
        cores: of each node.
    """

    together: Sequence[StageCost]
    alone: Sequence[StageCost]
    links: Sequence[LinkCost]
    cores: Mapping[str, int]

    @property
    def message_s(self) -> list[float]:
        """Latency of a whole batch's message over each link, in seconds."""
        return [link.full.latency_s for link in self.links]

    def at(self, busy: float) -> list[tuple[float, float]]:
        """Return (forward, backward) of each stage while `busy` stages compute at a time.

        Between one and all of them, times are interpolated.
        """
        weight = (min(max(busy, 1.0), len(self.alone)) - 1) / max(1, len(self.alone) - 1)
        return [
            (
                a.forward_s + weight * (t.forward_s - a.forward_s),
                a.backward_s + weight * (t.backward_s - a.backward_s),
            )
            for a, t in zip(self.alone, self.together, strict=True)
        ]
