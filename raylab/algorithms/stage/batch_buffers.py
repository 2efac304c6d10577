"""Buffers, such as running statistics, that move once a batch whatever the method does with it.

    graph-keeping forward   moves them
    play (FR)               moves copies that are thrown away; the replay moves the real ones
    micro-batches           each starts from the batch's start; the batch moves them by the mean of
                            its micro-batches' moves, weighted by their samples

so that `num_batches_tracked` counts every batch once under every method.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["BatchBuffers"]


class BatchBuffers:
    """The buffers of one stage.

    Args:
        module: the stage.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._mean: dict[str, Tensor] = {}

    def copies(self) -> dict[str, Tensor]:
        """Return copies to run a forward with, by name."""
        return {name: buffer.clone() for name, buffer in self._module.named_buffers()}

    def moved(self, copies: dict[str, Tensor], *, share: float, last: bool) -> None:
        """Take in what one micro-batch made of its copies; the batch's last one moves the buffers.

        Args:
            copies: from `copies`, after the forward.
            share: samples of the micro-batch as a share of the batch's.
            last: whether it is the batch's last.
        """
        for name, copy in copies.items():
            if not copy.is_floating_point():
                self._mean[name] = copy
            elif name in self._mean:
                self._mean[name] += share * copy
            else:
                self._mean[name] = share * copy
        if last:
            # By name: a module may have put another tensor in a buffer's place.
            for name, mean in self._mean.items():
                self._module.get_buffer(name).copy_(mean)
            self._mean = {}
