"""What can be wrong with a RayCluster or RayJob: KubeRay's schema, and what is no part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raylab.clusters.ray_up import LOOPBACK, schema_problem
from raylab.clusters.templates import read_data
from raylab.documents import shown

__all__ = ["KINDS", "problems", "workers"]

KINDS = ("RayCluster", "RayJob")


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """Return what is wrong, a line each.

    Args:
        manifest: a document whose kind is one of KINDS.
    """
    found = list(_envelope(manifest))
    misfits = list(_misfits(manifest))
    if misfits:
        return [*found, *misfits]
    cluster = _cluster(manifest)
    if cluster is None:
        return found
    return [*found, *_scaling(cluster), *_guarded(cluster, manifest["kind"])]


def workers(manifest: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the fewest and most workers of each group, of a manifest without problems."""
    return {
        each["groupName"]: (each.get("minReplicas", 0), each.get("maxReplicas", 2**31 - 1))
        for each in (_cluster(manifest) or {}).get("workerGroupSpecs", [])
    }


def _envelope(manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion must be ray.io/v1, but got {shown(manifest.get('apiVersion'))}"
    metadata = manifest.get("metadata")
    if not isinstance(metadata, Mapping) or not (
        metadata.get("name") or metadata.get("generateName")
    ):
        yield "metadata.name must be given"
    for key in manifest:
        if key not in ("apiVersion", "kind", "metadata", "spec"):
            yield f"there is no key {key}"


def _misfits(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Hold the specification against KubeRay's own schema."""
    import jsonschema

    schema = read_data("kuberay_schema.json")
    if manifest["kind"] == "RayCluster":
        part = schema["properties"]["rayClusterSpec"]
        schema = {"definitions": schema["definitions"], **part}
    validator = jsonschema.Draft7Validator(schema)
    for error in validator.iter_errors(manifest.get("spec")):
        yield f"spec.{schema_problem(error)}"


def _cluster(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the cluster's part; None: the job goes to a cluster that is there."""
    spec: Mapping[str, Any] = manifest["spec"]
    if manifest["kind"] == "RayCluster":
        return spec
    return None if spec.get("clusterSelector") else spec.get("rayClusterSpec", {})


def _scaling(cluster: Mapping[str, Any]) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "enableInTreeAutoscaling must be true, or no worker comes with the work"
    for each in cluster.get("workerGroupSpecs", []):
        fewest = each.get("minReplicas", 0)
        first = each.get("replicas", fewest)
        most = each.get("maxReplicas", 2**31 - 1)
        if not 0 <= fewest <= first <= most:
            yield (
                f"workerGroupSpecs {each['groupName']}: 0 <= minReplicas <= replicas <= "
                f"maxReplicas must hold, but got {fewest}, {first} and {most}"
            )


def _guarded(cluster: Mapping[str, Any], kind: str) -> Iterator[str]:
    mode = cluster.get("authOptions", {}).get("mode")
    if mode != "token":
        yield (
            f"authOptions.mode must be token, or any pod may use the cluster, but got {mode!r:.80}"
        )
    host = cluster.get("headGroupSpec", {}).get("rayStartParams", {}).get("dashboard-host")
    # KubeRay asks a job's dashboard how it goes; without a host it takes 0.0.0.0.
    if kind == "RayCluster" and host not in LOOPBACK:
        yield (
            f"headGroupSpec.rayStartParams.dashboard-host must be {LOOPBACK[0]}, but got "
            f"{host!r:.80}: kubectl port-forward reaches it"
        )
