"""`AveragingTrainer`: replicas of one network that average their weights without waiting."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ray.train import RunConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from actors.checkpoint_plan import CheckpointPlan
from actors.groups.within import within
from raylab.algorithms.stage.settings import ScheduleFactory
from raylab.config import AveragingConfig
from raylab.drivers.arguments import (
    check_arguments,
    check_resources,
    optimizer_argument,
    schedule_argument,
    schedule_over,
)
from raylab.drivers.averaging.check import check_fits
from raylab.drivers.averaging.course import Course
from raylab.drivers.averaging.fit import AveragingFit
from raylab.drivers.averaging.ray_run import GroupPlan
from raylab.drivers.averaging.reading import reads_own
from raylab.drivers.averaging.settings import (
    AveragingSettings,
    MaybeAuto,
    Precision,
    at_least,
    fitting_notes,
    workers_of,
)
from raylab.drivers.batches import batches_of, check_states, fresh
from raylab.drivers.cluster import connect, patience_s, stage_resources
from raylab.drivers.listener import OnRow, RowListener
from raylab.drivers.notes import say_notes
from raylab.drivers.optimizer_check import untrained, untrained_note
from raylab.drivers.result import Result
from raylab.drivers.run_place import RunPlace
from raylab.drivers.schedule_check import check_schedule
from raylab.drivers.travelling import check_batches_travel, check_travels
from raylab.drivers.user_model import own_model
from raylab.errors import ConfigError, ModelError
from raylab.optimizers import Schedule
from raylab.report import Progress

__all__ = ["AveragingTrainer"]


class AveragingTrainer:
    """Train replicas of one network on W workers of Ray Train.

    >>> import torch
    >>> from torch import nn
    >>> from raylab import AveragingTrainer
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> trainer = AveragingTrainer(model, nn.CrossEntropyLoss(), method="dasgd", workers=2)
    >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(10)]
    >>> result = trainer.fit(batches, epochs=3)                          # doctest: +SKIP
    >>> result.model(torch.randn(1, 4)), result.metrics["loss"]          # doctest: +SKIP

    Args:
        model: any module that is called with x of a batch. The model itself is left as it is.
        loss_fn: (outputs, labels) -> mean loss over the samples of a batch, one number. Workers
            weigh the same, however many samples a batch has.
        method: minibatch_sgd, local_sgd or dasgd; see `raylab.algorithms.averaging`.
        workers: W; or the fewest and the most, e.g. (1, 4): as many as the cluster has room for,
            more as soon as it has, fewer when it has lost some.
        tau: local steps between two averages; None: the method's own, 4; "auto": see `delay`.
        delay: d, local steps by which an average is merged late, 0 <= d < tau; None: the method's
            own, 1 for dasgd; "auto": a step and an average are timed on the workers before the run,
            and the smallest delay that hides the average is taken, with tau = d + 1 if that is
            "auto", too.
        xi: weight of a worker's own weights where an average is merged; None: the method's own,
            0.25 for dasgd.
        optimizer: from parameters to a torch optimiser, whose state stays with the worker; or a
            name such as "adam", with the rate that it has on the command line; default: SGD with
            rate 0.05 and momentum 0.9.
        schedule: `raylab.optimizers.Schedule` over epochs, or a callable from an optimiser to a
            torch scheduler, stepped once a local step; one that takes a second argument is told the
            number of a worker's steps, as OneCycleLR wants it; or "cosine" or "polynomial", over
            the epochs of `fit`; default: a constant rate.
        average_dtype: of what is sent: "float32", as it is; or "bfloat16", half of the bytes.
        average_top_k: share of the entries that are sent, the largest ones; None: all. What is not
            sent is not lost, see `raylab.algorithms.averaging.averages`.
        clip_norm: largest norm of the gradient that a worker applies, over the parameters that its
            optimiser holds.
        clip_value: largest magnitude of a gradient's element.
        precision: "float32" computes in the dtype of the weights, "bfloat16" under autocast.
        seed: of everything that is drawn inside the network, and by batches while they are made.
        checkpoint_every: local steps between two checkpoints; 0: the time decides alone.
        checkpoint_minutes: minutes between two checkpoints; 0: the count decides alone, and with
            both 0 there are none. They are made where no average is under way, at most d steps
            later, and change no number.
        tensorboard: write the rows' numbers as TensorBoard's scalars, too, as they come.
        resources_per_worker: by Ray's names, e.g. {"CPU": 2, "GPU": 1}; with a GPU the worker
            computes on it, and averages go by NCCL instead of gloo. Default: one CPU, or a share of
            them where Ray is started for the run on a machine with fewer cores than workers.
        wait_s: how long to wait for the resources of the fewest workers, in seconds. Default: 60
            where Ray is started for the run, 1800 on a cluster, where nodes may have to come and
            others to end.
        resize_s: seconds between two looks at whether there is room for more workers.
        timeout_s: after which an average that does not come counts as a lost link, in seconds.
        run_config: Ray Train's; `name`, `storage_path`, `storage_filesystem`,
            `checkpoint_config.num_to_keep` and `failure_config.max_failures` are as for
            `raylab.PipelineTrainer`.
        config: written to config.yaml with what was resolved; default: these arguments.

    Raises:
        ConfigError: an argument is unknown or out of range.
        ModelError: the model is none.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        loss_fn: Callable[..., Tensor],
        *,
        method: str = "dasgd",
        workers: int | Sequence[int] = 2,
        tau: MaybeAuto = None,
        delay: MaybeAuto = None,
        xi: float | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | str | None = None,
        schedule: Schedule | ScheduleFactory | str | None = None,
        average_dtype: Precision = "float32",
        average_top_k: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        precision: Precision = "float32",
        seed: int = 0,
        checkpoint_every: int = 0,
        checkpoint_minutes: float = 1.0,
        tensorboard: bool = False,
        resources_per_worker: Mapping[str, float] | None = None,
        wait_s: float | None = None,
        resize_s: float = 60.0,
        timeout_s: int = 600,
        run_config: RunConfig | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        least, most = workers_of(workers)
        self.settings = AveragingSettings(
            method=method,
            least=least,
            most=most,
            tau=tau,
            delay=delay,
            xi=xi,
            average_dtype=average_dtype,
            average_top_k=average_top_k,
            clip_norm=clip_norm,
            clip_value=clip_value,
            precision=precision,
            seed=seed,
        )
        if isinstance(model, (list, tuple)) and all(isinstance(b, nn.Module) for b in model):
            model = nn.Sequential(*model)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"model must be a module or a list of blocks, but got {type(model).__name__}"
            )
        if not callable(loss_fn):
            raise ConfigError(f"loss_fn must be callable, but got {type(loss_fn).__name__}")
        check_arguments(
            AveragingConfig,
            seed=seed,
            wait_s=wait_s,
            resize_s=resize_s,
            timeout_s=timeout_s,
            xi=xi,
            average_top_k=average_top_k,
            clip_norm=clip_norm,
            clip_value=clip_value,
            checkpoint_every=checkpoint_every,
            checkpoint_minutes=checkpoint_minutes,
            tensorboard=tensorboard,
        )
        check_resources("resources_per_worker", resources_per_worker)
        self._model = model
        self._loss_fn = loss_fn
        self._optimizer = optimizer_argument(optimizer)
        self._schedule = schedule_argument(schedule)
        self._resources = resources_per_worker
        self._waits = (wait_s, resize_s, timeout_s)
        self._checkpoints = CheckpointPlan(
            every_batches=checkpoint_every, every_s=60 * checkpoint_minutes
        )
        self._place = RunPlace(run_config, method, tensorboard=tensorboard)
        self._config = config

    def fit(
        self,
        batches: Iterable[Any],
        *,
        epochs: int = 1,
        test: Iterable[Any] | None = None,
        evaluate_every: int = 1,
        report_every: int = 0,
        progress: bool = True,
        resume: str | os.PathLike[str] | None = None,
        resume_step: int | None = None,
        on_row: OnRow | None = None,
    ) -> Result:
        """Train.

        Args:
            batches: re-iterable of (x, y), each a worker's local batch. In every round of an epoch
                the workers get one batch each, see `raylab.drivers.averaging.shards`; its
                `set_epoch(epoch)` is called before each epoch if there is one.
            epochs: how often to go through it.
            test: re-iterable of (x, y) to test the mean of all replicas with, at epochs' ends.
            evaluate_every: epochs between two tests.
            report_every: local steps between two rows of metrics; 0: a row an epoch.
            progress: show a progress bar on standard error.
            resume: folder of a run that was interrupted: go on in it from its newest checkpoint,
                from the beginning if it has none. With the same settings, batches and number of
                workers it ends as if it had not been interrupted, bit for bit. Other workers go on
                from the mean of the replicas.
            resume_step: of an older checkpoint to go on from; those after it are deleted.
            on_row: called with every row of metrics as it comes, in another thread; a True ends the
                run within a few steps, the same for all workers, with the mean of their weights
                and all its files, whose result.json has `stopped`: "asked".

        Raises:
            CheckpointError: a checkpoint is damaged or missing; the message names the file.
            DataError: a batch is not one, or does not fit the model.
            ModelError: the model has nothing to train, or the loss does not fit it.
            ResourceError: the cluster does not have the resources within `wait_s`.
            NonFiniteLossError: the loss became NaN or infinite.
            RaylabError: a worker failed.
        """
        for name, number, least in (
            ("epochs", epochs, 1),
            ("evaluate_every", evaluate_every, 1),
            ("report_every", report_every, 0),
        ):
            at_least(name, number, least)
        course = self.course(
            batches,
            test,
            epochs=epochs,
            evaluate_every=evaluate_every,
            report_every=report_every,
            listened=on_row is not None,
        )
        notes = fitting_notes(self.settings, batches_of(batches), epochs)
        notes += untrained_note(untrained(self._optimizer, self._model, "a worker"))
        total = batches_of(batches)
        bar = Progress(
            f"{self.settings.rule.title} W={self.settings.most}",
            None if total is None else total * epochs,
            enabled=progress,
        )
        with self._place.folder(resume) as folder:
            say_notes(notes, progress=progress)
            plan = self._plan(own=connect(self._waits[0]))
            return AveragingFit(
                course,
                plan,
                folder,
                self._described(epochs),
                listener=RowListener(on_row),
                bar=bar,
                events=self._place.events(folder),
            ).carry_out(resumed=resume is not None, step=resume_step)

    def course(
        self,
        batches: Iterable[Any],
        test: Iterable[Any] | None,
        *,
        epochs: int,
        evaluate_every: int,
        report_every: int,
        listened: bool = False,
    ) -> Course:
        """Return the run in one piece, checked as far as it can be without an actor.

        Args:
            batches: as for `fit`, as are the others.
            test: to test with.
            epochs: how often to go through the batches.
            evaluate_every: epochs between two tests.
            report_every: local steps between two rows.
            listened: whether somebody hears the rows, who may ask for the run's end.

        Raises:
            InputError: what was given does not fit together.
        """
        model = own_model(self._model)
        check_travels(loss_fn=self._loss_fn, optimizer=self._optimizer, schedule=self._schedule)
        check_fits(model, self._loss_fn, self._optimizer, batches, test)
        if self._checkpoints.on:
            check_states(batches=batches)
        check_batches_travel("batches", batches)
        check_batches_travel("test", test)
        course = Course(
            settings=self.settings,
            model=model,
            loss_fn=self._loss_fn,
            optimizer=self._optimizer,
            schedule=schedule_over(self._schedule, epochs),
            batches=fresh(batches),
            reads_own=reads_own(batches),
            reads_own_test=reads_own(test),
            test=fresh(test),
            epochs=epochs,
            evaluate_every=evaluate_every,
            report_every=report_every,
            checkpoints=self._checkpoints,
            listened=listened,
        )
        check_schedule(
            course.bound(self.settings.least),
            self._optimizer,
            course.steps(self.settings.least),
        )
        return course

    def _plan(self, *, own: bool) -> GroupPlan:
        wait_s, resize_s, timeout_s = self._waits
        settings = self.settings
        return GroupPlan(
            least=settings.least,
            # In a placement group of others there is no more room to come.
            most=settings.most if within() is None else settings.least,
            resources=stage_resources(self._resources, settings.most, own=own)[0],
            wait_s=patience_s(wait_s),
            resize_s=resize_s,
            timeout_s=timeout_s,
            failures=self._place.most_failures,
            keep=self._place.kept,
        )

    def _described(self, epochs: int) -> dict[str, Any]:
        if self._config is not None:
            return dict(self._config)
        settings = asdict(self.settings)
        least, most = settings.pop("least"), settings.pop("most")
        return {
            **settings,
            "workers": least if least == most else [least, most],
            "model": type(self._model).__name__,
            "loss_fn": _name_of(self._loss_fn),
            "optimizer": _name_of(self._optimizer),
            "schedule": None if self._schedule is None else _name_of(self._schedule),
            "epochs": epochs,
            "tensorboard": self._place.tensorboard,
        }


def _name_of(thing: Any) -> str:
    if isinstance(thing, functools.partial):
        options = ", ".join(f"{key}={value}" for key, value in thing.keywords.items())
        return f"{_name_of(thing.func)}({options})"
    return getattr(thing, "__qualname__", None) or repr(thing)
