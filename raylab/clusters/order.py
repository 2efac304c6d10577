"""What a person asks of a cluster, checked."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from raylab.clusters.machines import NO_GPU, node_labels
from raylab.errors import ConfigError

__all__ = ["MARKETS", "PROVIDERS", "ClusterOrder"]

PROVIDERS = ("aws", "gcp", "azure", "local", "kuberay")
MARKETS = ("spot", "on-demand", "both")

_DISTRIBUTION = "raylab-train"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_CLOUD = {"gpu_type", "gpus_per_worker", "market", "image"}
_MACHINES = {"ssh_user", "token_file", "wheel", "requirement", "environment"}
_TAKEN = {
    "aws": {*_CLOUD, *_MACHINES, "region", "disk_gb"},
    "gcp": {*_CLOUD, *_MACHINES, "region", "zone", "project", "disk_gb"},
    "azure": {*_CLOUD, *_MACHINES, "region", "resource_group", "disk_gb"},
    "local": {*_MACHINES, "head_ip", "worker_ips", "ssh_key"},
    "kuberay": {*_CLOUD, "requirement", "kubernetes", "job"},
}
_NEEDED = {
    "gcp": {"project": "the id of your project"},
    "local": {
        "head_ip": "the head's address",
        "worker_ips": "the workers' addresses, a comma between them",
        "ssh_user": "who may log in on all of them",
    },
}


@dataclass(frozen=True, kw_only=True)
class ClusterOrder:
    """A cluster that a person wants; what is None is chosen, or does not apply to the provider.

    Attributes:
        provider: one of PROVIDERS.
        name: of the cluster.
        gpu_type: of the workers' GPUs; "none": workers without.
        gpus_per_worker: None: those of the provider's default machine for that type.
        min_workers: that are always there; default: 0, of `local` all of them.
        max_workers: at most; default: 2, of `local` all of them.
        market: machines that may be taken away and cost less, or not, or both: then those that are
            always there are on-demand, and the others on-demand where there is no spot machine.
        idle_minutes: after which a worker without work ends.
        region: of AWS, Google Cloud or Azure.
        zone: of Google Cloud.
        project: of Google Cloud.
        resource_group: of Azure; made if it is not there.
        image: of the machines, or of the containers; of containers: one that has the package.
        disk_gb: of a machine.
        head_ip: of `local`.
        worker_ips: of `local`.
        ssh_user: who logs in on the machines.
        ssh_key: private key of `local`.
        token_file: on this machine; it is copied to all others.
        wheel: of this package, on this machine; installed on all others.
        requirement: what pip installs instead, as pip takes it; default: this version.
        environment: a virtual environment that is on all machines already: nothing is installed.
        kubernetes: whose labels for spot machines are asked for: gke, eks or aks; None: of none.
        job: of `kuberay`: the words behind `raylab` of one run, for which the cluster is made.
        ray_version: of the cluster; default: the one that is installed here.

    Raises:
        ConfigError: a value is out of its range, missing, or not for this provider.
    """

    provider: str
    name: str = "raylab"
    gpu_type: str | None = None
    gpus_per_worker: int | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    market: str | None = None
    idle_minutes: float = 5.0
    region: str | None = None
    zone: str | None = None
    project: str | None = None
    resource_group: str | None = None
    image: str | None = None
    disk_gb: int | None = None
    head_ip: str | None = None
    worker_ips: tuple[str, ...] | None = None
    ssh_user: str | None = None
    ssh_key: str | None = None
    token_file: str | None = None
    wheel: Path | None = None
    requirement: str | None = None
    environment: str | None = None
    kubernetes: str | None = None
    job: tuple[str, ...] | None = None
    ray_version: str | None = None

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise ConfigError(
                f"--provider must be one of {', '.join(PROVIDERS)}, but got {self.provider!r}"
            )
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                "--name must be at most 40 small letters, digits and hyphens, from a letter to a "
                f"letter or digit, but got {self.name!r}"
            )
        self._check_options()
        self._check_numbers()
        self._check_package()
        self._check_market()

    @property
    def fewest(self) -> int:
        """Workers that are always there."""
        every = len(self.worker_ips or ())
        return min(every, self.most) if self.min_workers is None else self.min_workers

    @property
    def most(self) -> int:
        """Workers, at most."""
        if self.max_workers is not None:
            return self.max_workers
        return len(self.worker_ips) if self.worker_ips else max(2, self.min_workers or 0)

    @property
    def on_spot(self) -> tuple[int, int]:
        """Fewest and most workers on spot machines."""
        if self._market == "on-demand":
            return 0, 0
        return (self.fewest if self._market == "spot" else 0), self.most

    @property
    def on_demand(self) -> tuple[int, int]:
        """Fewest and most workers on machines that stay."""
        return (0, 0) if self._market == "spot" else (self.fewest, self.most)

    @property
    def ray(self) -> str:
        """Version of Ray on the cluster."""
        return self.ray_version or importlib.metadata.version("ray")

    @property
    def package(self) -> str:
        """What pip installs, unless there is a wheel.

        Raises:
            ConfigError: this package runs without being installed, and so has no version.
        """
        if self.requirement is not None:
            return self.requirement
        try:
            return f"{_DISTRIBUTION}=={importlib.metadata.version(_DISTRIBUTION)}"
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                f"{_DISTRIBUTION} is not installed here, so that its version is not known: say "
                "what the machines shall install by --wheel FILE or --requirement SPEC"
            ) from None

    @property
    def _market(self) -> str:
        # Plain Kubernetes has no spot machines.
        plain = self.provider == "kuberay" and self.kubernetes is None
        return self.market or ("on-demand" if plain else "both")

    def _check_options(self) -> None:
        taken = _TAKEN[self.provider]
        others = set().union(*_TAKEN.values()) - taken
        fields = (each.name for each in dataclasses.fields(self))
        wrong = [name for name in fields if name in others and getattr(self, name) is not None]
        if wrong:
            fits = ", ".join(_option(name) for name in sorted(taken))
            why = ""
            if self.provider == "local" and "gpu_type" in wrong:
                why = "; Ray finds the GPUs of your machines by itself"
            raise ConfigError(
                f"--provider {self.provider} takes {fits}, but got {_option(wrong[0])}{why}"
            )
        needed = _NEEDED.get(self.provider, {})
        missing = [name for name in needed if not getattr(self, name)]
        if missing:
            said = ", ".join(f"{_option(name)} ({needed[name]})" for name in missing)
            raise ConfigError(f"--provider {self.provider} needs {said}")

    def _check_numbers(self) -> None:
        if not 0 <= self.fewest <= self.most:
            raise ConfigError(
                "0 <= --min-workers <= --max-workers must hold, but got "
                f"--min-workers {self.fewest} and --max-workers {self.most}"
            )
        if self.worker_ips and self.most > len(self.worker_ips):
            raise ConfigError(
                f"--max-workers must be at most the {len(self.worker_ips)} of --worker-ips, but "
                f"got {self.most}"
            )
        if self.idle_minutes <= 0:
            raise ConfigError(f"--idle-minutes must be above 0, but got {self.idle_minutes:g}")
        if self.disk_gb is not None and self.disk_gb < 50:
            raise ConfigError(
                f"--disk-gb must be at least 50, as torch alone takes 10, but got {self.disk_gb}"
            )

    def _check_package(self) -> None:
        given = [name for name in ("wheel", "requirement", "environment") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(
                "at most one of --wheel, --requirement and --environment must be given, but got "
                + " and ".join(_option(name) for name in given)
            )
        if self.wheel is not None and (self.wheel.suffix != ".whl" or not self.wheel.is_file()):
            raise ConfigError(
                f"--wheel must be a wheel of this package, but got {self.wheel}: make one by "
                "pip wheel --no-deps --wheel-dir dist ."
            )

    def _check_market(self) -> None:
        if self.market is not None and self.market not in MARKETS:
            raise ConfigError(
                f"--market must be one of {', '.join(MARKETS)}, but got {self.market!r}"
            )
        if self.kubernetes is not None and self.kubernetes not in node_labels():
            raise ConfigError(
                f"--kubernetes must be one of {', '.join(node_labels())}, but got "
                f"{self.kubernetes!r}"
            )
        if self.provider == "kuberay" and not self.kubernetes and self.market in ("spot", "both"):
            raise ConfigError(
                f"--market {self.market} needs --kubernetes ({', '.join(node_labels())}), as each "
                "names its spot machines in its own way"
            )
        if self.gpu_type == NO_GPU and self.gpus_per_worker:
            raise ConfigError(
                f"--gpus-per-worker needs a --gpu-type, but got {self.gpus_per_worker} of none"
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
