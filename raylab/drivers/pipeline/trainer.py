"""`PipelineTrainer`: one network, K stage actors, gradients as late as the method says."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ray.train import RunConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from actors.pipeline.stage_actor import Feed
from actors.pipeline.supervisor import Supervisor
from raylab.algorithms.stage.settings import ScheduleFactory
from raylab.config import PipelineConfig
from raylab.drivers.arguments import (
    check_arguments,
    check_resources,
    optimizer_argument,
    schedule_argument,
    schedule_over,
)
from raylab.drivers.batches import batches_of
from raylab.drivers.cluster import connect, patience_s, stage_resources, threads_of
from raylab.drivers.listener import OnRow, RowListener
from raylab.drivers.notes import say_notes, say_steps
from raylab.drivers.pipeline.checkpointing import RunCheckpoints, checkpoint_plan
from raylab.drivers.pipeline.checks import (
    check_bare_inputs,
    check_normalised,
    check_optimizer,
    check_written_weights,
)
from raylab.drivers.pipeline.fit import PipelineFit
from raylab.drivers.pipeline.fitting import fitting_notes
from raylab.drivers.pipeline.micro_batches import check_micro_batches
from raylab.drivers.pipeline.network import Network
from raylab.drivers.pipeline.plan import first_cuts, plan_of
from raylab.drivers.pipeline.run import PipelineRun
from raylab.drivers.pipeline.settings import Balance, Delay, PipelineSettings, Precision, at_least
from raylab.drivers.pipeline.traced_chain import TracedChain, traced_chain
from raylab.drivers.pipeline.user_batches import bound, feed_of
from raylab.drivers.result import Result
from raylab.drivers.run_place import RunPlace
from raylab.drivers.told import told
from raylab.drivers.travelling import check_travels
from raylab.errors import ConfigError
from raylab.optimizers import Schedule
from raylab.report import Progress

__all__ = ["PipelineTrainer"]


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
        optimizer: from parameters to a torch optimiser, called once a stage; or a name such as
            "adam", with the rate that it has on the command line; default: SGD with rate 0.05 and
            momentum 0.9.
        schedule: `raylab.optimizers.Schedule` over epochs, or a callable from an optimiser to a
            torch scheduler, stepped once an update; one that takes a second argument is told the
            number of updates of the run, as OneCycleLR wants it; or "cosine" or "polynomial", over
            the epochs of `fit`; default: a constant rate.
        delay: batches by which a gradient comes back late over each link, instead of the method's
            own: a number, a list with one per link, or "auto": measured before the run, the
            smallest that hides the messages. For dni: by which its synthesizers are corrected late.
        weight_version: weights at which a late gradient is evaluated: "forward", those of its own
            forward (the papers' equations), or "current", beside kept activations of the forward;
            what a block computes again (torch.utils.checkpoint) is of the same weights.
        barrier: run in lock step, as the papers' timings do.
        micro_batches: pieces of a batch, for gpipe and 1f1b. Their gradients add up to the
            batch's: torch's own losses weigh each piece by its share of the classes' weights and
            of the labels that are not ignored; another loss must be a mean over the samples, which
            is checked.
        gradient_shrink: beta in (0, 1], by which an error gradient is multiplied over each link,
            so that stage k of K trains with beta^(K-k) of it; for ddg, fr, adl and dsp.
        clip_norm: largest norm of each stage's gradient, over the parameters that its optimiser
            holds; stages do not wait for each other to form a norm over all, so for K = 1 only is
            it torch's.
        clip_value: largest magnitude of a gradient's element.
        sigma_every: updates between two measurements of the sufficient-direction constant (6.10)
            of HUO, for bp, ddg, fr, adl and dsp; 0: none. A measurement computes as many batches
            once more, forward and backward, as the stages have different delays; see
            `raylab.algorithms.stage.sigma`.
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
        wait_s: how long to wait for these resources, in seconds. Default: 60 where Ray is started
            for the run, 1800 on a cluster, where nodes may have to come and others to end.
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
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | str | None = None,
        schedule: Schedule | ScheduleFactory | str | None = None,
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
        wait_s: float | None = None,
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
        check_arguments(
            PipelineConfig,
            seed=seed,
            wait_s=wait_s,
            barrier=barrier,
            recompute=recompute,
            gradient_shrink=gradient_shrink,
            clip_norm=clip_norm,
            clip_value=clip_value,
            checkpoint_every=checkpoint_every,
            checkpoint_minutes=checkpoint_minutes,
            tensorboard=tensorboard,
        )
        check_resources("resources_per_stage", resources_per_stage)
        self._model = model
        self._loss_fn = loss_fn
        self._optimizer = optimizer_argument(optimizer)
        self._schedule = schedule_argument(schedule)
        self._resources = resources_per_stage
        self._wait_s = wait_s
        self._checkpoints = checkpoint_plan(checkpoint_every, checkpoint_minutes, self.settings)
        self._place = RunPlace(run_config, method, tensorboard=tensorboard)
        self._config = config
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
        on_row: OnRow | None = None,
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
            on_row: called with every row of metrics as it comes; a True ends the run before the
                next batch, drained and with all its files, whose result.json has `stopped`:
                "asked". The rows are those up to then.

        Raises:
            CheckpointError: a checkpoint is damaged or foreign; the message names the file.
            DataError: a batch is not one, or does not fit the model.
            ModelError: the model cannot be cut so, or the loss does not fit it.
            ResourceError: the cluster does not have the resources within `wait_s`.
            NonFiniteLossError: the loss became NaN or infinite.
            RaylabError: a stage failed.
        """
        at_least("report_every", report_every, 0)
        feed = self._feed(batches, test, epochs=epochs, evaluate_every=evaluate_every)
        chain, cuts = self._cut(batches)
        notes = fitting_notes(
            self.settings,
            samples=chain.x[0].shape[0],
            batches=batches_of(batches),
            epochs=epochs,
        )
        notes += check_optimizer(self.settings, chain, cuts, self._optimizer)
        schedule = self._bound(batches, epochs)
        total = batches_of(batches)
        bar = Progress(
            f"{self.settings.rule.title} K={len(cuts) + 1} M={self.settings.accumulate}",
            None if total is None else total * epochs,
            enabled=progress,
        )
        with self._place.folder(resume) as folder:
            checkpoints = RunCheckpoints(self._place.checkpoints(folder), folder, self.settings)
            rows = folder.read_metrics() if resume is not None else ()
            timeline = folder.read_timeline() if resume is not None else ()
            if resume is not None:
                checkpoints.rewind(resume_step)
            say_notes(notes, progress=progress)
            own = connect(self._wait_s)
            run = PipelineRun(
                self.settings,
                chain,
                cuts,
                loss_fn=self._loss_fn,
                optimizer=self._optimizer,
                schedule=schedule,
                resumable=self._checkpoints.on,
                rows=rows,
                timeline=timeline,
            )
            return PipelineFit(
                run,
                feed,
                folder,
                checkpoints,
                self._described(epochs),
                report_every=report_every,
                open_stages=functools.partial(self._supervisor, own),
                listener=RowListener(on_row),
                bar=bar,
                events=self._place.events(folder),
            ).carry_out(self._place.most_failures)

    def plan(
        self, batches: Iterable[Any], *, measure: bool = True, progress: bool = False
    ) -> dict[str, Any]:
        """Return the cut and what every method would give on it, without training.

        Args:
            batches: as for `fit`; the first one is looked at.
            measure: start the stages and time them and their messages; False counts only, and
                predicts no times.
            progress: say on standard error what is being done.

        Raises:
            DataError: a batch is not one, or does not fit the model.
            ModelError: the model cannot be cut so, or the loss does not fit it.
            ResourceError: the cluster does not have the resources within `wait_s`.
        """
        # An epoch of one: what `fit` refuses of batches and schedule, a plan is not made of.
        self._feed(batches, None, epochs=1)
        chain, cuts = self._cut(batches)
        check_optimizer(self.settings, chain, cuts, self._optimizer)
        self._bound(batches, 1)
        if not measure:
            return plan_of(self.settings, chain, cuts, self._optimizer)
        say = say_steps(progress=progress)
        run = PipelineRun(
            self.settings, chain, cuts, loss_fn=self._loss_fn, optimizer=self._optimizer
        )
        say(f"starting Ray and {self.settings.count} stages")
        with told(), self._supervisor(connect(self._wait_s)) as supervisor:
            if self.settings.balance == "measured":
                say(f"timing {len(chain.traces)} blocks on each stage, then whole stages")
                run.balance(supervisor)
            costs = run.costs(supervisor, say)
            say("ending the stages")
        return plan_of(self.settings, chain, run.cuts, self._optimizer, costs, say=say)

    def _cut(self, batches: Iterable[Any]) -> tuple[TracedChain, list[int]]:
        """Return the chain, and the first blocks of its stages 1..K-1."""
        chain = traced_chain(self._model, batches, self._loss_fn)
        check_written_weights(self.settings, chain)
        check_normalised(self.settings, chain, batches)
        check_micro_batches(self._loss_fn, chain.traces[-1].outputs, chain.y, self.settings.parts)
        cuts = first_cuts(self.settings, chain, self._optimizer)
        chain.network.check_cuts(cuts)
        check_bare_inputs(self.settings, chain, cuts)
        return chain, cuts

    def _bound(self, batches: Iterable[Any], epochs: int) -> ScheduleFactory | None:
        """Return the schedule over updates."""
        return bound(
            schedule_over(self._schedule, epochs),
            batches,
            self.settings.accumulate,
            epochs=epochs,
            optimizer=self._optimizer,
        )

    def _feed(
        self,
        batches: Iterable[Any],
        test: Iterable[Any] | None,
        *,
        epochs: int,
        evaluate_every: int = 1,
    ) -> Feed:
        """Return what the first stage reads, of what can be sent to it."""
        check_travels(loss_fn=self._loss_fn, optimizer=self._optimizer, schedule=self._schedule)
        return feed_of(
            batches,
            test,
            self.settings,
            self._checkpoints,
            loss_fn=self._loss_fn,
            epochs=epochs,
            evaluate_every=evaluate_every,
        )

    def _supervisor(self, own: bool) -> Supervisor:
        resources = stage_resources(self._resources, self.settings.count, own=own)
        return Supervisor(
            resources,
            threads=threads_of(resources[0]),
            seed=self.settings.seed,
            wait_s=patience_s(self._wait_s),
            tags={"method": self.settings.method, "run": self._place.name},
        )

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
            "tensorboard": self._place.tensorboard,
        }


def _name_of(thing: Any) -> str:
    if isinstance(thing, functools.partial):
        options = ", ".join(f"{key}={value}" for key, value in thing.keywords.items())
        return f"{_name_of(thing.func)}({options})"
    return getattr(thing, "__qualname__", None) or repr(thing)
