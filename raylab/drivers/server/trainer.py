"""`ParameterServerTrainer`: one server, K asynchronous workers, messages as late as they come."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, get_args

from ray.train import RunConfig
from torch import Tensor

from actors.checkpoint_plan import CheckpointPlan
from actors.wires.link import WireKind
from raylab.algorithms.server.stragglers import Straggler, check_workers
from raylab.algorithms.server.stragglers import parse as parse_straggler
from raylab.config import ParameterServerConfig
from raylab.data import RowSource
from raylab.drivers.arguments import check_arguments, check_resources
from raylab.drivers.cluster import connect, room, stage_resources
from raylab.drivers.commits import Commits
from raylab.drivers.listener import ASKED, OnRow, RowListener
from raylab.drivers.niceness import tell_of_niceness
from raylab.drivers.recovery import Losses, with_recovery
from raylab.drivers.result import Result
from raylab.drivers.run_place import RunPlace, keep
from raylab.drivers.run_view import RunView
from raylab.drivers.server.asked import Asked, Means
from raylab.drivers.server.elastic import Elastic
from raylab.drivers.server.kinds import Run, kind_of
from raylab.drivers.server.numbers import Limits, came_to
from raylab.drivers.server.numbers import limits as check_limits
from raylab.drivers.server.workload import Problem
from raylab.drivers.told import told
from raylab.errors import ConfigError
from raylab.records import RunFolder
from raylab.report import Progress

__all__ = ["ParameterServerTrainer"]


class ParameterServerTrainer:
    """Minimise P(w) = 1/n Σ φ_i(w) + λ/2 ‖w‖² with a server and K workers that do not wait.

    >>> from raylab import ParameterServerTrainer
    >>> trainer = ParameterServerTrainer("ridge", method="dis_dfsdca", workers=4, strength=0.1)
    >>> result = trainer.fit("libsvm:a9a.bz2")                           # doctest: +SKIP
    >>> result.weights["w"], result.metrics["duality_gap"]               # doctest: +SKIP

    Args:
        problem: ridge, logistic, smoothed_hinge, pca or softmax_mlp; or a callable from a
            `raylab.problems.Shard` to the objective of its rows, for instance
            functools.partial(raylab.problems.custom, batch, dim=…, strength=…); or cartpole, for
            asysgd: a policy learns to balance gymnasium's CartPole-v1.
        method: dis_dfsdca, dfsdca, sdca, cocoa_plus, asysvrg, asysgd or sgd_svrg; see
            `raylab.algorithms.server.rule_factory`. Or shared_asysvrg, whose workers are threads of
            one process, see `raylab.algorithms.shared_memory.asysvrg`.
        workers: K; None: 4, but 1 of sdca and dfsdca, which are serial; or the fewest and the most,
            (2, 8): as many as the cluster has room for, more as soon as it has, fewer as soon as
            others wait in a placement group for what a few of them have. `resize` changes it while
            a run goes on.
        servers: S, actors that hold w, a contiguous range of its coordinates each; every worker
            talks to all of them. More than one is for a w so long that one actor's network or
            processor cannot keep up; not for shared_asysvrg and cartpole.
        strength: λ, of a problem with a name.
        options: of a problem with a name, e.g. {"gamma": 1.0}; of cartpole those of
            `raylab.algorithms.server.policy_gradient.PolicySettings`, e.g. {"target": 475.0}.
        eta: the step; "theory": (3.18) or (3.30) of HUO; "auto": the largest that is likely to be
            stable, halved, back at the last good state, when a certificate rises.
        local_steps: H, samples of a message of a method with duals; None: chosen.
        inner: m of SVRG, messages between two full gradients; None: two passes.
        batch: samples of a message of a method without duals, of a step of shared_asysvrg.
        coordinates: of w that a step of shared_asysvrg writes to; None: 1,000, or all if there are
            fewer.
        broadcast: T, updates between two broadcasts of w to all workers; 0: none.
        delta: Delta, the largest staleness in updates; None: 16 K.
        sampling: uniform, importance or adaptive, of dis_dfsdca.
        pretrain: passes of SGD before the SVRG of sgd_svrg.
        straggler: what slows workers down, e.g. "paper" or "slow:worker=0,times=4", see
            `raylab.algorithms.server.stragglers`; None: nothing.
        sample_s: modelled time of one sample's computation, in seconds: a worker naps for what its
            own computation leaves of it; None: what it takes.
        seed: of all draws.
        wire: what carries messages: "zmq" or "ray".
        checkpoint_every: updates between two checkpoints; 0: the time decides alone.
        checkpoint_minutes: minutes between two checkpoints; 0: the count decides alone, and with
            both 0 there are none. They change no number.
        resources_per_worker: by Ray's names, e.g. {"CPU": 2}; the server takes as much. Default:
            one CPU, or a share of them where Ray is started for the run on a machine with fewer.
            Each of several servers takes as much.
            Threads take theirs together, on one node.
        wait_s: how long to wait for these resources, in seconds. Default: 60 where Ray is started
            for the run, 1800 on a cluster, where nodes may have to come and others to end.
        run_config: Ray Train's, as for `raylab.PipelineTrainer`; a worker that is lost counts as a
            failure, though the others go on meanwhile.
        config: written to config.yaml with what was resolved; default: these arguments.

    Raises:
        ConfigError: an argument is unknown or out of range, or says nothing to the method.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        method: str = "dis_dfsdca",
        workers: int | Sequence[int] | None = None,
        servers: int = 1,
        strength: float = 0.1,
        options: Mapping[str, Any] | None = None,
        eta: float | Literal["auto", "theory"] = "auto",
        local_steps: int | None = None,
        inner: int | None = None,
        batch: int = 32,
        coordinates: int | None = None,
        broadcast: int = 0,
        delta: int | None = None,
        sampling: str = "uniform",
        pretrain: float = 10.0,
        straggler: str | Straggler | None = None,
        sample_s: float | None = None,
        seed: int = 0,
        wire: WireKind = "zmq",
        checkpoint_every: int = 0,
        checkpoint_minutes: float = 1.0,
        resources_per_worker: Mapping[str, float] | None = None,
        wait_s: float | None = None,
        run_config: RunConfig | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        check_arguments(
            ParameterServerConfig,
            seed=seed,
            sample_s=sample_s or None,
            wait_s=wait_s,
            checkpoint_every=checkpoint_every,
            checkpoint_minutes=checkpoint_minutes,
        )
        check_resources("resources_per_worker", resources_per_worker)
        if type(servers) is not int or servers < 1:
            raise ConfigError(f"servers must be an integer >= 1, but got {servers!r}")
        if wire not in get_args(WireKind):
            raise ConfigError(f"wire must be {' or '.join(get_args(WireKind))}, but got {wire!r}")
        self._asked = Asked(
            problem=problem,
            method=method,
            options=dict(options or {}),
            workers=workers,
            servers=servers,
            strength=strength,
            eta=eta,
            local_steps=local_steps,
            inner=inner,
            batch=batch,
            coordinates=coordinates,
            broadcast=broadcast,
            delta=delta,
            sampling=sampling,
            pretrain=pretrain,
            straggler=straggler,
            sample_s=sample_s,
            seed=seed,
            wire=wire,
        )
        self._kind = kind_of(problem, method)(self._asked)
        self._elastic = Elastic(self._kind.workers, self._room, aside=servers)
        self._kind.check(self._elastic.wanted)
        slow = _straggler(straggler, seed)
        check_workers(slow, self._elastic.most)
        self._place = RunPlace(run_config, method, tensorboard=False)
        self._means = Means(
            name=self._place.name,
            elastic=self._elastic,
            plan=CheckpointPlan(every_batches=checkpoint_every, every_s=60 * checkpoint_minutes),
            straggler=slow,
            wait_s=wait_s,
        )
        self._resources = resources_per_worker
        self._config = config
        self._needs: dict[str, float] = {"CPU": 1.0}

    def resize(self, workers: int | Sequence[int]) -> None:
        """Have another number of workers from now on, from any thread, also while `fit` runs.

        What the workers have computed is kept: messages under way are applied, the rows and their
        duals divided anew, and the run goes on.

        Args:
            workers: a number, or the fewest and the most.

        Raises:
            ConfigError: it is no number of workers, or the method keeps those that it begins with.
        """
        if not self._kind.elastic:
            raise ConfigError(
                f"{self._asked.method} keeps the workers that it begins with, but was asked for "
                f"{workers}: resume the run with them"
            )
        self._elastic.want(workers)

    def fit(
        self,
        data: str | RowSource | int | None = None,
        *,
        epochs: float | None = None,
        messages: int | None = None,
        tolerance: float = 1e-8,
        certify_every: float = 1.0,
        progress: bool = True,
        resume: str | os.PathLike[str] | None = None,
        resume_step: int | None = None,
        on_row: OnRow | None = None,
    ) -> Result:
        """Train until the first of three ends is reached; the result's summary says which.

        Args:
            data: spec of the rows, see `raylab.data.open_rows`, or what it returns; for a problem
                that knows its own data, the number of its samples. None for cartpole, whose
                samples are the steps that its workers play.
            epochs: passes over the samples, of cartpole 10,000 steps each; None: 100, of cartpole
                20.
            messages: of workers, applied by the server; None: any number.
            tolerance: of the duality gap, where there is one, else of the gradient norm; of
                cartpole, by how much the greedy policy's mean return may fall short of
                options["target"].
            certify_every: epochs between two certificates, each a row of metrics. A worker makes
                its part of one between two messages, while the others go on; shared_asysvrg makes
                them at its full gradients.
            progress: show a progress bar on standard error.
            resume: folder of a run that was interrupted: go on in it from its newest checkpoint,
                from the beginning if it has none, with as many workers or others.
            resume_step: of an older checkpoint to go on from; those after it are deleted.
            on_row: called with every row of metrics as it comes; a True ends the run, with what is
                under way applied, a last certificate and all its files, whose result.json has
                `stopped` and `ended_by`: "asked".

        Raises:
            CheckpointError: a checkpoint is damaged or foreign; the message names the file.
            ConfigError: a number is out of its range, or does not go with the data.
            DataError: the data is missing or malformed, or not of the problem's kind.
            ResourceError: the cluster does not have the resources within `wait_s`.
            NonFiniteLossError: a given step was too long.
            RaylabError: the server or a worker failed.
        """
        limits = check_limits(
            self._kind.epochs if epochs is None else epochs, messages, tolerance, certify_every
        )
        run = self._kind.run(data, limits, self._means)
        with self._place.folder(resume) as folder:
            checkpoints = run.keep_in(self._place.checkpoints(folder), folder)
            if resume is not None:
                run.rows = list(folder.read_metrics())
                checkpoints.rewind(resume_step)
            own = connect(self._means.wait_s)
            self._needs = stage_resources(self._resources, run.shares, own=own)[0]
            listener = RowListener(on_row)
            return self._trained(run, limits, folder, checkpoints, listener, progress=progress)

    # ----------------------------------------------------------------- inside

    def _trained(
        self,
        run: Run,
        limits: Limits,
        folder: RunFolder,
        checkpoints: Commits,
        listener: RowListener,
        *,
        progress: bool,
    ) -> Result:
        most = math.ceil(limits.epochs)
        bar = Progress(run.title, most, enabled=progress)
        losses = Losses(self._place.most_failures, bar.say, run.noun)
        config: dict[str, Any] = {}

        def ready() -> None:
            listener.begin()
            if not config:
                config.update(self._described(run, limits))
                folder.write_config(config)
                for note in run.notes():
                    bar.say(f"note: {note}")

        def show(epochs: float, rows: Sequence[Mapping[str, Any]]) -> None:
            bar.show(min(most, int(epochs)), rows)
            listener.hear(rows)

        view = RunView(ready=ready, show=show, say=bar.say, asked=lambda: listener.asked)

        def attempt() -> Mapping[str, Tensor]:
            with run.open(self._needs) as group:
                tell_of_niceness((home.niceness for home in group.homes), bar.say)
                return run.carry_out(group, losses, view)

        with told(folder), bar:
            weights = with_recovery(attempt, losses, bar.say, checkpoints.whence)
        figures = came_to(run.rows, run.ended_by, run.figure)
        if run.ended_by == ASKED:
            figures["stopped"] = ASKED
        return keep(folder, run.rows, weights, config, figures)

    def _room(self) -> int:
        """Return for how many more workers the cluster has room; negative: how many must go."""
        return room(self._needs)

    def _described(self, run: Run, limits: Limits) -> dict[str, Any]:
        given = self._config
        if given is None:
            straggler = self._asked.straggler
            given = {
                **asdict(replace(self._asked, problem="")),
                "workers": self._elastic.wanted,
                "straggler": straggler if straggler is None else str(straggler),
                **asdict(limits),
            }
        return {**given, **run.described(), "resolved": run.resolved()}


def _straggler(given: str | Straggler | None, seed: int) -> Straggler:
    if given is None or isinstance(given, str):
        return parse_straggler(given or "none", seed)
    return given
