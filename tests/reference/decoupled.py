"""Serial reference of the methods whose stages make their error gradients themselves: DNI, DGL.

At index n stage k of K forwards batch n at its current weights and goes backward at once, with the
gradient at its output of

    DGL     loss(a_k(h), y): its own classifier's, which is trained with the stage
    DNI     nothing: s_k(h, y) / N itself is that gradient, of a batch of N samples

and updates by the mean of every M gradients. With DNI the true gradient e of batch n - d that stage
k+1 found at its input (there with a gradient that s_{k+1} made) then moves s_k by one step down

    mean over all elements of (s_k(h, y) - N e)^2

s_k evaluated at its weights of index n. The last stage of both has the loss itself.

The small networks are written out as formulas of their weights, which are given: what their first
values are is not the matter here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference.pipeline import (
    Batch,
    LossFn,
    Optimiser,
    State,
    Stepper,
    buffers_of,
    cut_model,
    load,
    parameters_of,
    scaled_sum,
    state_dict_of,
    trained_of,
)

__all__ = ["DecoupledOutcome", "train_decoupled"]

_CLASSES = 4


@dataclass
class DecoupledOutcome:
    """What a run leaves behind, stage by stage.

    Attributes:
        state: final parameters and buffers, under the keys of the whole network's state_dict.
        beside: final weights of the small networks.
        losses: loss of every batch, of the stages that have one.
        errors: squared error of every correction.
    """

    state: State
    beside: list[State]
    losses: list[list[float]]
    errors: list[list[float]]


@dataclass
class _Stage:
    template: nn.Module
    weights: State
    buffers: State
    beside: State
    stepper: Stepper
    learner: Stepper
    trained: list[str] = field(default_factory=list)
    window: list[State] = field(default_factory=list)
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    arrived: dict[int, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    updates: int = 0


def train_decoupled(
    model: nn.Sequential,
    *,
    method: str,
    cuts: Sequence[int],
    epochs: Sequence[Sequence[Batch]],
    optimiser: Optimiser,
    beside: Sequence[State],
    loss_fn: LossFn = F.cross_entropy,
    accumulate: int = 1,
    corrected_after: Sequence[int] | None = None,
    lr_factor: Callable[[int], float] = lambda _: 1.0,
) -> DecoupledOutcome:
    """Train a copy of `model` with "dni" or "dgl".

    Args:
        model: the chain of blocks.
        method: "dni" or "dgl".
        cuts: first blocks of stages 2..K.
        epochs: the batches of each epoch.
        optimiser: of every stage and, apart from it, of every synthesizer.
        beside: first weights and statistics of the K-1 synthesizers or classifiers, and {}.
        loss_fn: mean loss.
        accumulate: M.
        corrected_after: d of every link; default 1.
        lr_factor: of an update's number; of a synthesizer after every M corrections.
    """
    batches = [batch for epoch in epochs for batch in epoch]
    chain = []
    for blocks, small in zip(cut_model(model, cuts), beside, strict=True):
        template = copy.deepcopy(blocks).train()
        stage = _Stage(
            template,
            parameters_of(template),
            buffers_of(template),
            dict(small),
            Stepper(optimiser),
            Stepper(optimiser),
            trained=trained_of(template),
        )
        chain.append(stage)
    late = [*(corrected_after or [1] * (len(chain) - 1)), 0]
    run = _Run(method, batches, loss_fn, accumulate, lr_factor)
    for n in range(len(batches) + max(late)):
        if n < len(batches):
            h = batches[n][0]
            for k, stage in enumerate(chain):
                h = run.one_stage(n, h, stage, chain[k - 1] if k else None, k == len(chain) - 1)
        if method == "dni":
            for stage, d in zip(chain[:-1], late, strict=False):
                if 0 <= n - d < len(batches):
                    run.correct(n - d, stage)
        for stage in chain:
            if n < len(batches) and ((n + 1) % accumulate == 0 or n + 1 == len(batches)):
                run.update(stage)
    whole: State = {}
    for stage in chain:
        whole |= state_dict_of(load(stage.template, stage.weights, stage.buffers))
    return DecoupledOutcome(
        state={key: whole[key] for key in model.state_dict()},
        beside=[stage.beside for stage in chain],
        losses=[stage.losses for stage in chain],
        errors=[stage.errors for stage in chain],
    )


@dataclass
class _Run:
    method: str
    batches: list[Batch]
    loss_fn: LossFn
    accumulate: int
    lr_factor: Callable[[int], float]

    def one_stage(
        self, n: int, h: Tensor, stage: _Stage, below: _Stage | None, last: bool
    ) -> Tensor:
        """Forward and backward of batch n; hand the gradient at the input to the stage below."""
        y = self.batches[n][1]
        module = load(stage.template, stage.weights, stage.buffers)
        h = h.clone().requires_grad_(below is not None)
        out = module(h.clone())
        stage.buffers = buffers_of(module)
        wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if self.method == "dgl" and not last:
            small = {name: t.clone().requires_grad_() for name, t in stage.beside.items()}
            wanted |= {f"beside.{name}": t for name, t in small.items()}
        error = None
        end = out
        if last or self.method == "dgl":
            end = self.loss_fn(out if last else _classifier(small, out), y)
            stage.losses.append(end.item())
        else:
            with torch.no_grad():
                error = _synthesizer(stage.beside, out, y)[0] / len(y)
            stage.kept[n] = (out.detach(), y)
        inputs = [h] if below is not None else []
        found = [
            torch.zeros_like(w) if g is None else g
            for g, w in zip(
                torch.autograd.grad(end, [*wanted.values(), *inputs], error, allow_unused=True)
                if end.requires_grad
                else [None] * (len(wanted) + len(inputs)),
                [*wanted.values(), *inputs],
                strict=True,
            )
        ]
        stage.window.append(dict(zip(wanted, found, strict=False)))
        if below is not None:
            below.arrived[n] = found[-1]
        return out.detach()

    def correct(self, b: int, stage: _Stage) -> None:
        h, y = stage.kept.pop(b)
        weights = {
            name: t.clone().requires_grad_() if t.is_floating_point() else t
            for name, t in stage.beside.items()
            if "running" not in name and "num_batches" not in name
        }
        statistics = {k: v for k, v in stage.beside.items() if k not in weights}
        made, moved = _synthesizer({**weights, **statistics}, h, y)
        error = (made - len(y) * stage.arrived.pop(b)).square().mean()
        names = list(weights)
        found = torch.autograd.grad(error, list(weights.values()))
        factor = self.lr_factor(len(stage.errors) // self.accumulate)
        now = {name: t.detach() for name, t in weights.items()}
        stage.beside = {
            **stage.learner.step(now, dict(zip(names, found, strict=True)), factor),
            **moved,
        }
        stage.errors.append(error.item())

    def update(self, stage: _Stage) -> None:
        weights = {
            **stage.weights,
            **{f"beside.{name}": t for name, t in stage.beside.items() if self.method == "dgl"},
        }
        names = list(stage.window[0])
        zero = {name: torch.zeros_like(weights[name]) for name in names}
        mean = scaled_sum(stage.window, 1 / self.accumulate, zero)
        new = stage.stepper.step(weights, mean, self.lr_factor(stage.updates))
        stage.weights = {name: new[name] for name in stage.weights}
        if self.method == "dgl":
            stage.beside = {name: new[f"beside.{name}"] for name in stage.beside}
        stage.window = []
        stage.updates += 1


def _classifier(small: State, h: Tensor) -> Tensor:
    pooled = h.mean(dim=(2, 3)) if h.ndim == 4 else h
    (weight,) = [t for name, t in small.items() if name.endswith("weight")]
    (bias,) = [t for name, t in small.items() if name.endswith("bias")]
    return pooled @ weight.T + bias


def _synthesizer(small: State, h: Tensor, y: Tensor) -> tuple[Tensor, State]:
    """Return the gradients for h, and the running statistics after them."""
    image = h.ndim == 4
    hot = F.one_hot(y, _CLASSES).to(h.dtype)
    if image:
        hot = hot[:, :, None, None] * torch.ones_like(h[:, :1])
    h = torch.cat([h, hot], dim=1)
    moved: State = {}
    for layer, normalisation in (("layers.0.", "layers.1."), ("layers.3.", "layers.4.")):
        h = _linear(small, layer, h)
        axes = (0, 2, 3) if image else (0,)
        mean, variance = h.mean(axes, keepdim=True), h.var(axes, unbiased=False, keepdim=True)
        count = h.numel() // h.shape[1]
        for name, value in (
            ("running_mean", mean),
            ("running_var", variance * count / (count - 1)),
        ):
            old = small[normalisation + name]
            moved[normalisation + name] = 0.9 * old + 0.1 * value.detach().flatten()
        tracked = normalisation + "num_batches_tracked"
        moved[tracked] = small[tracked] + 1
        shape = (1, -1, 1, 1) if image else (1, -1)
        h = (h - mean) / (variance + 1e-5).sqrt() * small[normalisation + "weight"].view(shape)
        h = (h + small[normalisation + "bias"].view(shape)).relu()
    return _linear(small, "layers.6.", h), moved


def _linear(small: State, layer: str, h: Tensor) -> Tensor:
    weight, bias = small[layer + "weight"], small.get(layer + "bias")  # none before a normalisation
    return F.conv2d(h, weight, bias, padding=2) if h.ndim == 4 else F.linear(h, weight, bias)
