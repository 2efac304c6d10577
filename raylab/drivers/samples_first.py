"""Whether dimension 0 of what a layer is given are the samples, as norms per sample take it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from raylab.algorithms.stage.module_copy import copied_module
from raylab.drivers.batches import same_draws
from raylab.errors import ModelError
from raylab.optimizers import CLARS

__all__ = ["check_samples_first"]

_Shapes = dict[str, tuple[int, ...]]


def check_samples_first(
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    model: nn.Module,
    x: Any,
    samples: int,
) -> None:
    """Check that layers whose samples' gradients are measured see the samples in dimension 0.

    The model is run on shapes alone with the batch and with a sample more: what follows the number
    of samples is their dimension, also where another one is as long. A model that cannot be run so
    is run for real; one that takes no other batch is looked at with this one.

    Args:
        optimizer: from parameters to an optimiser.
        model: all of it, as the batches meet it; not changed.
        x: what it is called with, a tensor or a nest of them.
        samples: of the batch.

    Raises:
        ModelError: a layer does not; the message names it.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained or not isinstance(optimizer(trained), CLARS):
        return
    seen = _shapes(optimizer, model, x)
    more = _shapes(optimizer, model, pytree.tree_map_only(Tensor, _with_one_more, x))
    for name, shape in seen.items():
        follows = shape[0] == samples and (name not in more or more[name][0] == samples + 1)
        if not follows:
            raise ModelError(
                "CLARS divides by the norms of single samples' gradients, so dimension 0 of every "
                f"layer's input must be the samples, but {name} is given the shape {shape} for a "
                f"batch of {samples}: put the samples first around it, exclude modules of its "
                "class (exclude=[...]), or take lars"
            )


def _shapes(
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer], model: nn.Module, x: Any
) -> _Shapes:
    """Return the shapes that layers are given; none where the model cannot be run."""
    for device in ("meta", "cpu"):
        found: _Shapes = {}
        twin = copied_module(model).to(device).train()
        made = optimizer([p for p in twin.parameters() if p.requires_grad])
        assert isinstance(made, CLARS)  # noqa: S101 - looked at by the caller
        made.watch(twin, by_hand=True)
        for name, module in made.measured().items():
            note = functools.partial(_note, found, name)
            module.register_forward_pre_hook(note, with_kwargs=True)
        given = pytree.tree_map_only(Tensor, functools.partial(_copied, device=device), x)
        # What a batch does not fit is told by other checks.
        with (
            contextlib.suppress(Exception),
            torch.no_grad(),
            same_draws(),
        ):
            twin(given)
            return found
    return {}


def _note(
    found: _Shapes,
    name: str,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    given = (t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor))
    first = next(given, None)
    if first is not None and first.ndim:
        found.setdefault(name, tuple(first.shape))


def _copied(tensor: Tensor, device: str) -> Tensor:
    return tensor.detach().clone().to(device)


def _with_one_more(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor
