"""What an optimiser that treats layers by themselves wants of a stage; most want nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

from torch import nn

__all__ = ["LayerwiseOptimizer", "collect", "recording", "watch"]


@runtime_checkable
class LayerwiseOptimizer(Protocol):
    """An optimiser that knows the modules, and may ask for what single samples do to them."""

    def watch(
        self, *modules: nn.Module, names: Mapping[int, str] | None = None, by_hand: bool = False
    ) -> None:
        """Get to know the modules that use the parameters."""
        ...

    def recording(self, resumed: Any = None) -> AbstractContextManager[Any]:
        """Record the forwards within, which one backward pass will go through."""
        ...

    def collect(self, recorded: Any) -> None:
        """Take in a recording whose backward pass has ended."""
        ...

    def scale(self, factor: float) -> None:
        """The gradients of this step have been multiplied by a factor."""
        ...

    def layer_figures(self) -> dict[str, list[Any]]:
        """Return what the last step has found out about each layer."""
        ...

    def samples_state(self) -> dict[str, Any]:
        """Return the last figures, and what has been collected since, layers by name."""
        ...

    def restore_samples(self, state: Mapping[str, Any]) -> None:
        """Go on with what `samples_state` returned."""
        ...


def watch(
    optimizer: object,
    *modules: nn.Module,
    names: Mapping[int, str] | None = None,
    by_hand: bool = False,
) -> LayerwiseOptimizer | None:
    """Show an optimiser the modules if it wants to know them, and return it then."""
    if not isinstance(optimizer, LayerwiseOptimizer):
        return None
    optimizer.watch(*modules, names=names, by_hand=by_hand)
    return optimizer


def recording(optimizer: object, resumed: Any = None) -> AbstractContextManager[Any]:
    """Record the forwards within for an optimiser that wants it; yields None for others."""
    if isinstance(optimizer, LayerwiseOptimizer):
        return optimizer.recording(resumed)
    return nullcontext()


def collect(optimizer: object, recorded: Any) -> None:
    """Give an optimiser a recording whose backward pass has ended."""
    if isinstance(optimizer, LayerwiseOptimizer):
        optimizer.collect(recorded)
