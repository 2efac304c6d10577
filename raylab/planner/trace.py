"""What a chain of blocks does to one batch, without computing it: shapes, work, in-place writes.

The chain is run on torch's `meta` device, where tensors have shapes and no elements. So a model
that does not fit its batches is found before any actor starts, whatever its size. A model whose
Python looks at values cannot run there; it is run for real on a copy instead.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from raylab.algorithms.stage.module_copy import copied_module
from raylab.algorithms.stage.packing import packed
from raylab.algorithms.stage.trained_by import check_loss, check_loss_fn
from raylab.errors import DataError, ModelError

__all__ = ["BlockTrace", "loss_of_shapes", "on_shapes", "told_of_bare_inputs", "trace_blocks"]

T = TypeVar("T")

ELEMENT_COST = 40.0
"""Floating-point operations that take as long as writing one element: a core at 40 GFLOP/s and
8 GB/s. Convolutions are bound by the first, normalisation and activations by the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTrace:
    """What one block does to one batch.

    Args:
        outputs: its outputs, tensors on the meta device (shape and dtype only).
        cost: operations of its forward, memory traffic included (see `ELEMENT_COST`).
        writes_input: whether it writes into its input.
        writes_weights: whether it writes into its weights.
        rewrites_weights: whether it does so anew when it is run again on the same input.
        reentrant: whether it has a part that is checkpointed with `use_reentrant=True`.
    """

    outputs: tuple[Tensor, ...]
    cost: float
    writes_input: bool
    writes_weights: bool = False
    rewrites_weights: bool = False
    reentrant: bool = False


