"""A course on Ray Train: its worker group, process group, checkpoints, failures and sizes."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.placement_group import placement_group, remove_placement_group

from actors.averaging.board import open_board
from actors.groups.placement import TELL_S
from actors.groups.warm import warm_actors
from actors.groups.within import Room, within
from raylab.drivers.averaging.course import Course, Row
from raylab.drivers.averaging.engine import Engine
from raylab.drivers.averaging.on_ray import train_worker
from raylab.drivers.cluster import threads_of
from raylab.drivers.niceness import tell_of_niceness
from raylab.drivers.recovery import tell_loss
from raylab.drivers.termination import TERMINATION
from raylab.errors import RaylabError, ResourceError
from raylab.records import Storage

__all__ = ["GroupPlan", "RayRun"]

_LOOK_S = 0.2
_MANNERS = {
    # Workers stay in the driver's folder, as all actors do.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A lost worker is noticed within this time.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A node that died is still counted on for some seconds: a group that finds no room tries again,
    # with as many workers as there is room for then.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
"""Of Ray Train, where the user has not said otherwise; its own are 2 s and 60 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The worker group that a run asks for.

    Args:
        least: workers, the fewest.
        most: workers, the most.
        resources: of each worker, by Ray's names.
        wait_s: how long to wait for the fewest, seconds.
        resize_s: seconds between two looks at the cluster, where there may be more or fewer.
        timeout_s: after which an average that does not come is a lost link, seconds.
        failures: losses to bear; -1: any number.
        keep: checkpoints, None: all.
    """

    least: int
    most: int
    resources: Mapping[str, float]
    wait_s: float
    resize_s: float
    timeout_s: int
    failures: int
    keep: int | None


class RayRun:
    """One run of Ray Train.

    Args:
        course: what is to be done.
        plan: with which workers.
        storage: of the checkpoints.
        on_rows: takes rows as they come, in a thread of its own; tells whether the run is to end.
        on_start: takes workers, step, tau, d and xi whenever a group has begun.
        say: takes a line for the user.
    """

    def __init__(
        self,
        course: Course,
        plan: GroupPlan,
        storage: Storage,
        *,
        on_rows: Callable[[Sequence[Row]], bool],
        on_start: Callable[[Mapping[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:
        self._course = course
        self._plan = plan
        self._storage = storage
        self._on_rows = on_rows
        self._on_start = on_start
        self._say = say
        self._groups = 0
        self._why = ""
        """A worker was lost, as another one has noticed."""
        self._mistakes: list[Exception] = []
        """Of who hears the rows."""

    def carry_out(self) -> dict[str, Any]:
        """Train to the end; return the first worker's rows, weights and numbers.

        Raises:
            ResourceError: the cluster does not have the fewest workers' resources in time.
            RaylabError: the run failed.
        """
        with self._room() as room:
            found = self._trained(room)
        if not found:
            raise RaylabError("the first worker must say what the run has come to, but it has not")
        return found

    def _trained(self, room: Room | None) -> dict[str, Any]:
        board = open_board()
        trainer = Engine(
            functools.partial(
                _train, ray.put(self._course), board, threads_of(self._plan.resources)
            ),
            scaling_config=self._scaling(),
            torch_config=TorchConfig(timeout_s=self._plan.timeout_s),
            run_config=RunConfig(
                name=self._storage.path.rpartition("/")[2],
                storage_path=self._storage.path.rpartition("/")[0],
                storage_filesystem=self._storage.filesystem,
                failure_config=FailureConfig(max_failures=self._plan.failures),
                checkpoint_config=CheckpointConfig(num_to_keep=self._plan.keep),
                # What it tells of groups and checkpoints would stand between the lines of the run.
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
            room=room,
        )
        saves = self._course.checkpoints.on
        leave = TERMINATION.watched() if saves else contextlib.nullcontext()
        with self._listening(board), leave:
            _fit(trainer, board, self._plan.failures)
        if self._mistakes:
            raise self._mistakes[0]
        found: dict[str, Any] = ray.get(board.outcome.remote())
        return found

    def _scaling(self) -> ScalingConfig:
        plan = self._plan
        own = {name: amount for name, amount in plan.resources.items() if amount}
        return ScalingConfig(
            num_workers=plan.least if plan.least == plan.most else (plan.least, plan.most),
            elastic_resize_monitor_interval_s=plan.resize_s,
            resources_per_worker=own,
            use_gpu="GPU" in own,
        )

    @contextlib.contextmanager
    def _room(self) -> Iterator[Room | None]:
        """Have room for the fewest workers: in the placement group that the run is to live in, or,
        for Ray Train to find it there again, in the cluster.
        """
        plan = self._plan
        bundles = [dict(plan.resources) for _ in range(plan.least)]
        warm = warm_actors()
        if warm is not None:
            # Ray Train places its workers itself, and does not ask others to make room.
            warm.give_way()
        if (given := within()) is not None:
            room = given.take(bundles, plan.wait_s, "worker")
            try:
                yield room
            finally:
                room.give_back()
            return
        group = placement_group(bundles)
        try:
            if plan.wait_s > TELL_S and not group.wait(TELL_S):
                self._say(f"waiting up to {plan.wait_s:g} s for room for {plan.least} workers")
            if not group.wait(plan.wait_s):
                raise ResourceError(
                    f"the cluster must have room for {plan.least} workers with "
                    f"{dict(plan.resources)} each within {plan.wait_s:g} s, but it has not: ask "
                    "for less, or start more nodes"
                )
        finally:
            remove_placement_group(group)
        yield None

    @contextlib.contextmanager
    def _listening(self, board: Any) -> Iterator[None]:
        """Read the board in a thread of its own while the block waits for the run."""
        ended = threading.Event()

        def listen() -> None:
            left = False
            while not ended.wait(_LOOK_S):
                self._read(board)
                if TERMINATION.requested and not left:
                    left = True
                    board.leave.remote()

        thread = threading.Thread(target=listen, name="raylab-board", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._read(board)

    def _read(self, board: Any) -> None:
        try:
            notes = ray.get(board.take.remote())
        except RayError:  # the session has ended
            return
        for kind, note in notes:
            if kind == "began":
                self._begun(note)
            elif kind == "lost":
                self._why = f": {note}"
            elif not self._mistakes:
                self._hear(board, note)

    def _hear(self, board: Any, rows: Sequence[Row]) -> None:
        try:
            ends = self._on_rows(rows)
        except Exception as error:
            # In a thread that nobody waits for: the run ends, and raises it then.
            self._mistakes.append(error)
            ends = True
        if ends:
            board.end.remote()

    def _begun(self, note: Mapping[str, Any]) -> None:
        self._groups += 1
        if self._groups > 1:
            where = f"step {note['step']}" if note["step"] else "the beginning"
            workers = note["workers"]
            going_on = f"going on from {where} with {workers} workers"
            tell_loss(f"a worker was lost{self._why}: {going_on}", self._say)
            self._why = ""
        tell_of_niceness([note["niceness"]], self._say)
        self._on_start(note)


def _train(course: Any, board: Any, threads: int) -> None:
    """Run in every worker."""
    found: Course = ray.get(course)
    train_worker(found, board, threads)


def _fit(trainer: TorchTrainer, board: Any, bears: int) -> None:
    """Run Ray Train.

    Raises:
        RaylabError: the run failed.
        KeyboardInterrupt: the user has interrupted it.
    """
    try:
        with _manners(), _own_handler():
            trainer.fit()
    except TrainingFailedError as error:
        failure = ray.get(board.failure.remote())
        if failure is not None:
            raise failure from error
        raise RaylabError(
            f"a run bears {bears} losses of a worker, but this was one more: raylab resume PATH "
            f"goes on from the last checkpoint: {_in_a_line(error)}"
        ) from error
    except SystemExit:  # what Ray Train makes of Ctrl-C, when it has ended the workers
        raise KeyboardInterrupt from None
    failure = ray.get(board.failure.remote())
    if failure is not None:
        raise failure


def _in_a_line(error: TrainingFailedError) -> str:
    """Return what Ray Train tells of a failure, without its traces."""
    failures = getattr(error, "worker_failures", {})
    told = [f"worker {rank}: {str(each).partition(chr(10))[0]}" for rank, each in failures.items()]
    return "; ".join(told) or str(error).partition("\n")[0]


@contextlib.contextmanager
def _manners() -> Iterator[None]:
    """Tell Ray Train how to go about it; it reads that from the environment of the driver."""
    ours = {name: value for name, value in _MANNERS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Put back the handler of Ctrl-C, which Ray Train replaces for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
