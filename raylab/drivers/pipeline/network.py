"""The user's model as a chain of blocks: checked, cut into stages, put together again."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from raylab.drivers.user_model import own_model
from raylab.errors import ModelError
from raylab.models import chain

__all__ = ["Network"]


class Network:
    """A copy of the user's model, seen as a chain; the model passed in is left as it is.

    Args:
        model: nn.Sequential, a list of blocks, or a torchvision network that `models.chain` knows.

    Raises:
        ModelError: it is none of these, or has no blocks.
    """

    def __init__(self, model: nn.Module | Sequence[nn.Module]) -> None:
        if isinstance(model, nn.Module):
            self._model = own_model(model)
        elif isinstance(model, (list, tuple)) and all(isinstance(b, nn.Module) for b in model):
            self._model = own_model(nn.Sequential(*model))
        else:
            raise ModelError(
                "model must be an nn.Sequential or a list of blocks, but got "
                f"{type(model).__name__}"
            )
        self._chain = chain(self._model)
        if type(self._chain).forward is not nn.Sequential.forward:
            raise ModelError(
                f"a chain must run its blocks one after another, but {type(model).__name__} has "
                "a forward of its own: give list(model.children()) if that is the same"
            )
        # Not named_children, which leaves out a module that stands in two places.
        self.names = list(self._chain._modules)
        self.blocks = list(self._chain)
        if not self.blocks:
            raise ModelError("a model must have at least one block, but got an empty one")

    def check_cuts(self, cuts: Sequence[int]) -> None:
        """Check that `cuts` are first blocks of stages and separate no shared weights.

        Raises:
            ModelError: they are not ascending block indices, or a parameter or buffer would be on
                two stages; the message names the blocks.
        """
        inside = all(0 < cut < len(self.blocks) for cut in cuts)
        if not inside or list(cuts) != sorted(set(cuts)):
            raise ModelError(
                f"cut points must ascend within 1..{len(self.blocks) - 1}, the blocks after the "
                f"first, but got {list(cuts)}"
            )
        seen: dict[int, tuple[int, str]] = {}
        for k, span in enumerate(self._spans(cuts)):
            for position in span:
                block = self.blocks[position]
                for tensor in (*block.parameters(), *block.buffers()):
                    stage, name = seen.setdefault(id(tensor), (k, self.names[position]))
                    if stage != k:
                        raise ModelError(
                            f"blocks {name!r} and {self.names[position]!r} share weights, so they "
                            f"must be on one stage, but the cuts {list(cuts)} put them on stages "
                            f"{stage} and {k}: move the cuts or untie the weights"
                        )

    def stages(self, cuts: Sequence[int]) -> list[nn.Sequential]:
        """Return the stages; their state_dict keys are the chain's."""
        return [
            nn.Sequential(OrderedDict((self.names[i], self.blocks[i]) for i in span))
            for span in self._spans(cuts)
        ]

    def trained(self, states: Iterable[Mapping[str, Any]]) -> nn.Module:
        """Return the user's model with the stages' weights and buffers."""
        whole = {name: tensor for state in states for name, tensor in state.items()}
        self._chain.load_state_dict(whole)
        return self._model

    def _spans(self, cuts: Sequence[int]) -> list[range]:
        bounds = [0, *cuts, len(self.blocks)]
        return [range(a, b) for a, b in itertools.pairwise(bounds)]
