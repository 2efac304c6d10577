"""Which machine of a provider has which GPUs, from the package's machines.yaml."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from raylab.clusters.templates import read_data
from raylab.errors import ConfigError

__all__ = ["NO_GPU", "Machine", "gpu_types", "head_machine", "node_labels", "worker_machine"]

NO_GPU = "none"
"""The type of GPU of workers that have none."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine, or what a pod asks for.

    Attributes:
        machine: the provider's name for it; of a pod: the label of its GPU.
        cpus: that Ray may hand out.
        gpus: that Ray may hand out.
        memory_gib: of a pod; 0: the machine has what it has.
        accelerator: what has to be asked for beside the machine to get its GPUs; empty: nothing.
    """

    machine: str
    cpus: int
    gpus: int = 0
    memory_gib: int = 0
    accelerator: str = ""


def head_machine(provider: str) -> Machine:
    """Return the machine of a head."""
    return Machine(**_of(provider)["head"])


def gpu_types(provider: str) -> dict[str, list[Machine]]:
    """Return the machines of workers by their type of GPU, the default one first."""
    known = _of(provider)
    listed = {NO_GPU: known["none"], **known["gpu"]}
    return {name: [Machine(**each) for each in machines] for name, machines in listed.items()}


def worker_machine(provider: str, gpu_type: str, gpus: int | None) -> Machine:
    """Return the machine of workers.

    Args:
        provider: a name in machines.yaml.
        gpu_type: of its GPUs.
        gpus: on each machine; None: the default machine of that type.

    Raises:
        ConfigError: there is no such machine; the message lists what there is.
    """
    types = gpu_types(provider)
    if gpu_type not in types:
        close = difflib.get_close_matches(gpu_type.lower(), types, n=1, cutoff=0.5)
        hint = f": did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"--gpu-type must be one that {provider} has ({', '.join(types)}), but got "
            f"{gpu_type!r}{hint}"
        )
    machines = types[gpu_type]
    if gpus is None:
        return machines[0]
    for each in machines:
        if each.gpus == gpus:
            return each
    there = ", ".join(f"{each.gpus} ({each.machine})" for each in machines if each.gpus) or "0"
    raise ConfigError(
        f"--gpus-per-worker must be a number that {provider} has with {gpu_type}, {there}, but "
        f"got {gpus}"
    )


def node_labels() -> dict[str, dict[str, dict[str, str]]]:
    """Return the labels of spot and on-demand nodes, by the make of Kubernetes."""
    labels: dict[str, dict[str, dict[str, str]]] = read_data("machines.yaml")["nodes"]
    return labels


def _of(provider: str) -> dict[str, Any]:
    known: dict[str, Any] = read_data("machines.yaml")[provider]
    return known
