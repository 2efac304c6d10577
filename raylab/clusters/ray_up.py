"""What can be wrong with a file for `ray up`: Ray's own schema, and what it does not look at."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylab.documents import shown

__all__ = ["LOOPBACK", "notes", "problems", "schema_problem", "workers"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that nobody else reaches."""

_TOKEN = ".ray/auth_token"  # noqa: S105 - where it is, not what it is
_MODE = re.compile(r"(^|[\s;&(])RAY_AUTH_MODE=([\"']?)token\2([\s;&]|$)")
_LEFT = re.compile(r"<[^<>]*>|CHANGE[_-]?ME|YOUR[_-].*", re.IGNORECASE)
# What Ray's providers read beside the keys in its schema.
_MORE_KEYS = {
    "aws": {"aws_credentials", "key_pair", "use_internal_ips", "ssh_keys"},
    "azure": {"unique_id", "subnet_mask", "use_external_head_ip", "msi_name", "msi_resource_group"},
    "gcp": set(),
    "local": {"coordinator_address"},
}
_NEEDED = {
    "aws": ("region",),
    "azure": ("location", "resource_group"),
    "gcp": ("region", "availability_zone", "project_id"),
}


def problems(config: Mapping[str, Any]) -> list[str]:
    """Return what is wrong, a line each.

    Args:
        config: what the file holds.
    """
    provider = config.get("provider")
    if not isinstance(provider, Mapping) or not isinstance(provider.get("type"), str):
        return [f"provider.type must be a name such as aws, but got {shown(provider)}"]
    found = [*_provider(provider), *_unfilled(config)]
    try:
        prepared = _prepared(config)
    except _RefusedError as error:
        return [*found, str(error)]
    found += _node_types(prepared)
    found += _token(prepared)
    found += _start(prepared)
    if provider["type"] == "local":
        found += _own_machines(config, prepared)
    if provider["type"] == "aws":
        found += _instances(prepared)
    return found


