"""DASGD eq. 1 and 7 written down as they stand: all weights of all steps are kept and looked up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

__all__ = ["averaged_buffers", "eq_7", "minibatch"]

Batch = tuple[Tensor, Tensor]


def _start(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return weights, {name: b.detach().clone() for name, b in model.named_buffers()}


def _gradient(
    model: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss; the running statistics move."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    loss = F.cross_entropy(functional_call(model, {**leaves, **buffers}, (batch[0],)), batch[1])
    found = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def eq_7(
    model: nn.Module,
    steps: Sequence[Sequence[Batch]],
    *,
    tau: int,
    delay: int,
    xi: float,
    lr: Callable[[int], float],
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Return weights and buffers of all workers after `steps`, a list of W batches each.

    With momentum, eta g of the equation is eta times the worker's own momentum buffer.
    """
    model = copy.deepcopy(model).train()
    workers = range(len(steps[0]))
    weights, buffers = _start(model)
    # history[k][j] is x_k^(j) - eta g(x_k^(j)), what worker j has after its local update of step k.
    current = [dict(weights) for _ in workers]
    running = [{n: b.clone() for n, b in buffers.items()} for _ in workers]
    velocity: list[dict[str, Tensor]] = [{} for _ in workers]
    history: list[list[dict[str, Tensor]]] = []
    for k, batches in enumerate(steps):
        local = []
        for j in workers:
            gradient = _gradient(model, current[j], running[j], batches[j])
            after = {}
            for name, x in current[j].items():
                g = gradient[name] + weight_decay * x
                velocity[j][name] = momentum * velocity[j].get(name, 0) + g
                after[name] = x - lr(k) * velocity[j][name]
            local.append(after)
        history.append(local)
        if (k + 1 - delay) % tau == 0 and k - delay >= 0:
            then = history[k - delay]
            mean = {n: sum(then[j][n] for j in workers) / len(workers) for n in weights}
            current = [{n: xi * local[j][n] + (1 - xi) * mean[n] for n in weights} for j in workers]
        else:
            current = local
    return current, running


def minibatch(
    model: nn.Module, steps: Sequence[Sequence[Batch]], *, lr: Callable[[int], float]
) -> dict[str, Tensor]:
    """Return the weights of plain SGD on the mean of the workers' gradients, eq. 1."""
    model = copy.deepcopy(model).train()
    weights, buffers = _start(model)
    running = [{n: b.clone() for n, b in buffers.items()} for _ in steps[0]]
    for k, batches in enumerate(steps):
        found = [_gradient(model, weights, r, b) for r, b in zip(running, batches, strict=True)]
        for name in weights:
            weights[name] = weights[name] - lr(k) * sum(g[name] for g in found) / len(found)
    return weights


def averaged_buffers(running: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the means of the buffers; of counts, which are alike, the first."""
    return {
        name: sum(r[name] for r in running) / len(running) if b.is_floating_point() else b
        for name, b in running[0].items()
    }
