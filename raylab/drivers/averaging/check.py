"""A batch through model and loss, on the meta device, before any actor starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree

from raylab.algorithms.averaging.figures import samples_of
from raylab.algorithms.averaging.flat import trainable
from raylab.algorithms.averaging.worker import on_device
from raylab.algorithms.stage.module_copy import copied_module
from raylab.algorithms.stage.trained_by import check_loss, check_loss_fn
from raylab.drivers.averaging.shards import first_batch
from raylab.drivers.batches import same_draws
from raylab.drivers.one_value import batch_sizes, check_one_value
from raylab.drivers.optimizer_check import untrained
from raylab.drivers.samples_first import check_samples_first
from raylab.errors import DataError, ModelError
from raylab.planner import loss_of_shapes, on_shapes

__all__ = ["check_fits"]


def check_fits(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    batches: Iterable[Any],
    test: Iterable[Any] | None,
) -> None:
    """Check that batch, model, loss and optimiser fit each other.

    Args:
        model: as it was given; it is not called.
        loss_fn: (outputs, labels) -> mean loss over the samples.
        optimizer: from parameters to a torch optimiser.
        batches: to train with.
        test: to test with, or None.

    Raises:
        ConfigError: the optimiser is none, or trains others than the model's parameters.
        DataError: a batch is not one, or does not fit the model.
        ModelError: the model has nothing to train, or the loss or the optimiser does not fit it.
    """
    x, y = first_batch(batches)
    if test is not None:
        first_batch(test)
    if not trainable(model):
        raise ModelError("a model must have a parameter to train, but this one has none")
    untrained(optimizer, model, "a worker")

    def one_sample(device: str) -> Any:
        first = _pytree.tree_map_only(Tensor, lambda t: t[:1] if t.ndim else t, x)
        return copied_module(model).to(device).train()(on_device(first, device))

    check_one_value(one_sample, batch_sizes(batches, samples_of(y)))
    check_samples_first(optimizer, model, x, samples_of(y))
    check_loss_fn(loss_fn)

    def forward(device: str) -> Any:
        return copied_module(model).to(device).train()(on_device(x, device))

    with same_draws():
        try:
            output, device = on_shapes(forward)
        except NotImplementedError:  # an operator of another device: the workers will tell
            return
        except Exception as error:
            raise DataError(f"the first batch does not fit the model: {error}") from error
        try:
            loss = loss_of_shapes(loss_fn, output, y)
        except ModelError as error:
            if device != "meta":
                raise _misfit(error) from error
            # Outputs that only the loss can take apart have stayed shapes.
            try:
                with torch.no_grad():
                    loss = loss_of_shapes(loss_fn, forward("cpu"), y)
            except Exception as again:
                raise _misfit(error) from again
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ModelError(f"a loss must be one number, but it is of shape {shape}")
    check_loss(loss)


def _misfit(error: ModelError) -> ModelError:
    return ModelError(f"the loss does not fit outputs and labels: {error}")
