"""The squared norms of per-sample gradients, from what a layer saw and what came back to it.

A layer's gradient of sample i is a sum over positions t (of a sequence, an image, or just one),

    G_i = sum_t  left_it (x) right_it          left: (B, groups, T, p), right: (B, groups, T, q)

with the error gradients of the outputs on the left and what they were multiplied with on the
right. Its norm needs no G_i (Goodfellow 2015, arXiv 1510.01799; Rochette et al. 2019,
arXiv 1912.06015): |G_i|^2 = sum_st <left_is, left_it> <right_is, right_it>, from two Gram matrices
of T x T. Where the layer is smaller than they are, G_i itself is cheaper; each layer takes what is.

A parameter that is used several times has the sum of its uses' gradients, cross terms and all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "DirectUse",
    "FactorUse",
    "LookupUse",
    "Use",
    "chunked",
    "gram_is_cheaper",
    "squared_norms",
    "squares_of",
]

_CHUNK = 1 << 22
"""Numbers that an intermediate result may have at a time: 16 MiB."""


class Use(ABC):
    """One use of a parameter by B samples."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Return B."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Return the numbers of one sample's gradient."""

    @abstractmethod
    def explicit(self, rows: slice) -> Tensor:
        """Return the gradients of some samples, (b, size)."""

    def squares(self) -> Tensor:
        """Return the squared norm of every sample's gradient, (B,)."""
        return chunked(self.samples, self.size, lambda rows: squared_norms(self.explicit(rows)))

    def joined(self, others: Sequence[Use]) -> Use | None:  # noqa: ARG002 - none joins by itself
        """Return this use and others of the same parameter as one, None if they do not fit."""
        return None


def squares_of(uses: Sequence[Use]) -> Tensor:
    """Return the squared norms of the samples' gradients of a parameter, (B,).

    Args:
        uses: all uses of the parameter, by the same samples.
    """
    first, *others = uses
    one = first.joined(others) if others else first
    if one is not None:
        return one.squares()

    def squares(rows: slice) -> Tensor:
        total = first.explicit(rows)
        for use in others:
            total = total + use.explicit(rows)
        return squared_norms(total)

    return chunked(first.samples, first.size, squares)


@dataclass(frozen=True, slots=True)
class DirectUse(Use):
    """Gradients that are small as they are: of biases, and of a normalisation's weights."""

    gradients: Tensor

    @property
    def samples(self) -> int:
        """Return B."""
        return self.gradients.shape[0]

    @property
    def size(self) -> int:
        """Return the numbers of one sample's gradient."""
        return self.gradients[0].numel()

    def explicit(self, rows: slice) -> Tensor:
        """Return the gradients of some samples, (b, size)."""
        return self.gradients[rows].flatten(1)


@dataclass(frozen=True, slots=True)
class FactorUse(Use):
    """Outer products over positions: of linear layers, and of convolutions as such.

    Args:
        left: (B, groups, T, p).
        right: (B, groups, T, q).
    """

    left: Tensor
    right: Tensor

    @property
    def samples(self) -> int:
        """Return B."""
        return self.left.shape[0]

    @property
    def size(self) -> int:
        """Return the numbers of one sample's gradient."""
        return self.left.shape[1] * self.left.shape[3] * self.right.shape[3]

    def explicit(self, rows: slice) -> Tensor:
        """Return the gradients of some samples, (b, size)."""
        return (self.left[rows].mT @ self.right[rows]).flatten(1)

    def squares(self) -> Tensor:
        """Return the squared norm of every sample's gradient, (B,)."""
        groups, positions, p = self.left.shape[1:]
        if positions == 1:
            norms: Tensor = torch.linalg.vector_norm(self.left, dim=-1)
            norms = norms * torch.linalg.vector_norm(self.right, dim=-1)
            return norms.square().sum((1, 2))
        if gram_is_cheaper(positions, p, self.right.shape[3]):
            return chunked(self.samples, groups * positions**2, self._by_gram)
        return chunked(self.samples, self.size, lambda rows: squared_norms(self.explicit(rows)))

    def joined(self, others: Sequence[Use]) -> Use | None:
        """Return all uses as one with all their positions, None if they do not fit."""
        uses = [self, *(use for use in others if isinstance(use, FactorUse))]
        same = all(use.left.shape[1::2] == self.left.shape[1::2] for use in uses)
        if len(uses) <= len(others) or not same:
            return None
        return FactorUse(
            torch.cat([use.left for use in uses], 2), torch.cat([use.right for use in uses], 2)
        )

    def _by_gram(self, rows: slice) -> Tensor:
        left, right = self.left[rows], self.right[rows]
        return ((left @ left.mT) * (right @ right.mT)).sum((1, 2, 3))


