"""The errors of the mechanism. Each takes one message, so that it survives pickling by Ray.

MechanismError
├── BatchError        the user's iterable gave something that is not a batch
├── StageError        a stage's computation failed; the message tells where
├── MailboxError      a message out of order or without credit
│   ├── CorruptMessageError   a message did not arrive as it was sent
│   └── LinkError             a link between two actors was cut
├── ActorLostError    the process or node of an actor of the group died
└── PlacementError    the cluster did not give the resources in the stated time
"""

from __future__ import annotations

import traceback
from typing import TypeVar

__all__ = [
    "ActorLostError",
    "BatchError",
    "CorruptMessageError",
    "LinkError",
    "MailboxError",
    "MechanismError",
    "PlacementError",
    "StageError",
    "in_words",
    "noted",
]

E = TypeVar("E", bound=Exception)


class MechanismError(Exception):
    """Something below the algorithms failed."""


class BatchError(MechanismError):
    """The iterable of batches gave something that is not a pair of tensors, or nothing at all."""


class StageError(MechanismError):
    """The computation of a stage failed."""


class MailboxError(MechanismError):
    """A message came out of order, without credit, or could not be read."""


class CorruptMessageError(MailboxError):
    """A message did not arrive as it was sent: no fault of the link, so no reason to try again."""


class LinkError(MailboxError):
    """A link between two actors was cut: the run may start again from a checkpoint."""


class ActorLostError(MechanismError):
    """The process or node of an actor died: the run may start again from a checkpoint."""


class PlacementError(MechanismError):
    """The cluster did not give the resources in the stated time."""


def in_words(error: BaseException) -> str:
    """Return type and text of what a user's code has raised, whatever its text does."""
    try:
        text = str(error)
    except Exception as another:
        text = f"(its text raises {type(another).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def noted(made: E, error: BaseException) -> E:
    """Return an error that stands for a user's one, with its traceback as a note.

    The user's own may take other arguments than a message, or hold what cannot be pickled: it would
    not come back from an actor. A note does, and is shown below the error.
    """
    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    made.__notes__ = [f"where it was raised:\n{told}"]
    return made
