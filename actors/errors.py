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

__all__ = [
    "ActorLostError",
    "BatchError",
    "CorruptMessageError",
    "LinkError",
    "MailboxError",
    "MechanismError",
    "PlacementError",
    "StageError",
]


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
