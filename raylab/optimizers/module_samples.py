"""The samples' gradients of a module of any kind, by running it again for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from raylab.errors import ModelError
from raylab.optimizers.sample_gradients import DirectUse

__all__ = ["ModuleSamples"]


class ModuleSamples:
    """One call of a module, to be run again sample by sample.

    Dimension 0 of every tensor that goes in and comes out are the samples. What it draws is drawn
    anew, and a statistic over the batch becomes that of the sample: an estimate, then.

    Args:
        module: that was called.
        title: what errors call it.
        names: of its own parameters to differentiate with respect to.
        args: that it was called with.
        kwargs: that it was called with.
    """

    def __init__(
        self,
        module: nn.Module,
        title: str,
        names: Sequence[str],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._module = module
        self._title = title
        self._names = names
        # Those of this call: weights may be a version that stands in for the module's own.
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._state = {name: t.detach() for name, t in tensors.items()}
        self._given, self._spec = pytree.tree_flatten((args, dict(kwargs)))
        self._given = [t.detach() if isinstance(t, Tensor) else t for t in self._given]
        self.first = next(t for t in self._given if isinstance(t, Tensor))

    @staticmethod
    def tensors(output: Any) -> list[Tensor]:
        """Return the tensors of what a module returned."""
        return [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]

    def uses(self, gradients: Sequence[Tensor | None], rows: slice) -> list[DirectUse]:
        """Return the samples' gradients of every parameter.

        Args:
            gradients: at the outputs that need one.
            rows: the samples that are asked for.

        Raises:
            ModelError: an output has not the samples in dimension 0.
        """
        samples = len(self.first)
        if any(g is not None and len(g) != samples for g in gradients):
            raise ModelError(
                f"dimension 0 of what {self._title} returns must be the {samples} samples for its "
                "gradients to be sampled, but it is not: put the samples first, or exclude it"
            )
        found = [self._of_one(gradients, i) for i in range(rows.start, rows.stop)]
        return [
            DirectUse(torch.stack([each[k].reshape(-1) for each in found]))
            if found
            else DirectUse(self._state[name].new_zeros(0, self._state[name].numel()))
            for k, name in enumerate(self._names)
        ]

    @torch.enable_grad()
    def _of_one(self, gradients: Sequence[Tensor | None], i: int) -> list[Tensor]:
        one = slice(i, i + 1)
        given = [
            t[one] if isinstance(t, Tensor) and t.ndim and len(t) == len(self.first) else t
            for t in self._given
        ]
        args, kwargs = pytree.tree_unflatten(given, self._spec)
        own = {name: self._state[name].clone().requires_grad_() for name in self._names}
        state = {name: t.clone() for name, t in self._state.items()}
        outputs = functional_call(self._module, {**state, **own}, args, kwargs)
        ends = [t for t in self.tensors(outputs) if t.requires_grad]
        pairs = [(end, g[one]) for end, g in zip(ends, gradients, strict=True) if g is not None]
        found = torch.autograd.grad(
            [end for end, _ in pairs], list(own.values()), [g for _, g in pairs], allow_unused=True
        )
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(own.values(), found, strict=True)
        ]
