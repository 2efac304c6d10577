"""Make kuberay_schema.json from KubeRay's definition of RayJob, which holds RayCluster's, too.

    python -m cluster.kuberay_schema v1.7.0 ray.io_rayjobs.yaml > cluster/kuberay_schema.json

The definition is config/crd/bases/ray.io_rayjobs.yaml of KubeRay's operator
(https://github.com/ray-project/kuberay, Apache-2.0). What it says of the state of a job and of
itself is left out, equal parts are written once, and keys that it does not know are refused, as
kubectl does.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = ["shortened"]

_SOURCE = (
    "openAPIV3Schema of RayJob's spec, from ray.io_rayjobs.yaml of KubeRay {version} "
    "(https://github.com/ray-project/kuberay, Apache-2.0), shortened by cluster/kuberay_schema.py"
)
_WORTH_SHARING = 200
"""Characters of a part from which on it is written once."""
_RULES = {"additionalProperties", "anyOf", "enum", "pattern", "required", "type"} | {
    f"{end}{what}" for end in ("min", "max") for what in ("imum", "Length", "Items")
}


def shortened(definition: dict[str, Any], version: str) -> dict[str, Any]:
    """Return a JSON schema of a RayJob's spec, with its equal parts under `definitions`.

    Args:
        definition: a CustomResourceDefinition.
        version: of KubeRay.
    """
    found = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    spec = _kept(found["schema"]["openAPIV3Schema"]["properties"]["spec"])
    counts: dict[str, int] = {}
    _count(spec, counts)
    parts = _Parts(counts)
    shared = parts.shared(spec, "spec")
    return {
        "$comment": _SOURCE.format(version=version),
        **shared,
        "definitions": dict(sorted(parts.definitions.items())),
    }


def _kept(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a part without what only a server of Kubernetes uses, strict about unknown keys."""
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            kept[key] = {name: _kept(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            kept[key] = _kept(value)
        elif key in _RULES:
            kept[key] = value
    if "required" in kept:
        # A server fills defaults in before it looks.
        given = [name for name in kept["required"] if "default" not in schema["properties"][name]]
        kept["required"] = given
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def _count(part: Any, counts: dict[str, int]) -> None:
    for each in _parts_of(part):
        text = json.dumps(each, sort_keys=True)
        counts[text] = counts.get(text, 0) + 1
        if counts[text] == 1:
            _count(each, counts)


def _parts_of(part: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [part.get(key) for key in ("items", "additionalProperties")]
    return [
        *part.get("properties", {}).values(),
        *(each for each in inner if isinstance(each, dict)),
    ]


class _Parts:
    """Moves what occurs more than once to `definitions`."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts
        self._names: dict[str, str] = {}
        self.definitions: dict[str, Any] = {}

    def shared(self, part: dict[str, Any], name: str) -> dict[str, Any]:
        text = json.dumps(part, sort_keys=True)
        if self._counts.get(text, 0) < 2 or len(text) < _WORTH_SHARING:
            return self._within(part, name)
        if text not in self._names:
            taken = set(self._names.values())
            named = next(each for each in _names(name) if each not in taken)
            self._names[text] = named
            self.definitions[named] = self._within(part, name)
        return {"$ref": f"#/definitions/{self._names[text]}"}

    def _within(self, part: dict[str, Any], name: str) -> dict[str, Any]:
        inner = dict(part)
        if "properties" in part:
            inner["properties"] = {
                key: self.shared(value, key) for key, value in part["properties"].items()
            }
        for key in ("items", "additionalProperties"):
            if isinstance(part.get(key), dict):
                inner[key] = self.shared(part[key], name)
        return inner


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}{number}" for number in itertools.count(2))


def _lines(schema: dict[str, Any]) -> str:
    """Return a schema as JSON, with a line for each definition."""
    head = json.dumps({key: part for key, part in schema.items() if key != "definitions"})
    definitions = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(part)}" for name, part in schema["definitions"].items()
    )
    return f'{head[:-1]},\n"definitions": {{\n{definitions}\n}}}}\n'


if __name__ == "__main__":
    made = shortened(yaml.safe_load(Path(sys.argv[2]).read_text(encoding="utf-8")), sys.argv[1])
    sys.stdout.write(_lines(made))
