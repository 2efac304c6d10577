"""What server and workers share: phases, parts of certificates, sparse messages, draws.

Inside the rules vectors are float64 arrays; at their border they are tensors on the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylab.problems.objective import Objective, Rows, Vector

__all__ = [
    "AskedPhase",
    "Part",
    "Phase",
    "Task",
    "Tensors",
    "add_message",
    "as_message",
    "as_tensor",
    "as_vector",
    "dense",
    "generator",
    "losses_part",
]

Tensors = tuple[Tensor | None, ...]
_INDEX_BYTES, _VALUE_BYTES = 4, 8
_SHORT = 2048  # coordinates: finding those that are zero takes longer than sending them


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What the server asks for, see `actors.server.protocols.Phase`.

    Args:
        number: counted from 0.
        kind: of computation.
        gather: whether it is made of synchronous rounds.
        messages: applied messages, or rounds, after which it ends; None: never.
        pieces: of a message.
    """

    number: int
    kind: str
    gather: bool = False
    messages: int | None = None
    pieces: int = 1


class AskedPhase(Protocol):
    """A phase as a worker is told of it, see `actors.server.protocols.Phase`."""

    @property
    def kind(self) -> str:
        """Return which of the worker's computations."""
        ...


class Task(Protocol):
    """A piece of work, see `actors.server.protocols.Task`."""

    @property
    def number(self) -> int:
        """Return the number that draws are keyed by."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One worker's part of a certificate.

    Args:
        values: sums over its samples: losses, conjugates, samples, correct.
        tensors: gradient, and of methods with duals dual_sum, each (dim,).
    """

    values: Mapping[str, float]
    tensors: Mapping[str, Tensor]


def losses_part(objective: Objective, w: Vector) -> Part:
    """Return losses and gradient at w of a worker's samples, which every method certifies."""
    with np.errstate(over="ignore", invalid="ignore"):
        return Part(
            values={
                "losses": objective.losses(w),
                "samples": float(objective.shard.rows),
                **objective.figures(w),
            },
            tensors={"gradient": as_tensor(objective.gradients(w))},
        )


def as_vector(tensor: Tensor | None) -> Vector:
    """Return the array on a tensor's memory."""
    if tensor is None:
        raise ValueError("a message of the parameter server has no gaps")
    return cast("Vector", tensor.numpy())


def as_tensor(vector: Vector) -> Tensor:
    """Return the tensor on an array's memory."""
    return torch.from_numpy(vector)


def dense(vector: Vector | tuple[Rows, Vector], dim: int) -> Vector:
    """Return a vector (dim,) that may be given by its coordinates and their values."""
    if not isinstance(vector, tuple):
        return vector
    indices, values = vector
    whole = np.zeros(dim)
    whole[indices] = values
    return whole


def as_message(vector: Vector | tuple[Rows, Vector], dim: int) -> Tensors:
    """Return a vector as it travels: (values,), or (indices, values) where that is smaller.

    Args:
        vector: (dim,), or its coordinates that may differ from zero and their values.
        dim: of the vector.
    """
    if isinstance(vector, tuple):
        indices, values = vector
        if not _sparse_is_smaller(len(indices), dim):
            return (as_tensor(dense(vector, dim)),)
    else:
        if dim < _SHORT or not _sparse_is_smaller(int(np.count_nonzero(vector)), dim):
            return (as_tensor(np.ascontiguousarray(vector)),)
        indices = np.flatnonzero(vector)
        values = vector[indices]
    return (torch.from_numpy(indices.astype(np.int32)), as_tensor(np.ascontiguousarray(values)))


def add_message(message: Tensors, factor: float, *targets: Vector) -> None:
    """Add `factor` times what `as_message` made to vectors."""
    values = factor * as_vector(message[-1])
    if len(message) == 1:
        for target in targets:
            target += values
        return
    # Converted once, as numpy takes longer to do it one by one.
    indices = as_vector(message[0]).astype(np.intp)
    for target in targets:
        # The coordinates of a message are distinct, so nothing is lost here.
        target[indices] += values


def generator(seed: int, worker: int, number: int, use: int) -> np.random.Generator:
    """Return the draws of one task of one worker, the same whenever it is asked for.

    Args:
        seed: of the run.
        worker: whose draws they are.
        number: of the task.
        use: what they are for, so that two uses in one task differ.
    """
    key: NDArray[np.uint64] = np.array(
        [seed % (1 << 64), (worker % (1 << 24)) << 40 | (number % (1 << 36)) << 4 | use % 16],
        dtype=np.uint64,
    )
    return np.random.Generator(np.random.Philox(key=key))


def _sparse_is_smaller(count: int, dim: int) -> bool:
    return count * (_INDEX_BYTES + _VALUE_BYTES) < dim * _VALUE_BYTES
