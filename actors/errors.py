"""The errors of the mechanism. Each takes one message, so that it survives pickling by Ray.

MechanismError
├── BatchError        the user's iterable gave something that is not a batch
├── StageError        a stage's computation failed; the message tells where
├── MailboxError      a message out of order, without credit, or malformed
└── PlacementError    the cluster did not give the resources in the stated time
"""

from __future__ import annotations

__all__ = ["BatchError", "MailboxError", "MechanismError", "PlacementError", "StageError"]


class MechanismError(Exception):
    """Something below the algorithms failed."""


class BatchError(MechanismError):
    """The iterable of batches gave something that is not a pair of tensors, or nothing at all."""


class StageError(MechanismError):
    """The computation of a stage failed."""


class MailboxError(MechanismError):
    """A message came out of order, without credit, or could not be read."""


class PlacementError(MechanismError):
    """The cluster did not give the resources in the stated time."""
