"""What an optimiser and a loss train of the parameters that are a stage's or a worker's own.

A factory gets the parameters of its actor. It may take some of them (matrices only, all but a
frozen part); the others then keep their values. It cannot take others: those would be a copy that
nothing reads, made where the factory was pickled.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from raylab.errors import ConfigError, ModelError

__all__ = ["check_loss", "check_loss_fn", "no_zero_step", "trained_by"]

_WAY_OUT = (
    "make it of the parameters that the callable is given, for instance "
    "lambda parameters: SGD(parameters, lr=0.1), and tell groups apart by what these are, such as "
    "p.ndim"
)


def trained_by(optimizer: Any, given: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of the given parameters that an optimiser holds, in their order.

    Args:
        optimizer: as a factory has made it.
        given: to the factory.

    Raises:
        ConfigError: it holds others, or none of these.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = len(held - {id(p) for p in given})
    kind = type(optimizer).__name__
    if others:
        raise ConfigError(
            f"optimizer must train the parameters that it is given, but {others} of the "
            f"{len(held)} that {kind} holds are others, which no actor reads: {_WAY_OUT}"
        )
    if not held:
        raise ConfigError(
            f"optimizer must train some of the parameters that it is given, but {kind} holds none "
            f"of {len(given)}: {_WAY_OUT}"
        )
    return [p for p in given if id(p) in held]


def no_zero_step(optimizer: Any, found: str) -> str:
    """Return what to tell where an optimiser fails on a gradient of zero."""
    return (
        "an optimiser under late gradients must bear a gradient of zero, with which the updates "
        f"before the first gradient are made, but {type(optimizer).__name__} does not ({found}): "
        "choose another one, such as sgd or adamw, or a method without delay, such as bp or 1f1b"
    )


def check_loss_fn(loss_fn: Callable[..., Tensor] | None) -> None:
    """Check that a loss has nothing of its own to train: no optimiser would hold it.

    Raises:
        ModelError: it has.
    """
    own = [t for t in _reachable(loss_fn) if t.requires_grad]
    if own:
        shapes = ", ".join(str(tuple(t.shape)) for t in own[:3])
        raise ModelError(
            f"loss_fn must have no parameters of its own, as the optimisers are given those of the "
            f"model, but {type(loss_fn).__name__} has {len(own)} to train (of shape {shapes}): put "
            "them into the model's last block, or set requires_grad_(False)"
        )


def check_loss(loss: Tensor) -> None:
    """Check that the loss of outputs that ask for no gradient asks for none either.

    Raises:
        ModelError: it reads weights that are not the model's.
    """
    if loss.requires_grad:
        raise ModelError(
            "loss_fn must have no weights of its own, as the optimisers are given those of the "
            "model, but its loss has a gradient without the model's: put them into the last block "
            "of the model, or set requires_grad_(False)"
        )


def _reachable(thing: Any) -> Iterator[Tensor]:
    """Yield the tensors that a callable holds: a module, a partial, a method or a closure."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
    elif isinstance(thing, functools.partial):
        for each in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _reachable(each)
    elif isinstance(thing, types.MethodType):
        yield from _reachable(thing.__self__)
    elif isinstance(thing, types.FunctionType):
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                yield from _held(cell.cell_contents)
    else:
        for each in getattr(thing, "__dict__", {}).values():
            yield from _held(each)


def _held(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, (Tensor, nn.Module)):
        yield from _reachable(thing)
