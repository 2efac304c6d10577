"""Files and command lines into configurations; every complaint names rule, value and way out.

FILE.yaml -- read_yaml --> mapping -- apply_pairs(key=value ...) --> mapping
                                   -- run_config --> the configuration of its family
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raylab.config.averaging import AVERAGING_METHODS, AveragingSimulationConfig
from raylab.config.families import ALL_METHODS, RunConfiguration, family_of
from raylab.config.parameter_server import EPISODES, SHARED
from raylab.config.pipeline import METHODS, PipelineConfig
from raylab.config.rules import allows_null, choices_of, is_text, rule_of
from raylab.config.simulation import SIMULATED, SimulationConfig
from raylab.documents import MOST_DEPTH, BoundedLoader, read_text, shown
from raylab.errors import ConfigError

__all__ = [
    "apply_pairs",
    "checked",
    "lay",
    "load_yaml",
    "pipeline_config",
    "read_yaml",
    "run_config",
    "shown",
    "simulation_config",
]

C = TypeVar("C", bound=BaseModel)

_NO_NUL = "a text without NUL characters"
_LONGEST_WORD = 80
_FLOAT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(BoundedLoader):
    """The bounded loader, for which 1e-3 is a number and a repeated key a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = key_node.value
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(key)} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, wants a dot in every float.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping that a YAML file holds.

    Raises:
        ConfigError: there is no such file, or it is not YAML, or not a mapping of names.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"a configuration must be a file, but there is none at {path}") from None
    except (OSError, ValueError) as error:  # ValueError: no text, or a NUL in the path
        raise ConfigError(
            f"a configuration must be a readable text file, but {path} is not: {error}"
        ) from error
    return load_yaml(text, str(path))


def load_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping that `text` holds; `source` says in complaints where it comes from.

    >>> load_yaml("lr: 1e-3", "here")
    {'lr': 0.001}
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2024-02-31, which is no date
        raise ConfigError(f"a configuration must be YAML, but {source}{_place(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(
            f"a configuration must be a mapping, one `key: value` a line, but {source} holds "
            f"{shown(content)}"
        )
    return content


def apply_pairs(
    base: Mapping[str, Any],
    pairs: Sequence[str],
    fields: Mapping[str, FieldInfo] | None = None,
) -> dict[str, Any]:
    """Return `base` with key=value pairs laid over it, in their order.

    A dotted key reaches into a mapping and leaves its other keys as they are. How a value is read
    depends on `fields`; None: the keys of the method's family.

    >>> apply_pairs({"model_options": {"block": "basic"}}, ["model_options.width=16", "lr=1e-3"])
    {'model_options': {'block': 'basic', 'width': 16}, 'lr': 0.001}

    Raises:
        ConfigError: something is not key=value, or its value is not YAML.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(base))
    if fields is None:
        asked = [pair.partition("=")[2] for pair in pairs if pair.startswith("method=")]
        fields = family_of({**merged, **({"method": asked[-1]} if asked else {})}).fields
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key or not all(key.split(".")):
            example = f"{key}=VALUE" if key in fields else "epochs=3"
            raise ConfigError(
                f"a setting must be key=value, such as {example}, but got {shown(pair)}"
            )
        lay(merged, key, _value(fields, key, text))
    return merged


def lay(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a key in `values`; a dotted one reaches into a mapping, which is made if it is missing.

    Raises:
        ConfigError: what it reaches into is no mapping.
    """
    *outer, last = key.split(".")
    if len(outer) >= MOST_DEPTH:
        raise ConfigError(
            f"a key must reach at most {MOST_DEPTH} mappings deep, but got one that reaches "
            f"{len(outer) + 1}: {shown(key)}"
        )
    inside = values
    for depth, name in enumerate(outer, start=1):
        inside = inside.setdefault(name, {})
        if not isinstance(inside, dict):
            raise ConfigError(
                f"`{'.'.join(outer[:depth])}` must be a mapping for {key} to be set, but it "
                f"is {shown(inside)}"
            )
    inside[last] = value


def run_config(values: Mapping[str, Any]) -> RunConfiguration:
    """Return the validated configuration, of the family that the method belongs to.

    Raises:
        ConfigError: keys are unknown, or values of the wrong type or out of range; every one of
            them has its line in the message.
    """
    return checked(family_of(values).config, values)


