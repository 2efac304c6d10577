"""The user's model, copied and looked over before any actor starts: it trains, or it is told."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from raylab.algorithms.stage.module_copy import copied_module, extra_states, let_travel
from raylab.drivers.batches import twin_of
from raylab.errors import CheckpointError, ModelError
from raylab.records.states import loadable

__all__ = ["own_model"]

M = TypeVar("M", bound=nn.Module)


def own_model(model: M) -> M:
    """Return a copy of the user's model that can be sent to others.

    Raises:
        ModelError: the model cannot be copied, sent or saved; the message names the module.
    """
    for name, each in model.named_modules():
        _check_module(name, each)
    let_travel(model)
    try:
        copied = copied_module(model)
        twin_of(copied)
    except Exception as error:
        raise ModelError(
            f"a model must be something that can be copied and pickled, but {_culprit(model)}: "
            f"{type(error).__name__}: {_line(error)}: make what cannot be where it is used, or "
            "leave it out of __getstate__"
        ) from error
    return copied  # type: ignore[return-value]


def _check_module(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"modules must be Python's, but {name or 'the model'!r} is a scripted one "
            f"({module.original_name}): give the module that torch.jit.script was called with"
        )
    lazy = [
        key
        for key, each in (*module._parameters.items(), *module._buffers.items())
        if each is not None and is_lazy(each)
    ]
    if lazy:
        raise ModelError(
            f"parameters must have a shape, but {lazy[0]!r} of {name or 'the model'!r} "
            f"({type(module).__name__}) has none yet: call the model once with a batch, e.g. "
            "model(x), or give the layer its sizes"
        )
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        try:
            loadable(extra_states(module))
        except CheckpointError as error:
            raise ModelError(
                f"an extra state must be one that a checkpoint can hold, but that of "
                f"{name or 'the model'!r} ({type(module).__name__}) is not: {error}"
            ) from error


def _culprit(model: nn.Module) -> str:
    """Return the innermost module that cannot be copied or sent, in words."""
    found = "the model"
    for name, each in model.named_modules():
        try:
            twin_of(copied_module(each))
        except Exception:  # noqa: PERF203 - whatever it is, it is told as it came
            found = f"{name or 'the model'!r} ({type(each).__name__})"
    return f"{found} is not"


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
