"""Parts of checkpoints that actors have written, until a checkpoint has all of them.

    actors   write their parts ──▶ <run>/checkpoints/step-…/NAME.pt
    driver   has heard of all: rows so far ──▶ metrics.parquet, then the manifest

A manifest that is there stands for parts and rows that are there, so that the newest of them is
where a run goes on, whatever was being written when it ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raylab.errors import ConfigError
from raylab.records import CheckpointStore, Part, RunFolder, SavedCheckpoint

__all__ = ["Commits"]


class Commits:
    """The checkpoints of one run.

    Args:
        store: of the run.
        folder: of the run.
        about: settings that mean another run if they change, by name; JSON.
    """

    def __init__(self, store: CheckpointStore, folder: RunFolder, about: Mapping[str, Any]) -> None:
        self.store = store
        self.latest: dict[str, tuple[int, Part]] = {}
        """Each actor's newest part with its step, whether or not that checkpoint is whole."""
        self.committed = -1
        """Step of the newest whole one since `expect`."""
        self._written: dict[int, dict[str, Part]] = defaultdict(dict)
        self._folder = folder
        self._fixed = dict(about)
        self._names: frozenset[str] = frozenset()
        self._about: dict[str, Any] = {}

    def newest(self) -> SavedCheckpoint | None:
        """Return where to go on, None: at the beginning."""
        return self.store.newest()

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
            ConfigError: it is of a run with other settings.
        """
        saved = self.newest() if step is None else self.store.open(step)
        if saved is None:
            return
        saved.verify()
        for name, value in self._fixed.items():
            if saved.about.get(name) != value:
                raise ConfigError(
                    f"a run goes on with the settings that it began with, but {name} was "
                    f"{saved.about.get(name)!r} and is {value!r}: leave it as it was, or begin a "
                    "new run from the weights in checkpoints/"
                )
        self.store.drop_after(saved.step)

    def expect(self, names: Collection[str], about: Mapping[str, Any]) -> None:
        """Begin anew: a checkpoint is whole with these parts, and the run says this of it, too."""
        self._names = frozenset(names)
        self._about = {**self._fixed, **about}
        self.committed = -1
        self.latest.clear()
        self._written.clear()

    def took(
        self,
        written: Sequence[tuple[int, Any]],
        rows: Sequence[Mapping[str, Any]],
        timeline: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Take note of parts; a checkpoint that has all of them is committed, with the rows so far.

        Args:
            written: steps and parts.
            rows: of the run so far.
            timeline: of the run so far.
        """
        for step, part in written:
            self._written[step][part.name] = part
            self.latest[part.name] = (step, part)
        for step in sorted(self._written):
            parts = self._written[step]
            if not self._names <= parts.keys():
                continue
            behind = [row for row in rows if row["step"] <= step]
            if behind:
                self._folder.write_metrics(behind)
            self._folder.write_timeline(timeline)
            self.store.commit(step, list(parts.values()), self._about)
            self.committed = max(self.committed, step)
            # What came before it and is not whole will never be.
            for old in [each for each in self._written if each <= step]:
                del self._written[old]