class _CountElements(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements += sum(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


def trace_blocks(
    blocks: Sequence[nn.Module],
    names: Sequence[str],
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    loss_fn: Callable[..., Tensor],
) -> list[BlockTrace]:
    """Run a chain and its loss on the shapes of one batch.

    Args:
        blocks: the chain; not changed.
        names: of the blocks, for errors.
        inputs: x of one batch.
        labels: y of one batch.
        loss_fn: (outputs, labels) -> loss.

    Raises:
        DataError: the first block that has weights cannot take the batch.
        ModelError: another block or the loss fails on its input, or returns something else than
            tensors; the message names the block and the shapes.
    """
    chain = list(zip(names, blocks, strict=True))
    with torch.random.fork_rng(devices=[]):
        traces, device = on_shapes(lambda device: _trace(chain, inputs, device))
        if device == "meta":
            _check_entrance(chain, inputs)
        _check_loss(loss_fn, packed(traces[-1].outputs), packed(labels))
    return traces


def on_shapes(run: Callable[[str], T]) -> tuple[T, str]:
    """Return what `run` returns for the device "meta" or, where it fails there, for "cpu".

    It may be values that were asked for, of an element or of a tensor of the host that is no part
    of the model, which shapes do not have: what a real run says is the truth.

    Returns:
        What it has returned, and the device.
    """
    try:
        return run("meta"), "meta"
    except Exception:
        return run("cpu"), "cpu"


def _trace(
    chain: Sequence[tuple[str, nn.Module]],
    inputs: Sequence[Tensor],
    device: str,
) -> list[BlockTrace]:
    traces = []
    values = tuple(_twin(t, device) for t in inputs)
    entrance = _entrance(chain)
    for position, (name, block) in enumerate(chain):
        versions = [t._version for t in values]
        given = values
        twin = copied_module(block).to(device).train()
        counted = _CountElements()
        flops = FlopCounterMode(display=False)
        weights = [*twin.parameters()]
        before = [t._version for t in weights]
        with torch.no_grad(), flops, counted, told_of_bare_inputs() as told:
            values = _run(twin, given, name, position <= entrance)
        writes = [t._version for t in weights] != before
        traces.append(
            BlockTrace(
                outputs=tuple(t.to("meta") for t in values),
                cost=float(flops.get_total_flops()) + ELEMENT_COST * counted.elements,
                writes_input=[t._version for t in given] != versions,
                writes_weights=writes,
                rewrites_weights=writes and _rewrites(block, given, name),
                reentrant=bool(told),
            )
        )
    return traces


@contextlib.contextmanager
def told_of_bare_inputs() -> Iterator[list[str]]:
    """Collect what torch warns of: a re-entrant checkpoint whose inputs ask for no gradient."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for each in caught:
        if str(each.message).startswith("None of the inputs have requires_grad"):
            found.append(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _rewrites(block: nn.Module, given: Sequence[Tensor], name: str) -> bool:
    """Tell whether a second run of a block leaves other weights than a first one, but for
    rounding.
    """
    twin = copied_module(block).to("cpu").train()
    left = []
    for _ in range(2):
        with torch.no_grad():
            _run(twin, tuple(_zeros(t) for t in given), name, False)
        left.append([t.detach().clone() for t in twin.parameters()])
    return not all(torch.allclose(first, second, 1e-5) for first, second in zip(*left, strict=True))


def _entrance(chain: Sequence[tuple[str, nn.Module]]) -> int:
    """Return the position of the first block that has weights: what the batches must fit."""
    return next(
        (i for i, (_, block) in enumerate(chain) if any(True for _ in block.parameters())), 0
    )


def _check_entrance(chain: Sequence[tuple[str, nn.Module]], inputs: Sequence[Tensor]) -> None:
    """Run the chain up to its first weights for real: `meta` does not compare dtypes."""
    values = tuple(_twin(t, "cpu") for t in inputs)
    for name, block in chain[: _entrance(chain) + 1]:
        with torch.no_grad():
            values = _run(copied_module(block).eval(), values, name, True)


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _twin(tensor: Tensor, device: str) -> Tensor:
    return tensor.detach().clone().to(device)


def _run(
    block: nn.Module, given: tuple[Tensor, ...], name: str, entrance: bool
) -> tuple[Tensor, ...]:
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in given)
    try:
        out = block(packed(given))
    except Exception as error:
        kind = DataError if entrance else ModelError
        what = "a batch must fit the model" if entrance else "a block must take what comes before"
        raise kind(
            f"{what}, but block {name!r} ({type(block).__name__}) cannot take {shapes}: "
            f"{_first_line(error)}"
        ) from error
    values = tuple(out) if isinstance(out, (tuple, list)) else (out,)
    others = [type(v).__name__ for v in values if not isinstance(v, Tensor)]
    if others or not values:
        raise ModelError(
            f"a block must return a tensor or a tuple of tensors, but block {name!r} "
            f"({type(block).__name__}) returned {others or 'nothing'}"
        )
    return values


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _check_loss(loss_fn: Callable[..., Tensor], output: Any, target: Any) -> None:
    """Check that a loss makes one number of what a model puts out, see `loss_of_shapes`.

    Raises:
        ModelError: it does not.
    """
    if getattr(loss_fn, "reduction", "mean") not in ("mean", "sum"):
        raise ModelError("loss_fn must return one number: use reduction='mean' or 'sum'")
    check_loss_fn(loss_fn)
    loss = loss_of_shapes(loss_fn, output, target)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ModelError(f"loss_fn must return one number as a tensor, but it returned {shape}")
    check_loss(loss)


def loss_of_shapes(loss_fn: Callable[..., Tensor], output: Any, target: Any) -> Any:
    """Return a loss for zeros in place of what a model puts out.

    Args:
        loss_fn: (outputs, labels) -> loss.
        output: a tensor or a nest of them, on any device.
        target: what the loss is called with beside.

    Raises:
        ModelError: it fails; the message names the shapes.
    """
    tensors = [t for t in tree_leaves((output, target)) if isinstance(t, Tensor)]
    shapes = [tuple(t.shape) for t in tensors]
    dtypes = [str(t.dtype).removeprefix("torch.") for t in tensors]
    try:
        return loss_fn(tree_map_only(Tensor, _zeros, output), target)
    except Exception as error:
        raise ModelError(
            f"loss_fn must take the model's outputs and the labels, but it cannot take shapes "
            f"{shapes} of {dtypes}: {_first_line(error)}"
        ) from error