def pipeline_config(values: Mapping[str, Any]) -> PipelineConfig:
    """Return the validated configuration of a pipeline.

    Raises:
        ConfigError: as `run_config`, or the method is none of a pipeline's.
    """
    config = run_config(values)
    if not isinstance(config, PipelineConfig):
        raise ConfigError(
            f"`method` must be a pipeline's, one of {', '.join(METHODS)}, but got {config.method}"
        )
    return config


def simulation_config(
    values: Mapping[str, Any],
) -> SimulationConfig | AveragingSimulationConfig:
    """Return the validated configuration of a simulation.

    Raises:
        ConfigError: as `run_config`, or the method is one that is not simulated.
    """
    method = values.get("method", "dis_dfsdca")
    if not isinstance(method, str):
        return checked(SimulationConfig, values)
    if method in AVERAGING_METHODS:
        return checked(AveragingSimulationConfig, values)
    for key, alien in (("method", SHARED), ("problem", EPISODES)):
        if values.get(key) == alien:
            raise ConfigError(
                f"what is simulated must send messages about rows of data, but got {key}={alien}: "
                "raylab train runs it"
            )
    if values.get("coordinates") is not None:
        raise ConfigError(
            f"coordinates are of {SHARED}, which is not simulated, but got "
            f"coordinates={values['coordinates']}: leave that out"
        )
    if method in METHODS:
        raise ConfigError(
            f"`method` must be one of {', '.join([*AVERAGING_METHODS, *SIMULATED])}, but "
            f"got {method}, which is a pipeline's: raylab plan pipeline {method} predicts it"
        )
    return checked(SimulationConfig, values)


def checked(kind: type[C], values: Mapping[str, Any], inside: str = "") -> C:
    """Return the model of `values`.

    Args:
        kind: of the model.
        values: by key.
        inside: in which mapping they stand, for complaints, with a dot at its end.

    Raises:
        ConfigError: keys are unknown, or values of the wrong type or out of range.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        # A union complains once for each of its types; the rule of the key says it all in one.
        keys = dict.fromkeys(str(each["loc"][0]) for each in error.errors())
        fields = kind.model_fields
        lines = [_complaint(fields, key, values.get(key), inside) for key in keys]
        raise ConfigError("\n".join(lines)) from None


def _value(fields: Mapping[str, FieldInfo], key: str, text: str) -> Any:
    field = fields.get(key)
    if field is not None and is_text(field):
        # As typed: a name such as 007 or a folder ~ means something else in YAML.
        return None if text in ("", "null") and allows_null(field) else text
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"the value of a key must be YAML, but {key}={text[:_LONGEST_WORD]}{_place(error)}: "
            "quote it for the shell if it has spaces or brackets"
        ) from None


def _complaint(fields: Mapping[str, FieldInfo], key: str, value: Any, inside: str) -> str:
    field = fields.get(key)
    if key == "method":
        close = _close(value, ALL_METHODS)
        hint = f": did you mean {close[0]}?" if close else ""
        return f"`method` must be one of {', '.join(ALL_METHODS)}, but got {shown(value)}{hint}"
    if field is None:
        close = difflib.get_close_matches(key[:_LONGEST_WORD], fields, n=1)
        hint = (
            f"did you mean {inside}{close[0]}?" if close else "raylab train --help lists the keys"
        )
        if inside and not close:
            hint = f"there are {', '.join(fields)}"
        return f"a key must be one that is known, but got `{inside}{key[:_LONGEST_WORD]}`: {hint}"
    close = _close(value, choices_of(field))
    hint = f": did you mean {close[0]}?" if close else ""
    rule = _NO_NUL if isinstance(value, str) and "\0" in value else rule_of(field)
    return f"`{inside}{key}` must be {rule}, but got {shown(value)}{hint}"


def _close(value: Any, words: Iterable[str]) -> list[str]:
    """Return the word that was meant, if one is like it."""
    if not isinstance(value, str) or len(value) > _LONGEST_WORD:
        return []
    return difflib.get_close_matches(value, words, n=1, cutoff=0.4)


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f" is not: {problem}"
    return f" is not, line {mark.line + 1}, column {mark.column + 1}: {problem}"
