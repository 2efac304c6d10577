"""The checkpoints of a parameter server's run: who writes, who goes on from what, with how many.

    part server      w as the sum of what the workers have kept, and where the loop stands
    part server-s    the range of w of another server, where w is shared by several
    part worker-k    the duals of its shard, nothing where a method has none

With other workers the duals are cut anew: those of row i go to whoever has row i now. So is w, with
other servers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from actors.groups.part_writer import Keeping
from actors.server.company import Return
from raylab.algorithms.server.shards import Cut
from raylab.drivers.commits import Commits
from raylab.errors import CheckpointError
from raylab.problems import Shard, shards
from raylab.records import CheckpointStore, LateRows, RunFolder, SavedCheckpoint

__all__ = ["ServerCheckpoints"]

_ROWS = "duals"
"""What a worker keeps for every row."""


class ServerCheckpoints(Commits):
    """What one run has saved; the number of workers may change where it goes on.

    Args:
        store: of the run.
        folder: of the run.
        about: what makes it this run and no other.
        samples: n, whose duals are divided anew among other workers; None: what a worker keeps is
            its own, and a worker that was not there begins without.
    """

    def __init__(
        self,
        store: CheckpointStore,
        folder: RunFolder,
        about: Mapping[str, Any],
        samples: int | None,
    ) -> None:
        super().__init__(store, folder, {"kind": "parameter_server", **about})
        self._samples = samples
        self._saved: SavedCheckpoint | None = None
        self._resumes: list[Callable[[], dict[str, Any]] | None] = []
        """What each worker's process begins with, until it has kept something."""

    def begin(
        self,
        workers: int,
        servers: int = 1,
        since: Callable[[Mapping[str, Any] | None], Mapping[str, Any]] | None = None,
    ) -> tuple[SavedCheckpoint | None, bool, list[Keeping], list[Keeping]]:
        """Return where to go on, whether the workers are others than those that were kept, and how
        the servers and the workers keep their parts.

        Args:
            workers: K.
            servers: S.
            since: told what the checkpoint says of its run, None at the beginning; returns what the
                next ones say besides.
        """
        saved = self._saved = self.newest()
        begun = {} if since is None else since(None if saved is None else saved.about)
        names = [_server(s) for s in range(servers)]
        self.expect(
            [*names, *(f"worker-{k}" for k in range(workers))],
            {"workers": workers, "servers": servers, **begun},
        )
        before = workers if saved is None else int(saved.about["workers"])
        recut = before != workers
        self._resumes = [None] * workers
        for k in range(workers):
            if saved is not None and recut and self._samples is not None:
                self._resumes[k] = functools.partial(
                    _share, saved, self._samples, before, workers, k
                )
            elif saved is not None and k < before:
                self._resumes[k] = functools.partial(saved.part, f"worker-{k}")
        keepings = [self._keeping(f"worker-{k}", each) for k, each in enumerate(self._resumes)]
        servers_keep = []
        for s, name in enumerate(names):
            resume = None
            if saved is not None and int(saved.about.get("servers", 1)) == servers:
                resume = functools.partial(saved.part, name)
            elif saved is not None:
                resume = functools.partial(_range, saved, servers, s)
            servers_keep.append(self._keeping(name, resume))
        return saved, recut, servers_keep, keepings

    def back(self, worker: int) -> Return:
        """Return how the process in the place of a lost worker begins: with its newest part, or,
        before there is one, with what the lost process began with.
        """
        name = f"worker-{worker}"
        if name in self.latest:
            step, part = self.latest[name]
            # It may be of a checkpoint that never became whole.
            kept = SavedCheckpoint(self.store.folder, step, {}, {name: part})
            return Return(step, self._keeping(name, functools.partial(kept.part, name)))
        resume = self._resumes[worker]
        begun = None if self._saved is None or resume is None else self._saved.step
        return Return(begun, self._keeping(name, resume))

    def _keeping(self, name: str, resume: Any) -> Keeping:
        return Keeping(name=name, write=self.store.write_part, resume=resume)


def _server(shard: int) -> str:
    """Return the name of a server's parts."""
    return f"server-{shard}" if shard else "server"


def _range(saved: SavedCheckpoint, servers: int, shard: int) -> dict[str, Any]:
    """Return the part of a server that had another range of w, or was not there."""
    parts = [saved.part(_server(s)) for s in range(int(saved.about.get("servers", 1)))]
    ranges = [part["rule"] for part in parts]
    dim = sum(len(each["w"]) for each in ranges)
    lo, hi = Cut(dim=dim, servers=servers).ranges[shard]
    rule = _joined(ranges, lo, hi)
    if not shard:
        return {**parts[0], "rule": rule}
    return {"step": saved.step, "rule": rule, "figures": {"bytes": 0}}


def _joined(found: Sequence[Any], lo: int, hi: int) -> Any:
    """Return a range of what servers have kept: their tensors are slices of vectors of w's size,
    their numbers alike, or the first's to know.
    """
    first = found[0]
    if isinstance(first, dict):
        return {key: _joined([each.get(key) for each in found], lo, hi) for key in first}
    return torch.cat(list(found))[lo:hi].clone() if isinstance(first, torch.Tensor) else first


def _share(
    saved: SavedCheckpoint, samples: int, before: int, workers: int, worker: int
) -> dict[str, Any]:
    """Return the part of a worker that was not there: what others have kept for its rows.

    Of large parts no more is read into memory than these rows.
    """
    mine = shards(samples, workers)[worker]
    found: dict[str, torch.Tensor] = {}
    for k, shard in enumerate(shards(samples, before)):
        lo, hi = max(mine.lo, shard.lo), min(mine.hi, shard.hi)
        if lo >= hi:
            continue
        first, at = lo - shard.lo, slice(lo - mine.lo, hi - mine.lo)

        def read(
            place: Sequence[str],
            late: LateRows,
            shard: Shard = shard,
            first: int = first,
            at: slice = at,
        ) -> None:
            _check_rows(place[-1], late.shape[0], shard)
            empty = torch.from_numpy(np.empty((mine.rows, *late.shape[1:]), late.dtype))
            late.read_into(found.setdefault(place[-1], empty)[at].numpy(), first)

        for key, kept in saved.part(f"worker-{k}", read)["rule"].items():
            if kept is None:  # it has been read
                continue
            _check_rows(key, len(kept), shard)
            whole = found.setdefault(key, kept.new_empty((mine.rows, *kept.shape[1:])))
            whole[at] = kept[first : first + hi - lo]
    return {"worker": worker, "step": saved.step, "rule": found}


def _check_rows(key: str, rows: int, shard: Shard) -> None:
    if key != _ROWS or rows != shard.rows:
        raise CheckpointError(
            f"a worker's part must hold one of its {_ROWS} for each of {shard.rows} rows, for "
            f"others to share, but it holds {key} of {rows}: go on with as many workers"
        )
