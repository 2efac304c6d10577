"""Many tensors as one flat buffer, so that an average is one message."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["FlatTensors", "averaged_buffers", "trainable"]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained, each once."""
    return [each for each in model.parameters() if each.requires_grad]


def averaged_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that an export averages: running statistics, but no counts."""
    return [each for each in model.buffers() if each.is_floating_point()]


class FlatTensors:
    """Some tensors of one device, read from and written to as one.

    Args:
        tensors: in the same order on all replicas.

    >>> flat = FlatTensors([torch.ones(2), torch.zeros(1, 2)])
    >>> flat.read()
    tensor([1., 1., 0., 0.])
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [each.detach() for each in tensors]

    @property
    def numel(self) -> int:
        """The length of the buffer."""
        return sum(each.numel() for each in self._tensors)

    def read(self) -> Tensor:
        """Return a copy of all, shape=(numel,)."""
        if not self._tensors:
            return torch.zeros(0)
        return torch.cat([each.reshape(-1) for each in self._tensors])

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Overwrite all.

        Args:
            flat: shape=(numel,).
        """
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._views(flat))

    @torch.no_grad()
    def blend(self, flat: Tensor, own: float) -> None:
        """Overwrite x with own · x + (1 - own) · flat.

        Args:
            flat: shape=(numel,).
            own: xi, in [0, 1).
        """
        if own == 0:
            self.write(flat)
        elif self._tensors:
            torch._foreach_mul_(self._tensors, own)
            torch._foreach_add_(self._tensors, self._views(flat), alpha=1 - own)

    def _views(self, flat: Tensor) -> list[Tensor]:
        pieces = torch.split(flat, [each.numel() for each in self._tensors])
        return [
            piece.view(each.shape).to(each.dtype)
            for piece, each in zip(pieces, self._tensors, strict=True)
        ]