def workers(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the fewest and most workers of each type, of a file without problems."""
    prepared = _prepared(config)
    head = prepared["head_node_type"]
    types = prepared["available_node_types"]
    local = config["provider"]["type"] == "local"
    return {
        name: (each["min_workers"], each["max_workers"])
        for name, each in types.items()
        if local or name != head
    }


def notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Say what this machine has not that the file names."""
    for local in config.get("file_mounts", {}).values():
        if not Path(local).expanduser().exists():
            way_out = ": make one by ray get-auth-token --generate" if _TOKEN in local else ""
            yield f"{local} is not on this machine{way_out}"


class _RefusedError(Exception):
    """Ray does not take the file."""


def _prepared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Ray makes of the file, with all defaults, after its own checks."""
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    try:
        # Ray prints its complaints, and its warnings.
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            prepared: dict[str, Any] = prepare_config(copy.deepcopy(dict(config)))
            validate_config(prepared)
    except jsonschema.ValidationError as error:
        raise _RefusedError(schema_problem(error)) from None
    except (click.ClickException, SystemExit):
        lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        raise _RefusedError(" ".join(lines) or "Ray refuses it") from None
    except KeyError as error:
        raise _RefusedError(f"the key {error} must be there") from None
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise _RefusedError(f"Ray says: {error}") from None
    return prepared


def schema_problem(error: Any) -> str:
    """Return a complaint of jsonschema in a line: where, and what.

    Args:
        error: a jsonschema.ValidationError.
    """
    where = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path
    ).lstrip(".")
    what = error.message
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        wrong = [name for name in error.instance if name not in known]
        hints = [difflib.get_close_matches(str(name), known, n=1) for name in wrong]
        what = "; ".join(
            f"there is no key {name}" + (f": did you mean {hint[0]}?" if hint else "")
            for name, hint in zip(wrong, hints, strict=True)
        )
    if len(what) > 300:
        what = f"{what[:300]}…"
    return f"{where}: {what}" if where else what


def _provider(provider: Mapping[str, Any]) -> Iterator[str]:
    kind = provider["type"]
    if kind not in _MORE_KEYS:
        return
    known = _schema_keys() | _MORE_KEYS[kind]
    for key in provider:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            yield f"provider: there is no key {key}{hint}"
    for key in _NEEDED.get(kind, ()):
        if not provider.get(key):
            yield f"provider.{key} must be given for {kind}"


def _schema_keys() -> set[str]:
    import ray.autoscaler

    schema = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    return set(json.loads(schema.read_text())["properties"]["provider"]["properties"])


def _unfilled(part: Any, where: str = "") -> Iterator[str]:
    """Find what a person was to fill in."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from _unfilled(value, f"{where}.{key}" if where else str(key))
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from _unfilled(value, f"{where}[{index}]")
    elif isinstance(part, str) and _LEFT.fullmatch(part.strip()):
        yield f"{where} must be filled in, but got {part}"


def _node_types(config: Mapping[str, Any]) -> Iterator[str]:
    for name, each in config["available_node_types"].items():
        fewest, most = each["min_workers"], each["max_workers"]
        if not 0 <= fewest <= most:
            yield (
                f"available_node_types.{name}: 0 <= min_workers <= max_workers must hold, but got "
                f"{fewest} and {most}"
            )


def _token(config: Mapping[str, Any]) -> Iterator[str]:
    if not any(str(remote).endswith(_TOKEN) for remote in config["file_mounts"]):
        yield (
            f"file_mounts must bring the token to ~/{_TOKEN}, or anybody in the network may use "
            f"the cluster: add ~/{_TOKEN}: ~/{_TOKEN}"
        )


def _start(config: Mapping[str, Any]) -> Iterator[str]:
    for key, wanted in (("head_start_ray_commands", "--head"), ("worker_start_ray_commands", "")):
        starts = [each for each in config[key] if re.search(r"\bray start\b", each)]
        if not starts:
            yield f"{key} must have a ray start {wanted}".rstrip()
        for each in starts:
            before = each[: each.index("ray start")]
            if not _MODE.search(before):
                yield (
                    f"{key} must start Ray with RAY_AUTH_MODE=token, as only the head finds the "
                    f"token by itself, but got {shown(each)}"
                )
        if wanted:
            yield from _head_start(starts)


def _head_start(starts: Sequence[str]) -> Iterator[str]:
    for each in starts:
        words = _words(each[each.index("ray start") :])
        if "--head" not in words:
            yield f"head_start_ray_commands must start Ray with --head, but got {shown(each)}"
        if not _values(words, "--autoscaling-config"):
            yield (
                "head_start_ray_commands must start Ray with "
                "--autoscaling-config=~/ray_bootstrap_config.yaml, or no worker comes"
            )
        hosts = _values(words, "--dashboard-host")
        if any(host not in LOOPBACK for host in hosts):
            yield (
                f"--dashboard-host must be {LOOPBACK[0]}, but got {hosts[-1]}: "
                "ray dashboard FILE makes a tunnel to it"
            )


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _values(words: Sequence[str], option: str) -> list[str]:
    """Return what an option is given as, both as --option=value and as --option value."""
    joined = [word.split("=", 1)[1] for word in words if word.startswith(f"{option}=")]
    apart = [after for word, after in itertools.pairwise(words) if word == option]
    return [value.rstrip(";") for value in (*joined, *apart)]


def _own_machines(config: Mapping[str, Any], prepared: Mapping[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    if "coordinator_address" in provider:
        return
    addresses = [provider["head_ip"], *provider["worker_ips"]]
    twice = sorted({str(each) for each in addresses if addresses.count(each) > 1})
    if twice:
        said = ", ".join(twice)
        yield f"a machine must stand once in head_ip and worker_ips, but got {said} twice"
    if config.get("max_workers", 0) > len(provider["worker_ips"]):
        yield (
            f"max_workers must be at most the {len(provider['worker_ips'])} of worker_ips, but got "
            f"{config['max_workers']}"
        )
    starts = [each for each in prepared["head_start_ray_commands"] if "ray start" in each]
    if not all("RAY_enable_autoscaler_v2=0" in each for each in starts):
        yield (
            "head_start_ray_commands must start Ray with RAY_enable_autoscaler_v2=0: the newer "
            "autoscaler counts the head as a worker, and leaves one out"
        )


def _instances(config: Mapping[str, Any]) -> Iterator[str]:
    """Hold what AWS is asked for against the description of its interface that comes with boto3."""
    try:
        from botocore.loaders import Loader
        from botocore.model import ServiceModel
        from botocore.validate import ParamValidator
    except ImportError:
        return
    model = ServiceModel(Loader().load_service_model("ec2", "service-2"), "ec2")
    shape = model.operation_model("RunInstances").input_shape
    for name, each in config["available_node_types"].items():
        # These two are Ray's, and how many machines are asked for is, too.
        asked = {key: value for key, value in each["node_config"].items() if key != "SubnetIds"}
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **asked}, shape)
        if report.has_errors():
            lines = " ".join(report.generate_report().split("\n"))
            yield f"available_node_types.{name}.node_config: {lines}"
