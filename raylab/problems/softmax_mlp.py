"""A network of one hidden layer with softmax: dim × hidden × classes, e.g. 784×100×10.

    φ_i(w) = -log softmax(V·relu(U·x_i + p) + q)[y_i],     w = (U, p, V, q), one vector, float64

It is not convex. Its l2 weight is the λ of the whole objective (1e-3 and 1e-4 in HUO 2.5), biases
included, as everywhere here. Curvature is estimated at the initial weights; smoothness is twice
the largest of a few single losses there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from raylab.data.augment import Stream, keyed_generator
from raylab.data.rows import RowBlock
from raylab.errors import DataError
from raylab.problems.objective import Rows, Shard, Vector
from raylab.problems.spectrum import power_iteration
from raylab.problems.vector_duals import VectorDuals

__all__ = ["SoftmaxMlp"]

_CHUNK = 1024  # rows at a time: bounds what a pass over the shard keeps in memory
_SAMPLE = 256  # rows of which curvature is estimated
_SINGLE = 8  # rows of which smoothness is


class SoftmaxMlp(VectorDuals):
    """The network's loss on the dense rows of a shard; satisfies `DualObjective`.

    Args:
        block: dense rows, labels 0 to classes - 1, or ±1 of two classes.
        shard: which rows they are.
        strength: λ.
        hidden: units of the hidden layer.
        classes: units of the output.
        seed: keys the initial weights: normal, of variance 2/inputs below and 1/inputs above;
            biases 0.

    Raises:
        DataError: the rows are not dense, or a label is no number of a class.
    """

    convex = False

    def __init__(
        self,
        block: RowBlock,
        shard: Shard,
        *,
        strength: float,
        hidden: int,
        classes: int,
        seed: int,
    ) -> None:
        self._matrix = block.matrix()
        signs = classes == 2 and block.labels.min() < 0.0
        labels = (block.labels > 0.0) if signs else block.labels
        if not np.isin(labels, np.arange(classes)).all():
            raise DataError(
                f"labels of softmax_mlp must be 0 to {classes - 1}, as there are {classes} "
                f"different ones, but they go from {labels.min():g} to {labels.max():g}: save "
                "numpy.unique(y, return_inverse=True)[1]"
            )
        self._labels = labels.astype(np.int64)
        self.shard = shard
        self.strength = strength
        self._shapes = ((hidden, block.dim), (hidden,), (classes, hidden), (classes,))
        self.dim = sum(int(np.prod(shape)) for shape in self._shapes)
        self._seed = seed
        rows = np.arange(shard.rows)[:: max(1, shard.rows // _SINGLE)][:_SINGLE]
        self.smoothness = 2.0 * max(self._estimate(row[None]) for row in rows)

    def initial(self) -> Vector:
        """Return the initial weights, the same on every worker."""
        generator = keyed_generator(Stream.SAMPLES, self._seed, 4)
        (hidden, inputs), _, (classes, _), _ = self._shapes
        below = generator.standard_normal((hidden, inputs)) * np.sqrt(2.0 / inputs)
        above = generator.standard_normal((classes, hidden)) * np.sqrt(1.0 / hidden)
        return np.concatenate([below.ravel(), np.zeros(hidden), above.ravel(), np.zeros(classes)])

    def losses(self, w: Vector) -> float:
        """Return Σ φ_i(w) over the shard."""
        total = 0.0
        for rows in self._chunks():
            _, _, scores = self._forward(w, rows)
            chosen = scores[np.arange(len(rows)), self._labels[rows]]
            total += float((logsumexp(scores, axis=1) - chosen).sum())
        return total

    def gradients(self, w: Vector, rows: Rows | None = None) -> Vector:
        """Return Σ ∇φ_i(w) over `rows`, or over the shard."""
        total = np.zeros(self.dim)
        parts = self._split(total)
        for chunk in self._chunks(rows):
            x, features, upper, lower = self._backward(w, chunk)
            parts[0][...] += lower.T @ x
            parts[1][...] += lower.sum(axis=0)
            parts[2][...] += upper.T @ features
            parts[3][...] += upper.sum(axis=0)
        return total

    def figures(self, w: Vector) -> dict[str, float]:
        """Return `correct`: of how many samples the label has the highest score."""
        correct = 0
        for rows in self._chunks():
            scores = self._forward(w, rows)[2]
            correct += int(np.count_nonzero(scores.argmax(axis=1) == self._labels[rows]))
        return {"correct": float(correct)}

    def curvature(self) -> float:
        """Return an estimate at the initial weights, of some rows, in proportion to all."""
        rows = np.arange(min(self.shard.rows, _SAMPLE))
        return self._estimate(rows) * self.shard.rows / len(rows)

    def residuals(self, w: Vector, duals: Vector, rows: Rows) -> Vector:
        """Return ∇φ_i(w) + α_i for `rows`, shape=(len(rows), dim)."""
        x, features, upper, lower = self._backward(w, rows)
        count = len(rows)
        return (
            np.concatenate(
                [
                    (lower[:, :, None] * x[:, None, :]).reshape(count, -1),
                    lower,
                    (upper[:, :, None] * features[:, None, :]).reshape(count, -1),
                    upper,
                ],
                axis=1,
            )
            + duals[rows]
        )

    def _split(self, w: Vector) -> list[Vector]:
        """Return U, p, V, q as views of w."""
        parts, start = [], 0
        for shape in self._shapes:
            size = int(np.prod(shape))
            parts.append(w[start : start + size].reshape(shape))
            start += size
        return parts

    def _chunks(self, rows: Rows | None = None) -> list[Rows]:
        rows = np.arange(self.shard.rows) if rows is None else rows
        return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]

    def _forward(self, w: Vector, rows: Rows) -> tuple[Vector, Vector, Vector]:
        """Return inputs, hidden features and scores, each shape=(len(rows), units)."""
        below, below_bias, above, above_bias = self._split(w)
        x = self._matrix[rows].astype(np.float64)
        features = np.maximum(x @ below.T + below_bias, 0.0)
        return x, features, features @ above.T + above_bias

    def _backward(self, w: Vector, rows: Rows) -> tuple[Vector, Vector, Vector, Vector]:
        """Return inputs, features, and the gradients of the scores and of what relu takes."""
        x, features, scores = self._forward(w, rows)
        upper: NDArray[np.float64] = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
        upper[np.arange(len(rows)), self._labels[rows]] -= 1.0
        lower = (upper @ self._split(w)[2]) * (features > 0.0)
        return x, features, upper, lower

    def _estimate(self, rows: Rows) -> float:
        return power_iteration(lambda w: self.gradients(w, rows), self.initial())
