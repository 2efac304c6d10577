"""Single stages in double precision, and torch's own gradients to compare them with."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raylab.algorithms.stage.delayed_stage import DelayedStage
from raylab.algorithms.stage.settings import StageSettings

__all__ = [
    "DECAY",
    "SGD",
    "VERSIONS",
    "WAYS",
    "assert_close",
    "fixed",
    "grads",
    "last",
    "make",
    "mean_loss",
    "normal",
    "seeded",
    "true_gradients",
]

SGD = functools.partial(torch.optim.SGD, lr=1.0)
VERSIONS = ("forward", "current")

WAYS = [
    {"delay": 0},
    {"delay": None, "flush": True},
    {"weight_version": "forward"},
    {"weight_version": "current"},
    {"replay": True},
]
DECAY = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def fixed(*blocks: nn.Module, seed: int = 0) -> nn.Sequential:
    """The blocks in double precision, with weights that depend on the seed alone."""
    module = nn.Sequential(*blocks).double()
    generator = seeded(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def make(
    module: nn.Module,
    *,
    optimizer: Any = SGD,
    schedule: Any = None,
    loss_fn: Any = None,
    **settings: Any,
) -> DelayedStage:
    """A middle stage of three, one batch late, unless told otherwise."""
    numbers = StageSettings(**{"stage": 1, "stages": 3, "delay": 1, **settings})
    return DelayedStage(module, numbers, optimizer=optimizer, schedule=schedule, loss_fn=loss_fn)


def last(module: nn.Module, loss_fn: Any = F.cross_entropy, **settings: Any) -> DelayedStage:
    return make(module, loss_fn=loss_fn, **{"stage": 2, "delay": 0, **settings})


def grads(stage: DelayedStage) -> dict[str, Tensor | None]:
    return {
        name: None if p.grad is None else p.grad.clone()
        for name, p in stage.blocks.module.named_parameters()
    }


def true_gradients(
    module: nn.Module, x: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """torch's own output, gradient at the input, and gradients at the weights."""
    module = copy.deepcopy(module)
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(g)
    return y.detach(), x.grad, {name: p.grad for name, p in module.named_parameters()}


def mean_loss(scores: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(scores.detach(), labels))


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
