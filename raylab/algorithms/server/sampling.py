"""Which samples a message is made of: uniform, by importance, adaptive (HUO 3.3.2).

H distinct samples of a shard of N. With probabilities p_i that differ, sample i is in a message
with probability π_i, about H p_i, and its residual counts H/(N π_i) times, for w and α_i alike:

    w <- w - η Σ H/(N π_i) κ_i        α_i <- α_i - ηλn H/(N π_i) κ_i

so that a message is on average what a uniform one is ([90]: η_i = η/(N p_i)) and relation (3.3)
holds to the last bit. Half of p is uniform, so that no factor is above 2, which the step must leave
room for, and no sample is forgotten:

    importance     p_i = 1/(2N) + L_i/(2 Σ L_j)          L_i the smoothness of φ_i
    adaptive       p_i = 1/(2N) + |κ_i|/(2 Σ |κ_j|)      |κ_i| as it was last seen

Distinct samples with given π_i are drawn systematically: the shard in random order, every sample as
long as its π_i, and a comb of spacing 1 laid over it.
"""

from __future__ import annotations

import numpy as np

from raylab.algorithms.server.parts import generator
from raylab.algorithms.server.settings import ServerSettings
from raylab.problems.objective import DualObjective, Rows, Vector

__all__ = ["Passes", "Sampler"]

_SAMPLES, _ORDER, _COMB = 0, 1, 2
_BLOCK = 8192
_REFRESH_PASSES = 4
"""Passes after which the residuals of all samples are computed anew, a quarter more work."""


class Passes:
    """The rows of one worker's messages: passes of its shard, each in a random order.

    A message takes the next `count` rows of its pass, distinct ones; what is left at the end of a
    pass is less than that and is passed over. Every row is as likely as any other. Differs from the
    papers, which draw each message from the whole shard: after as many samples as the shard has,
    1/e of them would not have been drawn, and their duals be old.

    Args:
        seed: of the run.
        worker: whose shard it is.
        rows: that the shard has.
        count: of a message; if it is more than there are, a message is several passes.
    """

    def __init__(self, seed: int, worker: int, rows: int, count: int) -> None:
        self._seed = seed
        self._worker = worker
        self._rows = rows
        self._count = count
        self._order: tuple[int, Rows] = (-1, np.zeros(0, dtype=np.int64))

    def take(self, number: int) -> Rows:
        """Return the rows of the task of this number, in their order."""
        if self._count >= self._rows:
            passes = -(-self._count // self._rows)
            orders = [self._pass(number * passes + i) for i in range(passes)]
            return np.concatenate(orders)[: self._count]
        which, place = divmod(number, self._rows // self._count)
        return self._pass(which)[place * self._count : (place + 1) * self._count]

    def _pass(self, which: int) -> Rows:
        if self._order[0] != which:
            draws = generator(self._seed, self._worker, which, _SAMPLES)
            self._order = (which, draws.permutation(self._rows))
        return self._order[1]


class Sampler:
    """The draws of one worker of Dis-dfSDCA.

    Args:
        settings: of the run.
        objective: of the worker's samples.
        worker: its number.
    """

    def __init__(self, settings: ServerSettings, objective: DualObjective, worker: int) -> None:
        self._settings = settings
        self._objective = objective
        self._worker = worker
        self._rows = objective.shard.rows
        self._count = min(settings.message_samples, self._rows)
        self._passes = Passes(settings.seed, worker, self._rows, self._count)
        self._messages = 0
        self._sizes: Vector | None = None
        self._inclusion: Vector | None = None
        if settings.sampling == "importance":
            self._inclusion = _inclusion(objective.row_smoothness(), self._count)

    def draw(self, number: int, w: Vector, duals: Vector) -> tuple[Rows, Vector | None, int]:
        """Return rows, the factors of their residuals, and how many samples choosing cost.

        Args:
            number: of the task.
            w: that the message begins at, (dim,).
            duals: of the shard.
        """
        if self._settings.sampling == "uniform" or self._count == self._rows:
            return np.sort(self._passes.take(number)), None, 0
        looked_at = 0
        if self._settings.sampling == "adaptive":
            looked_at = self._adapt(w, duals)
        if self._inclusion is None:
            raise RuntimeError("non-uniform sampling has no probabilities")
        seed, messages_a_pass = self._settings.seed, -(-self._rows // self._count)
        order = generator(seed, self._worker, number // messages_a_pass, _ORDER).permutation(
            self._rows
        )
        start = generator(seed, self._worker, number, _COMB).random()
        ends = np.cumsum(self._inclusion[order])
        teeth = (start + np.arange(self._count)) * (ends[-1] / self._count)
        rows = np.unique(order[np.searchsorted(ends, teeth, side="right").clip(max=self._rows - 1)])
        factors = self._count / (self._rows * self._inclusion[rows])
        return rows.astype(np.int64, copy=False), factors, looked_at

    def seen(self, rows: Rows, kappas: Vector) -> None:
        """Remember how large the residuals of rows are, once their message is applied."""
        if self._sizes is not None:
            self._sizes[rows] = _lengths(kappas)

    def _adapt(self, w: Vector, duals: Vector) -> int:
        """Renew the probabilities now and then; return how many samples that cost."""
        messages_a_pass = -(-self._rows // self._count)
        looked_at = 0
        if self._sizes is None or self._messages % (_REFRESH_PASSES * messages_a_pass) == 0:
            # In blocks: the residuals of all rows may be as large as the duals.
            blocks = np.split(
                np.arange(self._rows, dtype=np.int64), range(_BLOCK, self._rows, _BLOCK)
            )
            residuals = self._objective.residuals
            self._sizes = np.concatenate([_lengths(residuals(w, duals, rows)) for rows in blocks])
            self._inclusion = None
            looked_at = self._rows
        if self._inclusion is None or self._messages % -(-messages_a_pass // 4) == 0:
            self._inclusion = _inclusion(self._sizes, self._count)
        self._messages += 1
        return looked_at


def _lengths(kappas: Vector) -> Vector:
    """Return |κ_i|; of linear models up to |x_i|, which is of no matter to the order of them."""
    lengths: Vector = np.abs(kappas) if kappas.ndim == 1 else np.linalg.norm(kappas, axis=1)
    return lengths


def _inclusion(sizes: Vector, count: int) -> Vector:
    """Return π_i, which add up to `count`, none above 1, none below count/(2N)."""
    rows = len(sizes)
    total = float(sizes.sum())
    p = np.full(rows, 1 / rows)
    if total > 0 and np.isfinite(total):
        p = 0.5 * p + 0.5 * sizes / total
    inclusion = count * p
    certain = inclusion >= 1
    while True:
        free = ~certain
        left = count - int(certain.sum())
        inclusion = np.where(certain, 1.0, p * (left / p[free].sum() if free.any() else 0.0))
        if not (inclusion > 1).any():
            return inclusion
        certain |= inclusion > 1
