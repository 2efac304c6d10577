"""`PipelineTrainer`: one network, K stage actors, gradients as late as the method says."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from actors.batch import as_tensors
from actors.errors import BatchError, MechanismError, PlacementError
from actors.source import CheckpointPlan
from actors.stage_actor import Feed
from actors.supervisor import Supervisor
from raylab.algorithms.cut_features import CutFeatures
from raylab.algorithms.stage_settings import ScheduleFactory
from raylab.drivers.checkpointing import RunCheckpoints, check_same_run
from raylab.drivers.cluster import connect, stage_resources, threads_of
from raylab.drivers.network import Network
from raylab.drivers.pipeline_plan import first_cuts, in_a_line, plan_of
from raylab.drivers.pipeline_run import PipelineRun, keep
from raylab.drivers.recovery import with_recovery
from raylab.drivers.result import Result
from raylab.drivers.settings import Balance, Delay, PipelineSettings, Precision
from raylab.errors import ConfigError, DataError, RaylabError, ResourceError
from raylab.optimizers import Schedule
from raylab.planner import BlockTrace, cut_features, trace_blocks
from raylab.records import CheckpointStore, EventWriter, RunFolder, Storage, new_run_name
from raylab.report import Progress

__all__ = ["PipelineTrainer"]

_Tensors = tuple[Tensor, ...]


class PipelineTrainer:
    """Train one network as a pipeline of Ray actors.

    >>> import torch
    >>> from torch import nn
    >>> from raylab import PipelineTrainer
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> trainer = PipelineTrainer(model, nn.CrossEntropyLoss(), method="ddg", stages=2)
    >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(10)]
    >>> result = trainer.fit(batches, epochs=3)                          # doctest: +SKIP
    >>> result.model(torch.randn(1, 4)), result.metrics["loss"]          # doctest: +SKIP

    Args:
        model: nn.Sequential, list of blocks, or a torchvision network that `raylab.models.chain`
            knows. A block is never cut; what passes between blocks is a tensor or a tuple of
            tensors. The model itself is left as it is.
        loss_fn: (outputs, labels) -> mean loss over the samples of a batch, one number.
        method: bp, gpipe, 1f1b, ddg, fr, adl, dsp, dni or dgl; see `raylab.algorithms`.
        stages: K, at most 16: the chain is cut so that the counted work of the slowest stage is
            smallest; or the cut points, e.g. [3, 6]: block 3 starts stage 2, block 6 stage 3.
        accumulate: M, batches whose mean gradient makes one update.
        optimizer: from parameters to a torch optimiser, called once a stage; default: SGD with
            rate 0.05 and momentum 0.9.
        schedule: `raylab.optimizers.Schedule` over epochs, or a callable from an optimiser to a
            torch scheduler, stepped once an update; default: a constant rate.
        delay: batches by which a gradient comes back late over each link, instead of the method's
            own: a number, a list with one per link, or "auto": measured before the run, the
            smallest that hides the messages. For dni: by which its synthesizers are corrected late.
        weight_version: weights at which a late gradient is evaluated: "forward", those of its own
            forward (the papers' equations), or "current".
        barrier: run in lock step, as the papers' timings do.
        micro_batches: pieces of a batch, for gpipe and 1f1b.
        gradient_shrink: beta in (0, 1], by which an error gradient is multiplied over each link,
            so that stage k of K trains with beta^(K-k) of it; for ddg, fr, adl and dsp.
        clip_norm: largest norm of each stage's gradient; stages do not wait for each other to
            form a norm over all, so for K = 1 only is it torch's.
        clip_value: largest magnitude of a gradient's element.
        sigma_every: updates between two measurements of the sufficient-direction constant (6.10)
            of HUO, for bp, ddg, fr, adl and dsp; 0: none. A measurement computes as many batches
            once more, forward and backward, as the stages have different delays; see
            `raylab.algorithms.sigma`.
        precision: "float32" computes in the dtype of the weights, "bfloat16" under autocast.
        seed: of everything that is drawn inside the network.
        wire: what carries features and gradients: "zmq" or "ray".
        carrier: of their tensors beside the zmq wire: "inline" in its messages, through the host's
            memory; "distributed" by torch.distributed, NCCL between GPUs, gloo between CPUs; "ipc"
            within the memory of a GPU that stages share; "auto": by where the stages of each link
            live, inline on CPUs.
        balance: what a cut into K stages makes even: "counted" work, the same on every machine;
            "measured" times of the stages' own devices; or "memory": weights, their versions and
            all that is in flight. The cut is written into config.yaml, from which the run repeats.
        recompute: keep inputs instead of graphs, and run the forward again at the weights that it
            had: the same numbers in less memory, for one more forward (ddg, adl).
        checkpoint_every: batches between two checkpoints; 0: the time decides alone.
        checkpoint_minutes: minutes between two checkpoints; 0: the count decides alone, and with
            both 0 there are none. They change no number.
        timeline: batches at the start of the run for which timeline.parquet tells what each stage
            did when; 0: none.
        tensorboard: write the rows' numbers as TensorBoard's scalars, too, as they come.
        resources_per_stage: by Ray's names, e.g. {"CPU": 2, "GPU": 0.5}; with a GPU the stage
            computes on it. Default: one CPU, or a share of them where Ray is started for the run
            on a machine with fewer cores than stages.
        wait_s: how long to wait for these resources, in seconds.
        run_config: Ray Train's. `name`, `storage_path` (a local folder or an address such as
            s3://bucket/path) and `storage_filesystem` say where, by default ~/raylab_results and a
            name with the time in it; `checkpoint_config.num_to_keep` how many checkpoints to keep,
            2 without a run_config; `failure_config.max_failures` how often a run whose stage, node
            or link is lost goes on from the last one by itself, 3 without.
        config: written to config.yaml with what was resolved; default: these arguments.

    Raises:
        ConfigError: an argument is unknown or out of range.
        ModelError: the model is not a chain.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        loss_fn: Callable[..., Tensor],
        *,
        method: str = "adl",
        stages: int | Sequence[int] = 2,
        accumulate: int = 1,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        schedule: Schedule | ScheduleFactory | None = None,
        delay: Delay = None,
        weight_version: str = "forward",
        barrier: bool = False,
        micro_batches: int = 4,
        gradient_shrink: float = 1.0,
        sigma_every: int = 0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        precision: Precision = "float32",
        seed: int = 0,
        wire: str = "zmq",
        carrier: str = "auto",
        balance: Balance = "counted",
        recompute: bool = False,
        checkpoint_every: int = 0,
        checkpoint_minutes: float = 1.0,
        timeline: int = 100,
        tensorboard: bool = False,
        resources_per_stage: Mapping[str, float] | None = None,
        wait_s: float = 60.0,
        run_config: RunConfig | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = PipelineSettings(
            method=method,
            stages=tuple(stages) if isinstance(stages, (list, tuple)) else stages,  # type: ignore[arg-type]
            accumulate=accumulate,
            delay=tuple(delay) if isinstance(delay, (list, tuple)) else delay,  # type: ignore[arg-type]
            weight_version=weight_version,  # type: ignore[arg-type]
            barrier=barrier,
            micro_batches=micro_batches,
            gradient_shrink=gradient_shrink,
            sigma_every=sigma_every,
            clip_norm=clip_norm,
            clip_value=clip_value,
            precision=precision,
            seed=seed,
            wire=wire,  # type: ignore[arg-type]
            carrier=carrier,  # type: ignore[arg-type]
            timeline=timeline,
            recompute=recompute,
            balance=balance,
        )
        if not callable(loss_fn):
            raise ConfigError(f"loss_fn must be callable, but got {type(loss_fn).__name__}")
        if not wait_s > 0:
            raise ConfigError(f"wait_s > 0 must hold, but got {wait_s}")
        self._model = model
        self._loss_fn = loss_fn
        self._optimizer = optimizer or functools.partial(SGD, lr=0.05, momentum=0.9)
        self._schedule = schedule
        self._resources = resources_per_stage
        self._wait_s = wait_s
        for each, amount in (
            ("checkpoint_every", checkpoint_every),
            ("checkpoint_minutes", checkpoint_minutes),
        ):
            if not amount >= 0:
                raise ConfigError(f"{each} >= 0 must hold, but got {amount}")
        self._checkpoints = CheckpointPlan(
            every_batches=checkpoint_every,
            every_s=60 * checkpoint_minutes,
            window=accumulate if self.settings.rule.flush else 1,
        )
        run_config = run_config or RunConfig(
            storage_path="~/raylab_results",
            name=new_run_name(method),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=3),
        )
        # Ray Train fills both in with its own where they are not given.
        self._keep = (run_config.checkpoint_config or CheckpointConfig()).num_to_keep
        self._most_failures = (run_config.failure_config or FailureConfig()).max_failures
        self._filesystem = run_config.storage_filesystem
        self._storage, self._name = _where(run_config, method)
        if tensorboard and self._storage.local is None:
            raise ConfigError(
                f"TensorBoard's events are written to a local folder, but the storage is "
                f"{self._storage}: leave tensorboard out, or choose a local storage"
            )
        self._config = config
        self._tensorboard = tensorboard
        Network(model)

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
    ) -> Result:
        """Train.

        Args:
            batches: re-iterable of (x, y), read by the first stage; its `set_epoch(epoch)` is
                called before each epoch if there is one, and `from_batch(index)` in place of
                iterating where a run goes on in the middle of an epoch.
            epochs: how often to go through it.
            test: re-iterable of (x, y) to test with between epochs, with one consistent set of
                weights, and with the final ones at the end.
            evaluate_every: epochs between two tests.
            report_every: batches between two rows of metrics; 0: a row an epoch.
            progress: show a progress bar on standard error.
            resume: folder of a run that was interrupted: go on in it from its newest checkpoint,
                from the beginning if it has none. With the same settings and batches it ends as if
                it had not been interrupted, bit for bit. With other stages or delays it goes on
                from the whole model, and what was in flight is left out.
            resume_step: of an older checkpoint to go on from; those after it are deleted.

        Raises:
            CheckpointError: a checkpoint is damaged or foreign; the message names the file.
            DataError: a batch is not one, or does not fit the model.
            ModelError: the model cannot be cut so, or the loss does not fit it.
            ResourceError: the cluster does not have the resources within `wait_s`.
            NonFiniteLossError: the loss became NaN or infinite.
            RaylabError: a stage failed.
        """
        for name, value, least in (
            ("epochs", epochs, 1),
            ("evaluate_every", evaluate_every, 1),
            ("report_every", report_every, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} >= {least} must hold for an integer, but got {value!r}")
        if test is not None:
            _first_batch(test)
        network, x, y, traces, cuts = self._chain(batches)
        schedule = self._bound_schedule(batches)
        folder = self._folder(resume)
        store = CheckpointStore(folder.folder.child("checkpoints"), self._keep)
        if resume is not None:
            self._check_resumed(store, resume_step)
        checkpoints = RunCheckpoints(store, folder, self.settings)
        own = connect()
        feed = Feed(
            train=batches,
            test=test,
            epochs=epochs,
            parts=self.settings.parts,
            evaluate_every=evaluate_every,
            seed=self.settings.seed,
            checkpoints=self._checkpoints,
        )
        run = PipelineRun(
            self.settings,
            network,
            cuts,
            traces,
            self._loss_fn,
            self._optimizer,
            schedule,
            self._crossing(network, traces, y),
            resumable=self._checkpoints.on,
            rows=folder.read_metrics() if resume is not None else (),
            timeline=folder.read_timeline() if resume is not None else (),
        )
        total = _length(batches)
        bar = Progress(
            f"{self.settings.rule.title} K={len(cuts) + 1} M={self.settings.accumulate}",
            None if total is None else total * epochs,
            enabled=progress,
        )
        events = EventWriter(_events_folder(folder) if self._tensorboard else None)

        def show(done: int, rows: Sequence[Mapping[str, Any]]) -> None:
            bar.show(done, rows)
            events.add(rows)

        def attempt() -> tuple[list[dict[str, Any]], nn.Module, dict[str, Any]]:
            saved = checkpoints.newest()
            with self._supervisor(own) as supervisor:
                plan = run.prepare(supervisor, x, report_every)
                config = {**self._described(epochs), **run.resolved()}
                folder.write_config(config)
                bar.say(in_a_line(self.settings, run.cuts, traces, run.expected_samples_per_s))
                rows = run.carry_out(supervisor, plan, feed, show, checkpoints, saved)
                return rows, network.trained(supervisor.states()), config

        def where() -> str:
            saved = checkpoints.newest()
            return "the beginning" if saved is None else f"the checkpoint of step {saved.step}"

        with _told(), bar, events:
            rows, model, config = with_recovery(attempt, self._most_failures, bar.say, where)
        return keep(folder, rows, model, config, run.timeline)

    def _folder(self, resume: str | os.PathLike[str] | None) -> RunFolder:
        if resume is None:
            return RunFolder(self._storage, self._name)
        return RunFolder.existing(Storage.at(resume, self._filesystem))

    def _check_resumed(self, store: CheckpointStore, step: int | None) -> None:
        saved = store.newest() if step is None else store.open(step)
        if saved is None:
            return
        saved.verify()
        check_same_run(saved, self.settings)
        store.drop_after(saved.step)

    def plan(self, batches: Iterable[Any], *, measure: bool = True) -> dict[str, Any]:
        """Return the cut and what every method would give on it, without training.

        Args:
            batches: as for `fit`; the first one is looked at.
            measure: start the stages and time them and their messages; False counts only, and
                predicts no times.

        Raises:
            DataError: a batch is not one, or does not fit the model.
            ModelError: the model cannot be cut so, or the loss does not fit it.
            ResourceError: the cluster does not have the resources within `wait_s`.
        """
        network, x, y, traces, cuts = self._chain(batches)
        if not measure:
            return plan_of(self.settings, network, traces, x, cuts, self._optimizer)
        run = PipelineRun(
            self.settings,
            network,
            cuts,
            traces,
            self._loss_fn,
            self._optimizer,
            None,
            self._crossing(network, traces, y),
        )
        with _told(), self._supervisor(connect()) as supervisor:
            if self.settings.balance == "measured":
                run.balance(supervisor, x)
            costs = run.costs(supervisor, x)
        return plan_of(self.settings, network, traces, x, run.cuts, self._optimizer, costs)

    def _chain(
        self, batches: Iterable[Any]
    ) -> tuple[Network, _Tensors, _Tensors, list[BlockTrace], list[int]]:
        """Return the network, x and y of the first batch, what blocks do to it, and the cuts."""
        network = Network(self._model)
        x, y = _first_batch(batches)
        traces = trace_blocks(network.blocks, network.names, x, y, self._loss_fn)
        cuts = first_cuts(self.settings, network, traces, x, self._optimizer)
        network.check_cuts(cuts)
        return network, x, y, traces, cuts

    def _crossing(
        self, network: Network, traces: Sequence[BlockTrace], y: Sequence[Tensor]
    ) -> Callable[[Sequence[int]], Sequence[CutFeatures | None]]:
        def at(cuts: Sequence[int]) -> Sequence[CutFeatures | None]:
            return cut_features(self.settings.rule, traces, cuts, network.names, y)

        return at

    def _supervisor(self, own: bool) -> Supervisor:
        resources = stage_resources(self._resources, self.settings.count, own=own)
        return Supervisor(
            resources,
            threads=threads_of(resources[0]),
            seed=self.settings.seed,
            wait_s=self._wait_s,
            tags={"method": self.settings.method, "run": self._name},
        )

    def _bound_schedule(self, batches: Iterable[Any]) -> ScheduleFactory | None:
        if not isinstance(self._schedule, Schedule):
            return self._schedule
        length = _length(batches)
        if length is None:
            raise ConfigError(
                "a schedule over epochs must know the batches of an epoch, but these have no "
                "length: give them __len__, or a callable from an optimiser to a torch scheduler"
            )
        return self._schedule.bind(length / self.settings.accumulate)

    def _described(self, epochs: int) -> dict[str, Any]:
        if self._config is not None:
            return dict(self._config)
        settings = asdict(self.settings)
        return {
            **settings,
            "model": type(self._model).__name__,
            "loss_fn": _name_of(self._loss_fn),
            "optimizer": _name_of(self._optimizer),
            "schedule": None if self._schedule is None else _name_of(self._schedule),
            "epochs": epochs,
            "tensorboard": self._tensorboard,
        }


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise the mechanism's errors as the ones that users know."""
    try:
        yield
    except PlacementError as error:
        raise ResourceError(str(error)) from error
    except BatchError as error:
        raise DataError(str(error)) from error
    except MechanismError as error:
        raise RaylabError(str(error)) from error


def _first_batch(batches: Iterable[Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    if not isinstance(batches, Iterable):
        raise DataError(f"batches must be iterable, but got {type(batches).__name__}")
    iterator = iter(batches)
    if iterator is batches:
        raise DataError(
            "batches must give a new iterator every time, but got a one-shot iterator "
            f"({type(batches).__name__}): give a list, a DataLoader or an object with __iter__"
        )
    try:
        return as_tensors(next(iterator), "the first batch")
    except StopIteration:
        raise DataError("batches must not be empty, but there is not one") from None
    except BatchError as error:
        raise DataError(str(error)) from error


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _where(run_config: RunConfig, method: str) -> tuple[Storage, str]:
    # Ray Train fills in a name of its own, and its own default folder, where none is given.
    storage = run_config.storage_path or "~/raylab_results"
    name = run_config.name or new_run_name(method)
    return Storage.at(storage, run_config.storage_filesystem), name


def _events_folder(folder: RunFolder) -> Path:
    if folder.folder.local is None:
        raise ConfigError(
            f"tensorboard=True must have a run's folder on this machine, but got {folder.folder}"
        )
    return folder.folder.local / "tensorboard"


def _name_of(thing: Any) -> str:
    if isinstance(thing, functools.partial):
        options = ", ".join(f"{key}={value}" for key, value in thing.keywords.items())
        return f"{_name_of(thing.func)}({options})"
    return getattr(thing, "__qualname__", None) or repr(thing)
