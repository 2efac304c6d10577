"""Check a cluster's file without a cloud: what can be known before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raylab.clusters import kuberay, ray_up
from raylab.clusters.templates import placeholders
from raylab.documents import documents, read_text
from raylab.errors import ConfigError

__all__ = ["Checked", "check_file"]


_MOST_SAID = 30


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A file that can be used.

    Attributes:
        kind: "ray up", "RayCluster" or "RayJob".
        provider: whose machines it asks for.
        workers: fewest and most, by type.
        notes: what may have to be done on this machine before it is used.
    """

    kind: str
    provider: str
    workers: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()


def check_file(path: Path) -> Checked:
    """Check a file for `ray up`, or one with a RayCluster or RayJob for kubectl.

    Args:
        path: of a YAML file.

    Raises:
        ConfigError: it cannot be used; the message lists all that is wrong.
    """
    text = _read(path)
    left = [
        f"a value must stand for ${{{name}}}: raylab cluster render gives it"
        for name in placeholders(text)
    ]
    if left:
        # What stands in the place of a number may not even be YAML.
        raise _refused(path, left)
    parsed = _parsed(path, text)
    manifests = [each for each in parsed if each.get("kind") in kuberay.KINDS]
    if manifests:
        problems = [line for each in manifests for line in kuberay.problems(each)]
    elif len(parsed) == 1 and "kind" not in parsed[0]:
        problems = ray_up.problems(parsed[0])
    else:
        problems = ["it must be a file for ray up, or have a RayCluster or a RayJob"]
    if problems:
        raise _refused(path, problems)
    if manifests:
        kinds = " and ".join(str(each["kind"]) for each in manifests)
        workers = {name: n for each in manifests for name, n in kuberay.workers(each).items()}
        return Checked(kind=kinds, provider="kuberay", workers=workers)
    config = parsed[0]
    return Checked(
        kind="ray up",
        provider=config["provider"]["type"],
        workers=ray_up.workers(config),
        notes=tuple(ray_up.notes(config)),
    )


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"a cluster's file must be readable, but {path} is not: {error}"
        ) from None


def _parsed(path: Path, text: str) -> list[Mapping[str, Any]]:
    try:
        found = [each for each in documents(text) if each is not None]
    except yaml.YAMLError as error:
        raise ConfigError(f"a cluster's file must be YAML, but {path} is not: {error}") from None
    if not found or not all(isinstance(each, Mapping) for each in found):
        raise ConfigError(f"a cluster's file must hold keys and values, but {path} does not")
    return found


def _refused(path: Path, problems: list[str]) -> ConfigError:
    said = list(dict.fromkeys(problems))
    more = [f"… and {len(said) - _MOST_SAID} more"] if len(said) > _MOST_SAID else []
    lines = "\n".join(f"- {line}" for line in [*said[:_MOST_SAID], *more])
    return ConfigError(f"{path} cannot be used:\n{lines}")
