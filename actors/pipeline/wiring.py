"""Which boxes K stages need, and how much each may hold.

    features  k   -> k+1     gradients  k+1 -> k     labels  0 -> K-1, and to all that need them

A box that is too small stalls the pipeline, one that is too small by more could lock it: with
link delay d, stage k+1 may send d gradients ahead of stage k, one more while stage k waits for a
credit, hence d + 1. Labels wait for as long as their features travel. Where a stage does not wait
for gradients, its lead over the stage above is bounded by the features box alone; the labels of
stage k then belong to what is in the boxes below it, to one unit in the hands of each stage below,
and to the one that it has just taken: so many fit, and labels never hold features up.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.pipeline.program import StageProgram
from actors.wires.link import Link

__all__ = ["links"]


def links(programs: Sequence[StageProgram], window_units: int = 1) -> list[Link]:
    """Return the links of a pipeline.

    Args:
        programs: of all stages, in order.
        window_units: units per window, where a delay is unbounded (GPipe).
    """
    delays = [window_units if p.delay is None else p.delay for p in programs]
    found = []
    below = 0
    for k, program in enumerate(programs):
        if program.last or program.labelled:
            room = max(delays) + 2 if program.feedback == "error" else below + 1
            found.append(Link(box="labels", source=0, target=k, capacity=room, inline=True))
        if program.last:
            break
        late = program.link_delay if program.corrected else delays[k] - delays[k + 1]
        capacity = max(1, late) + 1
        found.append(Link(box="features", source=k, target=k + 1, capacity=capacity))
        if program.feedback != "none":
            found.append(Link(box="gradients", source=k + 1, target=k, capacity=capacity))
        below += capacity + 1
    return found
