"""Slow, late and dying workers, as draws that are keyed by seed, worker and message.

    none
    paper:p=0.2,times=10        with probability p a message takes 1 + r times as long, r uniform in
                                [0, times] (HUO 3.5)
    slow:worker=0,times=4       one worker always takes 1 + times as long
    heavy:shape=1.5,scale=0.3   every message takes 1 + scale·r as long, r Pareto (Lomax) of that
                                shape: no mean delay below shape 1, no variance below 2
    dies:worker=0,message=5     a worker dies in the middle of that message
    late:worker=0,seconds=1     a worker joins that much later

Several are joined by "+", e.g. "paper+dies:worker=1,message=20". All methods meet the same delays:
a draw depends on nothing but its key. What is slow is a wait in proportion to the computation of a
message; it takes no processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from raylab.algorithms.server.parts import generator
from raylab.errors import ConfigError

__all__ = ["STRAGGLERS", "Straggler", "check_workers", "outlived", "parse"]

_PAPER, _HEAVY = 8, 9


class Straggler(Protocol):
    """What is wrong with the workers."""

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:
        """Return the seconds that a message takes beyond those of its computation."""
        ...

    def dies(self, worker: int, message: int) -> bool:
        """Tell whether the worker dies in the middle of this message."""
        ...

    def late_s(self, worker: int) -> float:
        """Return the seconds after the beginning at which the worker joins."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _None:
    """Nothing is."""

    seed: int = 0

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:  # noqa: ARG002
        return 0.0

    def dies(self, worker: int, message: int) -> bool:  # noqa: ARG002
        return False

    def late_s(self, worker: int) -> float:  # noqa: ARG002
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paper(_None):
    p: float = 0.2
    times: float = 10.0

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:
        slow, how = generator(self.seed, worker, message, _PAPER).random(2)
        return compute_s * self.times * float(how) if slow < self.p else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slow(_None):
    worker: int = 0
    times: float = 4.0

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:  # noqa: ARG002
        return compute_s * self.times if worker == self.worker else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heavy(_None):
    shape: float = 1.5
    scale: float = 0.3

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:
        draw = generator(self.seed, worker, message, _HEAVY).pareto(self.shape)
        return compute_s * self.scale * float(draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dies(_None):
    worker: int = 0
    message: int = 5

    def dies(self, worker: int, message: int) -> bool:
        return worker == self.worker and message == self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Late(_None):
    worker: int = 0
    seconds: float = 1.0

    def late_s(self, worker: int) -> float:
        return self.seconds if worker == self.worker else 0.0


@dataclass(frozen=True, slots=True)
class _All:
    """Several at once: their delays add up."""

    parts: tuple[Straggler, ...]

    def delay_s(self, worker: int, message: int, compute_s: float) -> float:
        return sum(part.delay_s(worker, message, compute_s) for part in self.parts)

    def dies(self, worker: int, message: int) -> bool:
        return any(part.dies(worker, message) for part in self.parts)

    def late_s(self, worker: int) -> float:
        return max(part.late_s(worker) for part in self.parts)


STRAGGLERS: dict[str, Callable[[], Any]] = {
    "none": _None,
    "paper": _Paper,
    "slow": _Slow,
    "heavy": _Heavy,
    "dies": _Dies,
    "late": _Late,
}
"""What makes each kind, by name."""


def parse(text: str, seed: int = 0) -> Straggler:
    """Return what a text like "paper:p=0.2,times=10" says.

    Args:
        text: one kind or several, see the module.
        seed: of the draws.

    Raises:
        ConfigError: a kind or an option is unknown, or a value is out of its range.

    >>> parse("slow:worker=1,times=3").delay_s(worker=1, message=0, compute_s=2.0)
    6.0
    """
    parts = [_one(part.strip(), seed) for part in text.split("+")]
    return parts[0] if len(parts) == 1 else _All(tuple(parts))


def check_workers(straggler: Straggler, workers: int) -> None:
    """Check that a straggler is of workers that there are.

    A method with one worker only has the stragglers of others in a comparison: the rest is nobody.

    Raises:
        ConfigError: a worker's number is not below `workers`.
    """
    parts = straggler.parts if isinstance(straggler, _All) else (straggler,)
    for part in parts:
        worker = part.worker if isinstance(part, _Slow | _Dies | _Late) else 0
        if worker >= workers > 1:
            raise ConfigError(
                f"worker of a straggler must be 0 to {workers - 1}, one of workers={workers}, but "
                f"got {worker}"
            )


def outlived(straggler: Straggler, worker: int) -> Straggler:
    """Return a straggler without a worker's next death, for a run that goes back behind it.

    >>> outlived(parse("paper+dies:worker=1,message=20"), 1).dies(1, 20)
    False
    """
    parts = straggler.parts if isinstance(straggler, _All) else (straggler,)
    deaths = [each for each in parts if isinstance(each, _Dies) and each.worker == worker]
    if not deaths:
        return straggler
    first = min(deaths, key=lambda death: death.message)
    return _All(tuple(each for each in parts if each is not first) or (_None(),))


def _one(text: str, seed: int) -> Straggler:
    name, _, options = text.partition(":")
    if name not in STRAGGLERS:
        raise ConfigError(
            f"a straggler must be one of {', '.join(STRAGGLERS)}, with options after a colon, but "
            f"got {text!r}"
        )
    straggler = STRAGGLERS[name]()
    kinds = {f.name: type(getattr(straggler, f.name)) for f in fields(straggler)}
    del kinds["seed"]
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key not in kinds:
            raise ConfigError(
                f"the options of straggler {name} are {', '.join(kinds) or 'none'}, but got "
                f"{option!r}"
            )
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise ConfigError(
                f"{key} of straggler {name} must be a number, but got {value!r}"
            ) from None
        _check(name, key, values[key])
    made: Straggler = replace(straggler, seed=seed, **values)
    return made


def _check(name: str, key: str, value: float) -> None:
    most = 1.0 if key == "p" else math.inf
    above = key == "shape"
    if not (math.isfinite(value) and 0 <= value <= most and not (above and value == 0)):
        raise ConfigError(
            f"{key} of straggler {name} must be {'above 0' if above else 'at least 0'}"
            f"{' and at most 1' if key == 'p' else ''}, but got {value}"
        )
