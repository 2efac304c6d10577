"""The checkpoints of a pipeline's run, from the driver's side: who writes, and where to go on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from actors.checkpoint_plan import CheckpointPlan
from actors.groups.part_writer import Keeping
from actors.pipeline.program import LoopState
from raylab.algorithms.stage.state import merged_state
from raylab.drivers.commits import Commits
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.errors import ConfigError
from raylab.records import CheckpointStore, RunFolder, SavedCheckpoint

__all__ = ["RunCheckpoints", "checkpoint_plan"]

_FIXED = ("method", "accumulate", "micro_batches", "weight_version", "seed")
"""Settings that mean another run."""


class RunCheckpoints(Commits):
    """What one run has saved; K and the delays may change where it goes on.

    Args:
        store: of the run.
        folder: of the run.
        settings: of the run.
    """

    def __init__(
        self, store: CheckpointStore, folder: RunFolder, settings: PipelineSettings
    ) -> None:
        fixed = {name: getattr(settings, name) for name in _FIXED}
        super().__init__(store, folder, {"kind": "pipeline", **fixed})

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
        stages = range(len(cuts) + 1)
        self.expect([f"stage-{k}" for k in stages], same)
        keepings = []
        for k in stages:
            resume = None
            if saved is not None and {key: saved.about.get(key) for key in same} == same:
                resume = functools.partial(saved.part, f"stage-{k}")
            elif saved is not None:
                resume = functools.partial(_share_of_the_model, saved, k, k == len(cuts))
            keepings.append(Keeping(name=f"stage-{k}", write=self.store.write_part, resume=resume))
        return keepings


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


def _share_of_the_model(saved: SavedCheckpoint, stage: int, last: bool) -> dict[str, Any]:
    """Return the part of a stage that the saved pipeline had not."""
    # By number: a checkpoint names its parts in the order in which they have come.
    parts = [saved.part(f"stage-{k}") for k in range(len(saved.names))]
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
