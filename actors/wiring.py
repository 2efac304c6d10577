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
from dataclasses import dataclass
from typing import Literal

from actors.carrier import CarrierKind
from actors.errors import MechanismError
from actors.program import Box, StageProgram

__all__ = ["CarrierChoice", "Link", "carrier_of", "links"]

CarrierChoice = Literal["auto"] | CarrierKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One directed connection.

    Args:
        box: what it carries.
        source: stage that sends.
        target: stage that receives.
        capacity: messages that may be under way.
    """

    box: Box
    source: int
    target: int
    capacity: int

    @property
    def name(self) -> str:
        """What the link is called in errors and metrics."""
        return f"{self.box} {self.source}->{self.target}"


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
            found.append(Link(box="labels", source=0, target=k, capacity=room))
        if program.last:
            break
        late = program.link_delay if program.corrected else delays[k] - delays[k + 1]
        capacity = max(1, late) + 1
        found.append(Link(box="features", source=k, target=k + 1, capacity=capacity))
        if program.feedback != "none":
            found.append(Link(box="gradients", source=k + 1, target=k, capacity=capacity))
        below += capacity + 1
    return found


def carrier_of(
    link: Link, source: tuple[str, str], target: tuple[str, str], asked: CarrierChoice
) -> CarrierKind:
    """Return what carries the tensors of a link.

    Labels come from the host's memory and stay inline.

    Args:
        link: between two stages.
        source: node and GPU of the sender; "": no GPU.
        target: node and GPU of the receiver.
        asked: for all links; "auto": ipc within a card, torch.distributed between cards, else
            inline.

    Raises:
        MechanismError: what is asked for cannot be between these two.
    """
    if link.box == "labels" or link.source == link.target:
        return "inline"
    gpus = bool(source[1]) and bool(target[1])
    one_card = gpus and source == target
    if asked == "auto":
        return "ipc" if one_card else "distributed" if gpus else "inline"
    if asked == "ipc" and not one_card:
        raise MechanismError(
            "carrier=ipc shares the memory of one GPU, but the stages of "
            f"{link.name} do not compute on the same one: choose auto, distributed or inline"
        )
    if asked == "distributed" and one_card:
        raise MechanismError(
            "carrier=distributed is NCCL between GPUs, which wants one each, but the stages of "
            f"{link.name} share a card: choose auto, ipc or inline"
        )
    if asked == "distributed" and bool(source[1]) is not bool(target[1]):
        raise MechanismError(
            f"carrier=distributed needs a GPU at both ends of {link.name} or at none: choose auto "
            "or inline"
        )
    return asked
