"""`ParameterServerConfig`: every key of a parameter server's run: type, range and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raylab.config.kinds import Count, Natural, NotNegative, Positive, Text

__all__ = ["DATA", "EPISODES", "SERVER_METHODS", "SHARED", "ParameterServerConfig"]

SHARED = "shared_asysvrg"
"""The method whose workers are threads of one process."""
EPISODES = "cartpole"
"""The problem that makes its own samples."""
DATA = "sparse:n=10000,d=100,density=0.2"
"""Of the other problems, where none is given."""

SERVER_METHODS = {
    "dis_dfsdca": "Dis-dfSDCA: asynchronous dual-free coordinate ascent, a dual for each sample",
    "cocoa_plus": "CoCoA+: synchronous rounds of local SDCA, added up: a baseline",
    "asysvrg": "AsySVRG: asynchronous steps whose variance falls with the distance to the end",
    "sgd_svrg": "AsySVRG from weights that some passes of SGD have trained",
    "shared_asysvrg": "AsySVRG of threads that share one w without locks",
    "asysgd": "asynchronous SGD: a baseline; of cartpole, asynchronous policy gradients",
    "sdca": "SDCA, one worker: a baseline",
    "dfsdca": "dual-free SDCA, one worker: a baseline",
}
"""The methods of the parameter server, a line each."""

ServerMethodName = Literal[
    "dis_dfsdca",
    "cocoa_plus",
    "asysvrg",
    "sgd_svrg",
    "shared_asysvrg",
    "asysgd",
    "sdca",
    "dfsdca",
]

ProblemName = Literal["ridge", "logistic", "smoothed_hinge", "pca", "softmax_mlp", "cartpole"]


class ParameterServerConfig(BaseModel):
    """All keys of `raylab train` for the methods of the parameter server.

    Types are taken strictly, as `PipelineConfig`'s are. What depends on the data, such as the
    samples that a worker has, is checked where the run is made.

    >>> ParameterServerConfig(method="asysvrg", workers=8).eta
    'auto'
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    method: ServerMethodName = Field("dis_dfsdca", description="see the methods above")

    problem: ProblemName = Field(
        "ridge",
        description="what is minimised, with lambda/2 |w|^2 added to the mean loss; or cartpole, "
        "for asysgd: a policy learns to balance gymnasium's CartPole-v1",
    )
    options: dict[str, Any] = Field(
        {},
        description="of the problem: options.gamma=1.0 of smoothed_hinge, options.mu=100.0 of pca, "
        "options.hidden=100 of softmax_mlp, options.target=475.0 of cartpole: the mean return of "
        "100 greedy episodes at which a run ends",
    )
    strength: NotNegative = Field(0.1, description="lambda, weight of the l2 term")
    data: Text | None = Field(
        None,
        description="libsvm:PATH (text, also .bz2, .xz, .gz), npz:PATH (x_train, y_train: features "
        "or images), digits, pca:n=N,d=D for pca, sparse:n=N,d=D,density=P (generated); null: "
        f"{DATA}, for cartpole nothing",
    )

    workers: Count | list[Count] | None = Field(
        None,
        description="K; null: 4, but 1 for sdca, dfsdca; or the fewest and the most, e.g. [2,8]: "
        "as many as the cluster has room for, more as soon as it has, fewer for others who wait",
    )
    servers: Count = Field(
        1,
        description="S, actors that hold w, a range of its coordinates each: more than 1 for a w "
        "that is too long for the network or the processor of one",
    )
    eta: Positive | Literal["auto", "theory"] = Field(
        "auto",
        description="step; theory: the paper's bound; auto: the largest that is likely to be "
        "stable, halved when a certificate rises",
    )
    local_steps: Count | None = Field(
        None, description="H, samples of a message of a method with duals; null: chosen"
    )
    inner: Count | None = Field(
        None, description="m of SVRG, messages between two full gradients; null: two passes"
    )
    batch: Count = Field(
        32,
        description="samples of a message of asysvrg, sgd_svrg and asysgd, of a step of "
        "shared_asysvrg",
    )
    coordinates: Count | None = Field(
        None,
        description="of w that a step of shared_asysvrg writes to; null: 1000, or all if there "
        "are fewer",
    )
    broadcast: Natural = Field(
        0, description="T of dis_dfsdca, updates between two broadcasts of w; 0: none"
    )
    delta: Natural | None = Field(
        None, description="Delta, the largest staleness in updates; null: 16 K, 2 K with eta=theory"
    )
    sampling: Literal["uniform", "importance", "adaptive"] = Field(
        "uniform", description="of the samples of a message, for dis_dfsdca"
    )
    pretrain: NotNegative = Field(10.0, description="passes of SGD before the SVRG of sgd_svrg")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of all draws")

    epochs: Positive | None = Field(
        None,
        description="passes over the samples at which a run ends; of cartpole an epoch is 10,000 "
        "steps of its environments; null: 100, of cartpole 20, that is 200,000 steps",
    )
    messages: Count | None = Field(
        None, description="applied messages at which a run ends; null: any number"
    )
    tolerance: NotNegative = Field(
        1e-8,
        description="duality gap, or gradient norm where there is none, at which a run ends; of "
        "cartpole, by how much the greedy return may fall short of its target",
    )
    certify_every: Positive = Field(
        1.0,
        description="epochs between two certificates, each a row of metrics; shared_asysvrg makes "
        "them at its full gradients",
    )

    straggler: Text | None = Field(
        None,
        description="what slows workers down: paper, slow:worker=0,times=4, heavy:shape=1.5, "
        "dies:worker=0,message=5, late:worker=0,seconds=1, joined by +; null: nothing",
    )
    sample_s: Positive | None = Field(
        None,
        description="modelled time of a sample's computation, seconds; workers nap for what theirs "
        "leaves of it; null: what it takes",
    )

    wire: Literal["zmq", "ray"] = Field("zmq", description="what carries messages")
    cpus_per_worker: Positive | None = Field(
        None, description="CPUs of a worker, and of the server; null: 1, or a share of this "
        "machine's if it has fewer"
    )  # fmt: skip
    wait_s: Positive | None = Field(
        None,
        description="how long to wait for these resources, seconds; null: 60 on a machine of its "
        "own, 1800 on a cluster, where nodes may have to come and others to end",
    )

    checkpoint_every: Natural = Field(
        0, description="updates between two checkpoints; 0: the time decides alone"
    )
    checkpoint_minutes: NotNegative = Field(
        1.0, description="minutes between two checkpoints; 0: the count decides alone"
    )
    keep_checkpoints: Count = Field(2, description="checkpoints to keep, the newest ones")
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        3,
        description="losses of a worker, the server, a node or a link that a run bears; -1: any "
        "number",
    )
    storage: Text = Field(
        "~/raylab_results", description="folder of all runs, or an address: s3://bucket/path"
    )
    name: Text | None = Field(
        None, description="folder of this run in storage; null: <method>-<time>"
    )
    resolved: dict[str, Any] | None = Field(
        None, description="what was decided from the data; written by a run, read by none"
    )
