"""The checkpoints of a run, from the driver's side: who writes, when one is whole, where to go on.

    stage 0 … K-1   write their parts ──▶ <run>/checkpoints/step-…/stage-k.pt
    driver          has heard of all K: rows so far ──▶ metrics.parquet, then the manifest

A manifest that is there stands for parts and rows that are there, so that the newest of them is
where a run goes on, whatever was being written when it ended.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from actors.program import LoopState
from actors.source import CheckpointPlan
from actors.stage_actor import Keeping
from raylab.algorithms.stage_state import merged_state
from raylab.drivers.settings import PipelineSettings
from raylab.errors import ConfigError
from raylab.records import CheckpointStore, RunFolder, SavedCheckpoint

__all__ = ["RunCheckpoints", "checkpoint_plan"]

_FIXED = ("method", "accumulate", "micro_batches", "weight_version", "seed")
"""Settings that mean another run."""


class RunCheckpoints:
    """What one run has saved.

    Args:
        store: of the run.
        folder: of the run.
        settings: of the run.
    """

    def __init__(
        self, store: CheckpointStore, folder: RunFolder, settings: PipelineSettings
    ) -> None:
        self._store = store
        self._folder = folder
        self._settings = settings
        self._about: dict[str, Any] = {"kind": "pipeline", **_fixed(settings)}
        self._stages = 0
        self._parts: dict[int, list[Any]] = defaultdict(list)

    def newest(self) -> SavedCheckpoint | None:
        """Return where to go on, None: at the beginning."""
        return self._store.newest()

    def whence(self) -> str:
        """Return in words where to go on."""
        saved = self.newest()
        return "the beginning" if saved is None else f"the checkpoint of step {saved.step}"

    def rewind(self, step: int | None) -> None:
        """Check the checkpoint to go on from, and drop those after it.

        Args:
            step: of the checkpoint; None: the newest, if there is one.

        Raises:
            CheckpointError: it is damaged or missing.
            ConfigError: it is of a run with other settings; K and the delays may differ.
        """
        saved = self._store.newest() if step is None else self._store.open(step)
        if saved is None:
            return
        saved.verify()
        now = _fixed(self._settings)
        for name, value in now.items():
            if saved.about.get(name) != value:
                raise ConfigError(
                    f"a run goes on with the settings that it began with, but {name} was "
                    f"{saved.about.get(name)!r} and is {value!r}: leave it as it was, or begin a "
                    "new run from the weights in checkpoints/"
                )
        self._store.drop_after(saved.step)

    def begin(
        self, cuts: Sequence[int], link_delays: Sequence[int | None], saved: SavedCheckpoint | None
    ) -> list[Keeping]:
        """Return how every stage keeps its parts, and from which it goes on.

        A stage of the same network cut in the same way takes its own part, with all that was in
        flight. Cut in another way, it takes its share of the whole model, and the pipeline, empty
        at first, fills anew: what was in flight belongs to no stage any more.

        Args:
            cuts: first blocks of stages 1..K-1.
            link_delays: of the links between them.
            saved: where to go on.
        """
        same = {"cuts": list(cuts), "link_delays": list(link_delays)}
        self._about |= same
        self._stages = len(cuts) + 1
        self._parts.clear()
        keepings = []
        for k in range(self._stages):
            resume = None
            if saved is not None and {key: saved.about.get(key) for key in same} == same:
                resume = functools.partial(saved.part, f"stage-{k}")
            elif saved is not None:
                resume = functools.partial(_share_of_the_model, saved, k, k == len(cuts))
            keepings.append(Keeping(name=f"stage-{k}", write=self._store.write_part, resume=resume))
        return keepings

    def took(
        self,
        written: Sequence[tuple[int, Any]],
        rows: Sequence[Mapping[str, Any]],
        timeline: Sequence[Mapping[str, Any]],
    ) -> None:
        """Take note of parts; a checkpoint that has all of them is committed, with the rows so far.

        Args:
            written: steps and parts.
            rows: of the run so far.
            timeline: of the run so far.
        """
        for step, part in written:
            self._parts[step].append(part)
        for step in sorted(self._parts):
            if len(self._parts[step]) == self._stages:
                behind = [row for row in rows if row["step"] <= step]
                if behind:
                    self._folder.write_metrics(behind)
                self._folder.write_timeline(timeline)
                self._store.commit(step, self._parts.pop(step), self._about)


def checkpoint_plan(every: int, minutes: float, settings: PipelineSettings) -> CheckpointPlan:
    """Return when checkpoints are due.

    Args:
        every: batches between two; 0: the time decides alone.
        minutes: between two; 0: the count decides alone.
        settings: of the run.

    Raises:
        ConfigError: one is negative.
    """
    for name, amount in (("checkpoint_every", every), ("checkpoint_minutes", minutes)):
        if not amount >= 0:
            raise ConfigError(f"{name} >= 0 must hold, but got {amount}")
    return CheckpointPlan(
        every_batches=every,
        every_s=60 * minutes,
        window=settings.accumulate if settings.rule.flush else 1,
    )


def _fixed(settings: PipelineSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _FIXED}


def _share_of_the_model(saved: SavedCheckpoint, stage: int, last: bool) -> dict[str, Any]:
    """Return the part of a stage that the saved pipeline had not."""
    parts = [saved.part(name) for name in saved.names]
    loop = parts[-1]["loop"]
    whole = merged_state([part["rule"] for part in parts])
    if not last:
        whole["figures"] = None
    state = LoopState(
        batches=loop["batches"],
        applied=loop["applied"],
        window=loop["window"],
        in_window=loop["in_window"],
    )
    return {
        "stage": stage,
        "rule": whole,
        "loop": {**asdict(state), "open": [], "uncorrected": []},
        "gradients": [],
        "figures": {**parts[-1]["figures"], "boxes": {}},
        **({"source": parts[0]["source"]} if stage == 0 else {}),
    }