@dataclass(frozen=True, slots=True)
class LookupUse(Use):
    """Rows of a table that were looked up: factors whose left ones are unit vectors.

    Args:
        index: (B, T), of the rows.
        gradient: (B, T, q).
        rows_of_table: V.
    """

    index: Tensor
    gradient: Tensor
    rows_of_table: int

    @property
    def samples(self) -> int:
        """Return B."""
        return self.index.shape[0]

    @property
    def size(self) -> int:
        """Return the numbers of one sample's gradient."""
        return self.rows_of_table * self.gradient.shape[2]

    def explicit(self, rows: slice) -> Tensor:
        """Return the gradients of some samples, (b, size)."""
        index, gradient = self.index[rows], self.gradient[rows]
        total = gradient.new_zeros(len(index), self.rows_of_table, gradient.shape[2])
        at = index.unsqueeze(2).expand_as(gradient)
        return total.scatter_add_(1, at, gradient).flatten(1)

    def squares(self) -> Tensor:
        """Return the squared norm of every sample's gradient, (B,)."""
        return chunked(self.samples, self.index.shape[1] ** 2, self._by_gram)

    def joined(self, others: Sequence[Use]) -> Use | None:
        """Return all uses as one with all their positions, None if they do not fit."""
        uses = [self, *(use for use in others if isinstance(use, LookupUse))]
        if len(uses) <= len(others):
            return None
        return LookupUse(
            torch.cat([use.index for use in uses], 1),
            torch.cat([use.gradient for use in uses], 1),
            self.rows_of_table,
        )

    def _by_gram(self, rows: slice) -> Tensor:
        index, gradient = self.index[rows], self.gradient[rows]
        same = index.unsqueeze(1) == index.unsqueeze(2)
        return (same * (gradient @ gradient.mT)).sum((1, 2))


def gram_is_cheaper(positions: int, p: int, q: int) -> bool:
    """Return whether two Gram matrices of T x T cost less than a gradient of p x q.

    T^2 (p + q) products against T p q, and twice that, as they are the smaller matrices.
    """
    return 2 * positions * (p + q) < p * q


def squared_norms(gradients: Tensor) -> Tensor:
    """Return the squared norms of gradients, (b, size) -> (b,)."""
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
    return norms.square()


def chunked(
    samples: int,
    per_sample: int,
    squares: Callable[[slice], Tensor],
    most: int | None = None,
) -> Tensor:
    """Return `squares` of all samples, computed for as many at a time as memory shall hold.

    Args:
        samples: B.
        per_sample: numbers of one sample.
        squares: of some samples, (b,).
        most: numbers at a time; default: 16 MiB of float32.
    """
    at_a_time = (_CHUNK if most is None else most) // max(1, per_sample)
    parts = [squares(rows) for rows in _rows(samples, max(1, at_a_time))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(samples: int, at_a_time: int) -> Iterator[slice]:
    # At least one, so that an empty batch has an empty result.
    for begin in range(0, max(1, samples), at_a_time):
        yield slice(begin, min(samples, begin + at_a_time))
