"""What a loss is a mean of: the terms of torch's own losses, and which samples they weigh.

The mean over a batch is the mean over its micro-batches, each with its share of the terms' weight:

    mean over elements        MSE, BCE and their like: a share is that of the samples
    mean over counted labels  CrossEntropyLoss and NLLLoss: sum_i w[y_i] over labels that are not
                              ignored, so a micro-batch of heavy classes counts for more
    sum                       adds up as it is

Nothing is known of any other callable but what its outcomes show, see `StageLoss`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LossTerms", "loss_terms"]

Reads = Literal["classes", "margins", "logits", "probabilities", "values", "unknown"]

_MODULES: dict[type[nn.Module], Reads] = {
    nn.CrossEntropyLoss: "classes",
    nn.NLLLoss: "classes",
    nn.MultiMarginLoss: "margins",
    nn.BCEWithLogitsLoss: "logits",
    nn.BCELoss: "probabilities",
    nn.MSELoss: "values",
    nn.L1Loss: "values",
    nn.SmoothL1Loss: "values",
    nn.HuberLoss: "values",
    nn.PoissonNLLLoss: "values",
}
_FUNCTIONS: dict[Any, Reads] = {
    F.cross_entropy: "classes",
    F.nll_loss: "classes",
    F.multi_margin_loss: "margins",
    F.binary_cross_entropy_with_logits: "logits",
    F.binary_cross_entropy: "probabilities",
    F.mse_loss: "values",
    F.l1_loss: "values",
    F.smooth_l1_loss: "values",
    F.huber_loss: "values",
    F.poisson_nll_loss: "values",
}
_IGNORED = -100
"""torch's default of `ignore_index`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTerms:
    """The terms of a loss.

    Args:
        reads: meaning of the outputs: scores of "classes" that labels name, "margins" of such
            scores over each other, "logits" or "probabilities" of two, "values"; or "unknown".
        sums: whether it is the sum of its terms; False: their mean.
        weight: of the classes, shape=(C,); None: all 1.
        ignore_index: label that has no term; None: there is none.
    """

    reads: Reads = "unknown"
    sums: bool = False
    weight: Tensor | None = None
    ignore_index: int | None = None

    @property
    def known(self) -> bool:
        """Whether micro-batches add up to the batch by `weight_of`, without looking."""
        return self.reads != "unknown"

    @property
    def weighs_alike(self) -> bool:
        """Whether it is a mean over the labels that are not ignored, each of weight 1."""
        return self.reads == "classes" and self.weight is None and not self.sums

    def on(self, device: torch.device) -> LossTerms:
        """Return the same terms with what is looked up on a device."""
        return self if self.weight is None else replace(self, weight=self.weight.to(device))

    def weight_of(self, labels: Sequence[Tensor], samples: int) -> Tensor | int:
        """Return the weight of a batch in a mean over several, in samples of weight 1.

        Args:
            labels: of the batch.
            samples: of the batch.
        """
        y = labels[0]
        if self.reads != "classes" or self.sums or len(labels) > 1 or y.is_floating_point():
            return samples
        counted = torch.ones_like(y, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = y.ne(self.ignore_index)
        if self.weight is None:
            return counted.sum().double() * samples / y.numel()
        weights = self.weight.to(y.device)[torch.where(counted, y, 0)]
        return (weights * counted).sum(dtype=torch.float64) * samples / y.numel()

    def shares(self, labels: Sequence[Sequence[Tensor]]) -> list[float]:
        """Return the shares of the micro-batches of a batch, which sum to 1.

        Args:
            labels: of each micro-batch, on the CPU.
        """
        weights = [float(self.weight_of(each, each[0].shape[0])) for each in labels]
        total = sum(weights)
        # Without any term the mean is NaN, which each micro-batch then says by itself.
        return [weight / total if total else 1 / len(weights) for weight in weights]


def loss_terms(loss_fn: Callable[..., Any] | None) -> LossTerms:
    """Return what is known of a loss: of torch's modules and functions, also with options bound.

    A subclass with a forward of its own is another loss, and not known.

    >>> loss_terms(nn.CrossEntropyLoss()).weight_of([torch.tensor([1, 2, -100, -100])], 4)
    tensor(2., dtype=torch.float64)
    """
    options: dict[str, Any] = {}
    inner = loss_fn
    while isinstance(inner, functools.partial) and not inner.args:
        options = {**inner.keywords, **options}
        inner = inner.func
    if isinstance(inner, nn.Module) and inner is loss_fn and (reads := _reads(inner)):
        return _terms(reads, vars(inner) | dict(inner.named_buffers()))
    if not isinstance(inner, nn.Module) and _hashable(inner) and inner in _FUNCTIONS:
        return _terms(_FUNCTIONS[inner], options)
    return LossTerms(sums=getattr(loss_fn, "reduction", options.get("reduction")) == "sum")


def _reads(module: nn.Module) -> Reads | None:
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    for kind, reads in _MODULES.items():
        if not isinstance(module, kind) or hooked:
            continue
        if type(module).forward is kind.forward and type(module).__call__ is kind.__call__:
            return reads
    return None


def _terms(reads: Reads, options: Mapping[str, Any]) -> LossTerms:
    reduction = options.get("reduction", "mean")
    if reduction not in ("mean", "sum") or {"size_average", "reduce"} & options.keys():
        return LossTerms(sums=reduction == "sum")
    if reads != "classes":
        return LossTerms(reads=reads, sums=reduction == "sum")
    weight = options.get("weight")
    return LossTerms(
        reads=reads,
        sums=reduction == "sum",
        weight=None if weight is None else weight.detach().cpu(),
        ignore_index=options.get("ignore_index", _IGNORED),
    )


def _hashable(value: object) -> bool:
    return type(value).__hash__ is not None
