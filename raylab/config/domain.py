"""What a search may choose for one key of a run.

lr: {uniform: [0.001, 1.0], log: true}     a number, both ends included
tau: {int: [1, 16], log: true}             a whole number
delay: {int: [0, 15], below: tau}          less than what was chosen for tau
accumulate: {choice: [1, 2, 4]}            one of these
xi: {uniform: [0, 0.9], when: {method: dasgd}}    only where others are so; else as in train
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raylab.documents import shown
from raylab.errors import ConfigError

__all__ = ["Domain", "domain_of", "is_number"]

_LARGEST = 2**63
_KINDS = ("uniform", "int", "choice")
_FORMS = (
    "{uniform: [LOW, HIGH]}, {int: [LOW, HIGH]} or {choice: [A, B]}, the first two with log: true "
    "or step: S, an int with below: KEY, and each with when: {KEY: VALUE}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What a key may be.

    Args:
        key: of a run; a dotted one reaches into a mapping.
        kind: how it is said.
        low: the least number.
        high: the largest one.
        log: magnitudes are as likely as each other, not numbers.
        step: between two numbers; None: of whole ones 1, else any.
        choices: of a choice.
        below: key that an int stays below; None: there is none.
        when: values of other keys without which this one is not chosen.
    """

    key: str
    kind: Literal["uniform", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    below: str | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be possible for all between them to be."""
        if self.kind == "choice":
            return self.choices
        kind = int if self.kind == "int" else float
        return kind(self.low), kind(self.high)

    @property
    def labels(self) -> tuple[Any, ...]:
        """The choices as a study keeps them: a list or a mapping as its JSON."""
        return tuple(map(_label, self.choices))

    def label(self, value: Any) -> Any:
        """Return a value as a study keeps it."""
        return _label(value) if self.kind == "choice" else value

    def value(self, label: Any) -> Any:
        """Return the value that a study keeps as `label`."""
        if self.kind != "choice":
            return label
        return dict(zip(map(repr, self.labels), self.choices, strict=True))[repr(label)]

    def holds(self, value: Any) -> bool:
        """Tell whether a value is one of these."""
        if self.kind == "choice":
            return repr(_label(value)) in map(repr, self.labels)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return self.low <= value <= self.high and (self.kind == "uniform" or value == int(value))


def domain_of(key: str, rule: Any) -> Domain:
    """Return what a key may be, as one line of YAML says it.

    Raises:
        ConfigError: it says nothing that can be chosen from.
    """
    if not isinstance(rule, Mapping):
        raise ConfigError(f"`space.{key}` must be {_FORMS}, but got {shown(rule)}")
    kinds = [kind for kind in _KINDS if kind in rule]
    others = set(rule) - {*kinds, "log", "step", "below", "when"}
    if len(kinds) != 1 or others:
        close = [difflib.get_close_matches(str(o), [*_KINDS, "log", "below"], n=1) for o in others]
        hint = "".join(f": did you mean {each[0]}?" for each in close if each)
        raise ConfigError(f"`space.{key}` must be {_FORMS}, but got {shown(dict(rule))}{hint}")
    kind = kinds[0]
    when = _conditions(key, rule.get("when", {}))
    if kind == "choice":
        return _choice(key, rule, when)
    low, high = _range(key, kind, rule[kind])
    log, step, below = rule.get("log", False), rule.get("step"), rule.get("below")
    if not isinstance(log, bool):
        raise ConfigError(f"`space.{key}.log` must be true or false, but got {shown(log)}")
    if log and low <= 0:
        raise ConfigError(
            f"`space.{key}` must begin above 0 for log, but got {shown(rule[kind])}: begin at a "
            "small number, or leave log out"
        )
    if step is not None and (not is_number(step) or step <= 0 or (kind == "int" and step % 1)):
        what = "a whole number >= 1" if kind == "int" else "a number > 0"
        raise ConfigError(f"`space.{key}.step` must be {what}, but got {shown(step)}")
    if step is not None and log:
        raise ConfigError(f"`space.{key}` must have log or step, but got both: leave one out")
    if below is not None and (kind != "int" or not isinstance(below, str)):
        raise ConfigError(
            f"`space.{key}.below` must be the name of a key, of an int, but got {shown(below)} for "
            f"{kind}"
        )
    return Domain(
        key=key, kind="int" if kind == "int" else "uniform", low=low, high=high,
        log=log, step=step, below=below, when=when,
    )  # fmt: skip


def _choice(key: str, rule: Mapping[str, Any], when: Mapping[str, tuple[Any, ...]]) -> Domain:
    choices = rule["choice"]
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ConfigError(
            f"`space.{key}.choice` must be a list of values, but got {shown(choices)}"
        )
    for each in choices:
        if not _is_plain(each):
            raise ConfigError(
                f"`space.{key}.choice` must be of texts, numbers, true, false, null, and lists and "
                f"mappings of them, but got {shown(each)}"
            )
    if len({repr(_label(each)) for each in choices}) < len(choices):
        raise ConfigError(f"`space.{key}.choice` must not repeat itself, but got {shown(choices)}")
    for name in ("log", "step", "below"):
        if name in rule:
            raise ConfigError(
                f"`{name}` belongs to numbers, but space.{key} is a choice: leave it out"
            )
    return Domain(key=key, kind="choice", choices=tuple(choices), when=when)


def _range(key: str, kind: str, given: Any) -> tuple[float, float]:
    whole = kind == "int"
    what = "whole numbers" if whole else "numbers"
    pair = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(pair) != 2 or not all(is_number(each) and not (whole and each % 1) for each in pair):
        raise ConfigError(
            f"`space.{key}.{kind}` must be [LOW, HIGH] of {what}, but got {shown(given)}"
        )
    if not pair[0] < pair[1]:
        raise ConfigError(
            f"`space.{key}.{kind}` must have LOW < HIGH, but got {shown(given)}: a key that is "
            "always the same belongs into train"
        )
    return pair[0], pair[1]


def _conditions(key: str, given: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"`space.{key}.when` must be a mapping of other keys to values, such as "
            f"{{method: dasgd}}, but got {shown(given)}"
        )
    return {
        str(name): tuple(value) if isinstance(value, list) else (value,)
        for name, value in given.items()
    }


def is_number(value: Any) -> bool:
    """Tell whether this is a number that can be compared with others."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # A whole number may be larger than any float.
    return abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value)


def _is_plain(value: Any) -> bool:
    """Tell whether a study can keep a value, as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _label(value: Any) -> Any:
    return (
        value if value is None or isinstance(value, (str, int, float, bool)) else json.dumps(value)
    )
