"""Fill the package's templates in for a cluster that a person wants."""

from __future__ import annotations

import shlex
from typing import Any

from raylab.clusters.machines import NO_GPU, Machine, head_machine, node_labels, worker_machine
from raylab.clusters.order import ClusterOrder
from raylab.clusters.setup import AWS_PARAMETER, machine_values
from raylab.clusters.templates import fill, read_text
from raylab.errors import ConfigError

__all__ = ["ClusterOrder", "render"]

_DISK_GB = 200
_AWS_IMAGE = (
    AWS_PARAMETER + "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04"
    "/latest/ami-id"
)
_GCP_IMAGES = "projects/deeplearning-platform-release/global/images/family/"
_GCP_GPU_IMAGE = _GCP_IMAGES + "common-cu129-ubuntu-2404-nvidia-580"
_GCP_IMAGE = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
_AZURE_IMAGE = "microsoft-dsvm:ubuntu-hpc:2204:latest"
_CONTAINER = "rayproject/ray:{ray}-py312-{kind}"


def render(order: ClusterOrder) -> str:
    """Return the file that describes a cluster: for `ray up`, or for kubectl.

    Args:
        order: what is wanted.

    Raises:
        ConfigError: the provider has no such GPUs, or an image has not its form.
    """
    values = _VALUES[order.provider](order)
    name = order.provider
    if name == "kuberay":
        name = "raycluster" if order.job is None else "rayjob"
    return fill(read_text(f"{name}.yaml"), values)


def _worker(order: ClusterOrder) -> Machine:
    return worker_machine(order.provider, order.gpu_type or NO_GPU, order.gpus_per_worker)


def _cloud(order: ClusterOrder, image: str) -> dict[str, Any]:
    head, worker = head_machine(order.provider), _worker(order)
    return {
        **machine_values(order, image),
        **_counts(order),
        "max_workers": order.most,
        "head_machine": head.machine,
        "head_cpus": head.cpus,
        "worker_machine": worker.machine,
        "worker_cpus": worker.cpus,
        "worker_gpus": worker.gpus,
        "disk_gb": order.disk_gb or _DISK_GB,
    }


def _counts(order: ClusterOrder) -> dict[str, int]:
    spot, on_demand = order.on_spot, order.on_demand
    return {
        "spot_min": spot[0],
        "spot_max": spot[1],
        "on_demand_min": on_demand[0],
        "on_demand_max": on_demand[1],
    }


def _aws(order: ClusterOrder) -> dict[str, Any]:
    image = order.image or _AWS_IMAGE
    if not image.startswith(("ami-", AWS_PARAMETER)):
        raise ConfigError(
            f"--image of aws must be ami-… or {AWS_PARAMETER}…, but got {image!r}: it needs "
            "Python 3.10 or newer, and NVIDIA's driver for GPUs"
        )
    return {**_cloud(order, image), "region": order.region or "us-west-2", "image": image}


def _gcp(order: ClusterOrder) -> dict[str, Any]:
    worker = _worker(order)
    region = order.region or (order.zone or "us-central1-a").rpartition("-")[0]
    zone = order.zone or f"{region}-a"
    if zone.rpartition("-")[0] != region:
        raise ConfigError(f"--zone must be one of --region {region}, but got {zone}")
    asked = {"acceleratorType": worker.accelerator, "acceleratorCount": worker.gpus}
    return {
        **_cloud(order, ""),
        "region": region,
        "zone": zone,
        "project": order.project,
        "accelerators": [asked] if worker.accelerator else [],
        "head_image": order.image or _GCP_IMAGE,
        "image": order.image or (_GCP_GPU_IMAGE if worker.gpus else _GCP_IMAGE),
    }


def _azure(order: ClusterOrder) -> dict[str, Any]:
    image = (order.image or _AZURE_IMAGE).split(":")
    if len(image) != 4:
        raise ConfigError(
            f"--image of azure must be PUBLISHER:OFFER:SKU:VERSION, but got {order.image!r}"
        )
    parts = zip(("publisher", "offer", "sku", "version"), image, strict=True)
    return {
        **_cloud(order, ""),
        "region": order.region or "westus2",
        "resource_group": order.resource_group or order.name,
        **{f"image_{part}": text for part, text in parts},
    }


def _local(order: ClusterOrder) -> dict[str, Any]:
    return {
        **machine_values(order),
        "min_workers": order.fewest,
        "max_workers": order.most,
        "head_ip": order.head_ip,
        "worker_ips": list(order.worker_ips or ()),
        "ssh_key": order.ssh_key or "~/.ssh/id_ed25519",
    }


def _kuberay(order: ClusterOrder) -> dict[str, Any]:
    head, worker = head_machine("kuberay"), _worker(order)
    given = {"cpu": str(worker.cpus), "memory": f"{worker.memory_gib}Gi"}
    product = {"nvidia.com/gpu.product": worker.machine} if worker.gpus else {}
    if worker.gpus:
        given["nvidia.com/gpu"] = str(worker.gpus)
    labels = node_labels().get(order.kubernetes or "", {"spot": {}, "on_demand": {}})
    kinds = {"head": "cpu", "worker": "gpu" if worker.gpus else "cpu"}
    images = {
        who: order.image or _CONTAINER.format(ray=order.ray, kind=kind)
        for who, kind in kinds.items()
    }
    # An image that was chosen has the package, unless more is asked for.
    installs = order.image is None or order.requirement is not None
    # Ray's own niceness of workers, 15, would give them what every other process leaves.
    environment = [{"name": "RAY_worker_niceness", "value": "0"}]
    environment += [{"name": "PYTHONUSERBASE", "value": "/packages"}] if installs else []
    installers = {
        f"{who}_installers": [_installer(image, order.package)] if installs else []
        for who, image in images.items()
    }
    # KubeRay itself asks a job's dashboard how it goes, from another pod.
    inside = {"dashboard-host": "127.0.0.1"} if order.job is None else {}
    return {
        **_counts(order),
        **installers,
        "name": order.name,
        "ray_version": order.ray,
        "idle_s": round(60 * order.idle_minutes),
        "head_params": inside,
        "head_cpus": str(head.cpus),
        "head_memory": f"{head.memory_gib}Gi",
        "head_image": images["head"],
        "image": images["worker"],
        "environment": environment,
        "worker_limits": given,
        "spot_nodes": {**product, **labels["spot"]},
        "on_demand_nodes": {**product, **labels["on_demand"]},
        "entrypoint": shlex.join(["python", "-m", "raylab", *(order.job or ())]),
    }


def _installer(image: str, package: str) -> dict[str, Any]:
    """Return the container that installs the package beside what its image has."""
    return {
        "name": "install",
        "image": image,
        "command": ["pip", "install", "--user", "--no-cache-dir", package],
        "env": [{"name": "PYTHONUSERBASE", "value": "/packages"}],
        "volumeMounts": [{"name": "packages", "mountPath": "/packages"}],
    }


_VALUES = {"aws": _aws, "azure": _azure, "gcp": _gcp, "kuberay": _kuberay, "local": _local}
