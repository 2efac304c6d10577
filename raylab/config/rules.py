"""The rule of a field in words, read from its type: for complaints and for help."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

__all__ = ["allows_null", "argument_rule", "choices_of", "is_text", "rule_of", "takes_choices"]

_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
}
"""Type: (one of it, many of it)."""


def rule_of(field: FieldInfo) -> str:
    """Return what the value of a field must be.

    >>> from raylab.config.pipeline import PipelineConfig
    >>> rule_of(PipelineConfig.model_fields["stages"])
    'a whole number >= 1 or a list of whole numbers >= 1'
    """
    return " or ".join(_rule(kind, field.metadata) for kind in _kinds(field.annotation))


def argument_rule(name: str, field: FieldInfo) -> str:
    """Return the rule of an argument of Python, with its name.

    >>> from raylab.config.pipeline import PipelineConfig
    >>> argument_rule("wait_s", PipelineConfig.model_fields["wait_s"])
    'wait_s > 0 must hold for a number'
    """
    kinds = [kind for kind in _kinds(field.annotation) if kind is not type(None)]
    if len(kinds) == 1 and _bare(kinds[0]) in (int, float):
        noun = _WORDS[_bare(kinds[0])][0]
        return f"{name}{_rule(kinds[0], field.metadata).removeprefix(noun)} must hold for {noun}"
    return f"{name} must be {rule_of(field)}"


def choices_of(field: FieldInfo) -> list[str]:
    """Return the words that a field may be, none if it is free."""
    literals = [kind for kind in _kinds(field.annotation) if get_origin(kind) is Literal]
    return [word for kind in literals for word in get_args(kind)]


def allows_null(field: FieldInfo) -> bool:
    """Return whether a field may be null."""
    return type(None) in _kinds(field.annotation)


def is_text(field: FieldInfo) -> bool:
    """Return whether a field takes words only, so that a value stands as it is typed."""
    kinds = [_bare(kind) for kind in _kinds(field.annotation) if kind is not type(None)]
    return all(kind is str or get_origin(kind) is Literal for kind in kinds)


def takes_choices(field: FieldInfo) -> bool:
    """Return whether a field takes one of a few words, or null, and nothing else."""
    kinds = [kind for kind in _kinds(field.annotation) if kind is not type(None)]
    return all(get_origin(kind) is Literal for kind in kinds)


def _kinds(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for each in get_args(annotation) for kind in _kinds(each)]
    return [annotation]


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _rule(kind: Any, metadata: list[Any], *, many: bool = False) -> str:
    if get_origin(kind) is Annotated:
        kind, *annotations = get_args(kind)
        # An alias such as Count keeps its range in a pydantic Field.
        metadata = [m for each in annotations for m in getattr(each, "metadata", [each])]
    if kind is type(None):
        return "null"
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return f"one of {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
    if get_origin(kind) is list:
        return f"a list of {_rule(get_args(kind)[0], [], many=True)}"
    if get_origin(kind) is dict:
        return "mappings" if many else "a mapping"
    words = _WORDS[kind][many] + "".join(_bounds(metadata))
    return words if many or kind is not str else "a text that is not empty"


def _bounds(metadata: list[Any]) -> list[str]:
    signs = (("ge", " >= "), ("gt", " > "), ("lt", " and < "), ("le", " and <= "))
    return [
        f"{sign}{getattr(each, name)}"
        for each in metadata
        for name, sign in signs
        if hasattr(each, name)
    ]
