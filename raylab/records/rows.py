"""Reports of K stages into one row of a table.

Units stand in the names: `_s` seconds, `_bytes`, and counts without. Columns that begin with
`stage_` are lists, one value a stage. `staleness_counts` is a histogram: entry i is the number of
gradients that were i updates old. Only with DGL there are the stages' local losses, `stage_loss`;
only where it is measured `sigma`, (6.10) of HUO; only with DNI `synthesis_mse`, the mean squared
error of the synthetic gradients of a sample's loss. Only with layer-wise optimisers `layer_names`,
`layer_rates`, gamma_k of the last update, and with CLARS `layer_variances`, M_k of 4.4.3: lists
with one entry a layer, stage after stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["RowMerger"]

Row = dict[str, Any]


class RowMerger:
    """Collect the stages' reports; a row is made when all K have reported the same moment.

    Args:
        stages: K.
    """

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._open: dict[tuple[int, int | None], dict[int, Row]] = {}

    def add(self, reports: Sequence[Row]) -> list[Row]:
        """Take reports in; return the rows that are complete now, in order of their steps."""
        for report in reports:
            self._open.setdefault((report["step"], report["epoch"]), {})[report["stage"]] = report
        complete = [key for key, by_stage in self._open.items() if len(by_stage) == self._stages]
        complete.sort(key=lambda key: (key[0], key[1] is not None))
        return [self._merge(key, self._open.pop(key)) for key in complete]

    def _merge(self, key: tuple[int, int | None], by_stage: Mapping[int, Row]) -> Row:
        stages = [by_stage[k] for k in range(self._stages)]
        last = stages[-1]
        gradients = sum(s["gradients"] for s in stages)
        trained_s = last["trained_s"]
        row: Row = {
            "epoch": None if key[1] is None else key[1] + 1,
            "step": key[0],
            "time_s": last["time_s"],
            **{
                name: last.get(name)
                for name in ("loss", "accuracy", "test_loss", "test_accuracy", "samples")
            },
            "samples_per_s": last.get("samples", 0) / trained_s if trained_s > 0 else 0.0,
            "staleness_mean": sum(s["staleness_sum"] for s in stages) / max(1, gradients),
            "staleness_max": max(s["staleness_max"] for s in stages),
            "staleness_counts": _added([s["staleness_counts"] for s in stages]),
            "updates": last["updates"],
            "learning_rate": last.get("learning_rate"),
            "blocked_s": sum(s["blocked_s"] for s in stages) / self._stages,
            "messages": sum(_over_boxes(s, "_in_messages") for s in stages),
            "bytes": sum(_over_boxes(s, "_in_bytes") for s in stages),
            "stage_trained_s": [s["trained_s"] for s in stages],
            "stage_blocked_s": [s["blocked_s"] for s in stages],
            "stage_staleness_mean": [s["staleness_sum"] / max(1, s["gradients"]) for s in stages],
            "stage_staleness_max": [s["staleness_max"] for s in stages],
            "stage_staleness_counts": [s["staleness_counts"] for s in stages],
            "stage_gradients": [s["gradients"] for s in stages],
            "stage_updates": [s["updates"] for s in stages],
            "stage_graphs_peak": [s["graphs_peak"] for s in stages],
            "stage_inputs_peak": [s["inputs_peak"] for s in stages],
            "stage_activation_bytes_peak": [s["activation_bytes_peak"] for s in stages],
            "stage_version_bytes_peak": [s["version_bytes_peak"] for s in stages],
            "stage_mailbox_bytes_peak": [s["mailbox_bytes_peak"] for s in stages],
            "stage_mailbox_peak_depth": [
                max(value for name, value in s.items() if name.endswith("_in_peak_depth"))
                for s in stages
            ],
        }
        if any("loss" in s for s in stages[:-1]):
            row["stage_loss"] = [s.get("loss") for s in stages]
        sums = [s.get("sigma_sums") for s in stages]
        if any(sums):
            row["stage_sigma"] = [_ratio([each]) for each in sums]
            row["sigma"] = _ratio(sums)
        errors = [s.get("synthesis_mse") for s in stages]
        known = [error for error in errors if error is not None]
        if known:
            row["synthesis_mse"] = sum(known) / len(known)
            row["stage_synthesis_mse"] = errors
        for name in ("layer_names", "layer_rates", "layer_variances"):
            if any(name in s for s in stages):
                row[name] = [value for s in stages for value in s.get(name, ())]
        return row


def _over_boxes(report: Row, suffix: str) -> int:
    return sum(int(value) for name, value in report.items() if name.endswith(suffix))


def _ratio(sums: Sequence[tuple[float, float] | None]) -> float | None:
    """Return the sum of the inner products over that of the squared norms."""
    known = [each for each in sums if each is not None]
    norm = sum(norm for _, norm in known)
    return sum(product for product, _ in known) / norm if norm else None


def _added(histograms: Sequence[Sequence[int]]) -> list[int]:
    return [sum(counts) for counts in itertools.zip_longest(*histograms, fillvalue=0)]
