"""The user's model and what its blocks do to a batch, looked at before any actor starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raylab.algorithms.pipeline import PipelineMethod
from raylab.algorithms.stage.cut_features import CutFeatures
from raylab.drivers.pipeline.network import Network
from raylab.drivers.pipeline.user_batches import first_batch
from raylab.planner import BlockTrace, cut_features, trace_blocks

__all__ = ["TracedChain", "traced_chain"]

_Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class TracedChain:
    """A network, and what its blocks do to a batch.

    Args:
        network: the model as a chain.
        x: of the first batch.
        y: of the first batch.
        traces: of the chain's blocks, for that batch.
    """

    network: Network
    x: _Tensors
    y: _Tensors
    traces: Sequence[BlockTrace]

    def crossing(self, method: PipelineMethod, cuts: Sequence[int]) -> Sequence[CutFeatures | None]:
        """Return the features above each stage, where the method needs to know them."""
        return cut_features(method, self.traces, cuts, self.network.names, self.y)


def traced_chain(
    model: nn.Module | Sequence[nn.Module],
    batches: Iterable[Any],
    loss_fn: Callable[..., Tensor],
) -> TracedChain:
    """Return the model as a chain, traced with the first batch.

    Raises:
        DataError: a batch is not one, or does not fit the model.
        ModelError: the model is not a chain, or the loss does not fit it.
    """
    network = Network(model)
    x, y = first_batch(batches)
    traces = trace_blocks(network.blocks, network.names, x, y, loss_fn)
    return TracedChain(network=network, x=x, y=y, traces=traces)
