"""Nesterov's accelerated gradient with the rate inside the momentum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from raylab.errors import ConfigError

__all__ = ["NAG", "check_numbers", "nesterov_step"]


class NAG(Optimizer):
    """Mini-batch NAG, (4.2) of HUO.

        v_{t+1} = w_t - gamma_t g_t
        w_{t+1} = v_{t+1} + beta (v_{t+1} - v_t)                   v_0 = w_0

    The move m = v_{t+1} - v_t is kept in place of v: m <- beta m - gamma g, w <- w + beta m -
    gamma g. It is the same, and weights that somebody else has changed (an average, say) stay
    changed. torch's SGD(nesterov=True) has the rate outside: it is equal while the rate stays.

    Args:
        params: parameters or groups of them.
        lr: gamma, > 0.
        momentum: beta, 0 <= beta < 1.
        weight_decay: lambda >= 0; g + lambda w stands for g.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        check_numbers(lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient, see the class."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            nesterov_step(self.state, group, params, [p.grad for p in params], group["lr"])
        return loss


def check_numbers(**numbers: float) -> None:
    """Check the numbers that the optimisers share: finite, >= 0, a momentum below 1.

    Raises:
        ConfigError: one is out of range.
    """
    for name, value in numbers.items():
        if not (isinstance(value, (int, float, Tensor)) and 0 <= value < math.inf):
            raise ConfigError(f"{name} >= 0 must hold, but got {value!r}")
    if not numbers["momentum"] < 1:
        raise ConfigError(f"0 <= momentum < 1 must hold, but got {numbers['momentum']!r}")


def nesterov_step(
    state: dict[Tensor, Any],
    group: dict[str, Any],
    params: list[Tensor],
    grads: Sequence[Tensor],
    rates: float | list[Tensor],
) -> None:
    """Do (4.2), or (4.6) with a rate for every parameter, in place.

    Args:
        state: of the optimiser; the moves are kept there as `momentum_buffer`.
        group: momentum and weight_decay.
        params: with a gradient.
        grads: their gradients, left as they are.
        rates: one of all, or one each, ().
    """
    if not params:
        return
    grads = list(grads)
    if group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    steps = torch._foreach_mul(grads, rates)
    torch._foreach_sub_(params, steps)
    momentum = group["momentum"]
    if not momentum:
        return
    moves = []
    for p in params:
        if "momentum_buffer" not in state[p]:
            state[p]["momentum_buffer"] = torch.zeros_like(p)
        moves.append(state[p]["momentum_buffer"])
    torch._foreach_mul_(moves, momentum)
    torch._foreach_sub_(moves, steps)
    torch._foreach_add_(params, moves, alpha=momentum)
