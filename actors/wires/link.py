"""One directed connection between two actors of a group, and what carries its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actors.errors import MechanismError
from actors.wires.carrier import CarrierKind

__all__ = ["CarrierChoice", "Link", "WireKind", "carrier_of"]

CarrierChoice = Literal["auto"] | CarrierKind
WireKind = Literal["zmq", "ray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One directed connection.

    Args:
        box: what it carries.
        source: member that sends.
        target: member that receives.
        capacity: messages that may be under way.
        inline: whether its tensors come from the host's memory and stay in the messages, whatever
            carries those of other links.
    """

    box: str
    source: int
    target: int
    capacity: int
    inline: bool = False

    @property
    def name(self) -> str:
        """What the link is called in errors and metrics."""
        return f"{self.box} {self.source}->{self.target}"


def carrier_of(
    link: Link, source: tuple[str, str], target: tuple[str, str], asked: CarrierChoice
) -> CarrierKind:
    """Return what carries the tensors of a link.

    Args:
        link: between two members.
        source: node and GPU of the sender; "": no GPU.
        target: node and GPU of the receiver.
        asked: for all links; "auto": ipc within a card, torch.distributed between cards, else
            inline.

    Raises:
        MechanismError: what is asked for cannot be between these two.
    """
    if link.inline or link.source == link.target:
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
