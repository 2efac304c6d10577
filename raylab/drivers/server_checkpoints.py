"""The checkpoints of a parameter server's run: who writes, who goes on from what, with how many.

    part server      w as the sum of what the workers have kept, and where the loop stands
    part worker-k    the duals of its shard, nothing where a method has none

With other workers the duals are cut anew: those of row i go to whoever has row i now.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from actors.part_writer import Keeping
from actors.server_group import Return
from raylab.drivers.commits import Commits
from raylab.errors import CheckpointError, ConfigError
from raylab.problems import Shard, shards
from raylab.records import CheckpointStore, RunFolder, SavedCheckpoint

__all__ = ["ServerCheckpoints", "check_same_server_run"]

_ROWS = "duals"
"""What a worker keeps for every row."""


class ServerCheckpoints:
    """What one run has saved.

    Args:
        store: of the run.
        folder: of the run.
        about: what makes it this run and no other.
        samples: n.
    """

    def __init__(
        self, store: CheckpointStore, folder: RunFolder, about: Mapping[str, Any], samples: int
    ) -> None:
        self._store = store
        self._commits = Commits(store, folder)
        self._about = {"kind": "parameter_server", **about}
        self._samples = samples
        self._saved: SavedCheckpoint | None = None
        self._recut = False

    @property
    def newest(self) -> int:
        """Step of the newest checkpoint that is whole, -1: none since the run began."""
        return self._commits.newest

    def where(self) -> str:
        """Say where a run would go on."""
        saved = self._store.newest()
        return "the beginning" if saved is None else f"the checkpoint of step {saved.step}"

    def begin(self, workers: int) -> tuple[SavedCheckpoint | None, bool, Keeping, list[Keeping]]:
        """Return where to go on, whether the workers are others than those that were kept, and how
        the server and the workers keep their parts.
        """
        saved = self._saved = self._store.newest()
        names = ["server", *(f"worker-{k}" for k in range(workers))]
        self._commits.expect(names, {**self._about, "workers": workers})
        before = workers if saved is None else int(saved.about["workers"])
        self._recut = before != workers
        keepings = []
        for k in range(workers):
            resume = None
            if saved is not None and self._recut:
                resume = functools.partial(_share, saved, self._samples, before, workers, k)
            elif saved is not None:
                resume = functools.partial(saved.part, f"worker-{k}")
            keepings.append(self._keeping(f"worker-{k}", resume))
        resume_server = None if saved is None else functools.partial(saved.part, "server")
        return saved, self._recut, self._keeping("server", resume_server), keepings

    def back(self, worker: int) -> Return:
        """Return how the process in the place of a lost worker begins: with its newest part."""
        name = f"worker-{worker}"
        if name in self._commits.latest:
            step, part = self._commits.latest[name]
            # It may be of a checkpoint that never became whole.
            kept = SavedCheckpoint(self._store.folder, step, {}, {name: part})
            return Return(step, self._keeping(name, functools.partial(kept.part, name)))
        if self._saved is not None and not self._recut:
            resume = functools.partial(self._saved.part, name)
            return Return(self._saved.step, self._keeping(name, resume))
        return Return(None, self._keeping(name, None))

    def took(self, written: Sequence[tuple[int, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
        """Take note of parts and of the run so far, see `Commits.took`."""
        self._commits.took(written, rows)

    def _keeping(self, name: str, resume: Any) -> Keeping:
        return Keeping(name=name, write=self._store.write_part, resume=resume)


def check_same_server_run(saved: SavedCheckpoint, about: Mapping[str, Any]) -> None:
    """Check that a run goes on with what `saved` began; the number of workers may differ.

    Raises:
        CheckpointError: it is not of a parameter server.
        ConfigError: a setting differs, which would be another run.
    """
    if saved.about.get("kind") != "parameter_server":
        raise CheckpointError(
            f"{saved.checkpoints} must hold checkpoints of a parameter server, but they are of a "
            f"{saved.about.get('kind')}"
        )
    for name, value in about.items():
        if saved.about.get(name) != value:
            raise ConfigError(
                f"a run goes on with the settings that it began with, but {name} was "
                f"{saved.about.get(name)!r} and is {value!r}: leave it as it was, or begin a new "
                "run"
            )


def _share(
    saved: SavedCheckpoint, samples: int, before: int, workers: int, worker: int
) -> dict[str, Any]:
    """Return the part of a worker that was not there: what others have kept for its rows."""
    mine = shards(samples, workers)[worker]
    pieces: dict[str, list[torch.Tensor]] = {}
    for k, shard in enumerate(shards(samples, before)):
        lo, hi = max(mine.lo, shard.lo), min(mine.hi, shard.hi)
        if lo < hi:
            rule = saved.part(f"worker-{k}")["rule"]
            _check_rows(rule, shard)
            for key, kept in rule.items():
                pieces.setdefault(key, []).append(kept[lo - shard.lo : hi - shard.lo])
    rule = {key: torch.cat(found) for key, found in pieces.items()}
    return {"worker": worker, "step": saved.step, "rule": rule}


def _check_rows(rule: Mapping[str, Any], shard: Shard) -> None:
    for key, kept in rule.items():
        if key != _ROWS or len(kept) != shard.rows:
            raise CheckpointError(
                f"a worker's part must hold one of its {_ROWS} for each of {shard.rows} rows, for "
                f"others to share, but it holds {key} of {len(kept)}: go on with as many workers"
            )
