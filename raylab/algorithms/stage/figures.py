"""What a stage counts between two reports: loss, accuracy, staleness, what is in flight."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["StageFigures"]


class _Mean:
    """Loss over all its terms, and accuracy over all labels that can be predicted."""

    def __init__(self) -> None:
        self.samples = 0
        self.weight = 0.0
        self.loss = 0.0
        self.correct: int | None = 0
        self.counted = 0

    def add(
        self,
        loss: float,
        samples: int,
        correct: int | None,
        weight: float | None = None,
        counted: int | None = None,
    ) -> None:
        """Add a batch.

        Args:
            loss: mean over its terms; NaN if it has none, which the mean is without.
            samples: of it.
            correct: predictions; None: that is no question.
            weight: of its terms, in samples; None: that of the samples.
            counted: labels that could be predicted; None: one a sample.
        """
        weight = samples if weight is None else weight
        self.samples += samples
        self.weight += weight
        self.loss += loss * weight if weight else 0.0
        self.correct = None if self.correct is None or correct is None else self.correct + correct
        self.counted += samples if counted is None else counted

    def rows(self, prefix: str) -> dict[str, Any]:
        if not self.samples:
            return {}
        row: dict[str, Any] = {
            f"{prefix}loss": self.loss / self.weight if self.weight else math.nan,
            f"{prefix}samples": self.samples,
        }
        if self.correct is not None and self.counted:
            row[f"{prefix}accuracy"] = self.correct / self.counted
        return row

    def restore(self, state: Mapping[str, Any]) -> None:
        # Runs of versions without them had a weight of 1, and counted every sample.
        vars(self).update({"weight": state["samples"], "counted": state["samples"], **state})


class StageFigures:
    """Sums since the last report. Staleness is counted in updates, once per batch's gradient."""

    def __init__(self) -> None:
        self.train = _Mean()
        self.test = _Mean()
        self.updates = 0
        self.gradients = 0
        self.staleness_sum = 0
        self.staleness_max = 0
        self.staleness_counts: list[int] = []
        self.sigma: tuple[float, float] | None = None
        self.corrections = 0
        self.synthesis_sum = 0.0
        self.graphs_peak = 0
        self.inputs_peak = 0
        self.activation_bytes_peak = 0
        self.version_bytes_peak = 0

    def applied(self, staleness: Sequence[int]) -> None:
        """Count one update, made of gradients with these stalenesses."""
        self.updates += 1
        self.gradients += len(staleness)
        self.staleness_sum += sum(staleness)
        self.staleness_max = max([self.staleness_max, *staleness])
        for each in staleness:
            self.staleness_counts += [0] * (each + 1 - len(self.staleness_counts))
            self.staleness_counts[each] += 1

    def synthesised(self, error: float) -> None:
        """Count the mean squared error of one synthetic gradient."""
        self.corrections += 1
        self.synthesis_sum += error

    def directed(self, product: float, norm: float) -> None:
        """Add the two sides of (6.10) for one gradient."""
        before = self.sigma or (0.0, 0.0)
        self.sigma = (before[0] + product, before[1] + norm)

    def in_flight(
        self, graphs: int, inputs: int, activation_bytes: int = 0, version_bytes: int = 0
    ) -> None:
        """Note how many autograd graphs and stored inputs are alive, and the bytes of it all."""
        self.graphs_peak = max(self.graphs_peak, graphs)
        self.inputs_peak = max(self.inputs_peak, inputs)
        self.activation_bytes_peak = max(self.activation_bytes_peak, activation_bytes)
        self.version_bytes_peak = max(self.version_bytes_peak, version_bytes)

    def take(self) -> dict[str, Any]:
        """Return the figures by column name, and begin anew."""
        row = {
            **self.train.rows(""),
            **self.test.rows("test_"),
            **(
                {"synthesis_mse": self.synthesis_sum / self.corrections} if self.corrections else {}
            ),
            **({"sigma_sums": self.sigma} if self.sigma else {}),
            "updates": self.updates,
            "gradients": self.gradients,
            "staleness_sum": self.staleness_sum,
            "staleness_max": self.staleness_max,
            "staleness_counts": self.staleness_counts,
            "graphs_peak": self.graphs_peak,
            "inputs_peak": self.inputs_peak,
            "activation_bytes_peak": self.activation_bytes_peak,
            "version_bytes_peak": self.version_bytes_peak,
        }
        self._begin()
        return row

    def state(self) -> dict[str, Any]:
        """Return all sums, to go on from with `restore`."""
        return {
            name: dict(vars(value)) if isinstance(value, _Mean) else copy.copy(value)
            for name, value in vars(self).items()
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on with the sums whose `state` this is; None: begin anew."""
        self._begin()
        for name, value in (state or {}).items():
            if isinstance(getattr(self, name), _Mean):
                getattr(self, name).restore(value)
            else:
                setattr(self, name, copy.copy(value))

    def _begin(self) -> None:
        vars(self).update(vars(StageFigures()))
