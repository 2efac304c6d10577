"""What distinguishes the pipeline methods: a few numbers of one stage program.

Stage k of K (counted from 0) runs F(n); B(n - D_k); an update when its window of M batches is
full, with D_k the sum of the link delays above it. HUO alg. 9 and 11 and ADL alg. 1 are drawn tick
by tick; driven by data alone the same operations give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Feedback", "PipelineMethod"]

Feedback = Literal["error", "target", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineMethod:
    """One method, as settings of the delayed-gradient stage program.

    Args:
        name: what users call it.
        title: its name in the literature.
        source: paper and algorithm or equation.
        link_delay: units by which a gradient comes back late over one link; None: at the end of
            the window (every micro-batch's forward comes first).
        feedback: what comes back from above: the "error" gradient that a stage back-propagates,
            a "target" for the one that it makes itself (DNI), or "none" (DGL).
        replay: re-run the forward with the current weights before back-propagating (FR).
        micro_batches: whether a batch is cut into micro-batches.
        flush: empty the pipeline before every update, so that no gradient is stale.
    """

    name: str
    title: str
    source: str
    link_delay: int | None
    replay: bool = False
    micro_batches: bool = False
    flush: bool = False
    feedback: Feedback = "error"

    @property
    def delayed(self) -> bool:
        """Whether what comes back comes late, and `delay` may be chosen."""
        return not self.flush and self.link_delay != 0

    @property
    def stale(self) -> bool:
        """Whether gradients are applied late."""
        return self.delayed and self.feedback == "error"

    def stage_delays(self, link_delays: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return D_k of every stage, the sum of the delays of the links above it.

        0 where a stage does not wait for what comes back.

        Args:
            link_delays: delay of the link between stages k and k+1, for k = 0..K-2.
        """
        if self.feedback != "error":
            return (0,) * (len(link_delays) + 1)
        delays: list[int | None] = [None if self.flush and self.link_delay is None else 0]
        for link in reversed(link_delays):
            above = delays[0]
            delays.insert(0, None if link is None or above is None else above + link)
        return tuple(delays)
