"""Serial reference of the pipeline methods: one process, no actors, nothing clever.

A chain of blocks is cut into stages k = 1..K. Stage k runs, for n = 0, 1, ...: the forward F(n),
the backward B(n - D_k), and an update when n closes a window of M indices; D_k is the sum of the
link delays above the stage. HUO is the thesis (DDG: ch. 5, Features Replay: ch. 6), ADL the paper
on Accumulated Decoupled Learning.

                 DDG, FR (locked ticks)              ADL (skewed ticks), K = 3
    tick t       0      1      2      3              0      1      2      3      4
    stage 1      F0 .   F1 .   F2 B0  F3 B1          F0 .   F1 .   F2 .   F3 .   F4 B0
    stage 2      F0 .   F1 B0  F2 B1  F3 B2                 F0 .   F1 .   F2 B0  F3 B1
    stage 3      F0 B0  F1 B1  F2 B2  F3 B3                        F0 B0  F1 B1  F2 B2

Every version of the weights, every state of the buffers and every input is kept for ever, and no
autograd graph outlives the statement that needs it: a gradient at old weights is computed by
running the forward again in a fresh copy of the stage that holds the old weights. That is slow,
and there is nothing in it that could go stale by accident.

Modules must be deterministic (no dropout), since forwards run more than once.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.reference.large_batch import clars_divisors, layer_rate, own_copies

__all__ = [
    "METHODS",
    "Batch",
    "LossFn",
    "Optimiser",
    "Outcome",
    "State",
    "Stepper",
    "buffers_of",
    "cut_model",
    "eq17",
    "load",
    "parameters_of",
    "scaled_sum",
    "state_dict_of",
    "train",
    "trained_of",
]

METHODS = ("bp", "gpipe", "1f1b", "ddg", "fr", "adl", "dsp", "family")

COPY = "own copy of "
State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]

_LINK_DELAY = {"bp": 0, "ddg": 1, "fr": 1, "adl": 2, "dsp": 2}
_MICRO_BATCHED = ("gpipe", "1f1b")


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Which update rule, and its constants; the formulas are written out in `Stepper`."""

    kind: Literal["sgd", "adam", "nag", "lars", "clars"]
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    trust: float = 0.01


@dataclass
class Outcome:
    """What a run leaves behind; stages are listed from the first, k = 1.

    Attributes:
        state: final parameters and buffers, under the keys of the whole network's state_dict.
        staleness: [stage][window][j], in updates: from the weights of a batch's forward (in FR: of
            its play) to the weights its gradient is applied to. Start-up zeros are left out, so a
            window made of nothing else is an empty list.
        updates: how many updates each stage applied.
        losses: the loss of each batch at its forward through the last stage.
        sigma: (6.10) of HUO, for every measurement and stage <fresh, applied> and |fresh|^2: the
            gradient that stage k applies at index n, of batch n - D_k, and stage k's part of the
            gradient of the same batch with all stages at their weights of index n.
        epoch_states: at the end of each epoch, every stage at its own index n = N_1 + ... + N_e:
            floor(n / M) updates and the buffers after all its operations of indices < n. This is
            the papers' consistent w^t; for the last epoch it precedes the drain and the update of
            a last partial window.
    """

    state: State
    staleness: list[list[list[int]]]
    updates: list[int]
    losses: list[float]
    epoch_states: list[State]
    sigma: list[list[tuple[float, float]]] = field(default_factory=list)


def eq17(K: int, k: int, M: int, s: int, j: int) -> int:  # noqa: N803
    """Return ADL's level of staleness d_kj = s - floor((M s + j - 2 (K - k)) / M).

    Reference: ADL (17). K stages, stage k = 1..K, M accumulation steps, update s, 0 <= j < M.
    """
    return s - (M * s + j - 2 * (K - k)) // M


def train(
    model: nn.Sequential,
    *,
    method: str,
    cuts: Sequence[int],
    epochs: Sequence[Sequence[Batch]],
    loss_fn: LossFn,
    optimiser: Optimiser,
    accumulate: int = 1,
    link_delays: Sequence[int] | None = None,
    replay: bool = False,
    weight_version: Literal["forward", "current"] = "forward",
    micro_batches: int = 4,
    gradient_shrink: float = 1.0,
    sigma_every: int = 0,
    lr_factor: Callable[[int], float] | None = None,
) -> Outcome:
    """Train a copy of `model` with one of the pipeline methods, serially.

    Args:
        model: the chain of blocks; it is left unchanged. All forwards run in train mode.
        method: one of `METHODS`.
        cuts: 0-based indices of the blocks that start stages 2..K; empty means one stage.
        epochs: the batches (x, y) of each epoch. Indices run on from one epoch to the next: the
            pipeline drains once, at the very end.
        loss_fn: mean loss of (output, target).
        optimiser: the update rule, with its own state in each stage.
        accumulate: M; an update takes (1/M) times the sum over the stage's window of M indices,
            and so does the last, possibly partial, one.
        link_delays: of the K-1 links, first link first; for "family" only, which needs it.
        replay: recompute at the current weights instead of keeping activations; "family" only.
        weight_version: "forward" differentiates at the weights of the batch's own forward (5.6),
            (15); "current" reads current weights in the backward formulas but keeps the old
            activations. A replay uses current weights for both, so that it ignores this.
        micro_batches: how many at most a batch is cut into, for "gpipe" and "1f1b" only.
        gradient_shrink: beta, by which what a stage sends down is multiplied (FDG).
        sigma_every: batches between two measurements of sigma, from the first index at which every
            stage applies a gradient; 0: none. Not for "gpipe" and "1f1b".
        lr_factor: of a stage's update number s, multiplies the learning rate; default 1.

    Raises:
        ValueError: an argument is out of its range or does not belong to the method.
    """
    stages = cut_model(model, cuts)
    delays, replay = _resolve(method, len(stages), link_delays, replay)
    if weight_version not in ("forward", "current"):
        raise ValueError(f"weight_version must be 'forward' or 'current', but got {weight_version}")
    if accumulate < 1 or micro_batches < 1:
        raise ValueError(
            "accumulate >= 1 and micro_batches >= 1 must hold, "
            f"but got (accumulate={accumulate}, micro_batches={micro_batches})"
        )
    batches = [batch for epoch in epochs for batch in epoch]
    if not batches:
        raise ValueError("at least one batch must be given, but got none")
    run = _Run(
        batches=batches,
        epoch_ends=list(itertools.accumulate(len(epoch) for epoch in epochs)),
        keys=list(model.state_dict()),
        loss_fn=loss_fn,
        optimiser=optimiser,
        accumulate=accumulate,
        current=weight_version == "current",
        shrink=gradient_shrink,
        lr_factor=lr_factor or (lambda _: 1.0),
    )
    if method in _MICRO_BATCHED:
        return _train_synchronously(run, model, len(stages), micro_batches)
    end = stages[-1]
    chain = [
        _Stage(run, blocks, delay=sum(delays[i:]), replay=replay, first=i == 0, last=blocks is end)
        for i, blocks in enumerate(stages)
    ]
    # The papers draw ADL with skewed ticks, and everything else with a forward through all stages.
    if method == "adl":
        _tick_skewed(run, chain)
    else:
        _tick_locked(run, chain, delays)
    outcome = _outcome(run, chain)
    if sigma_every:
        outcome.sigma = _sigma(run, chain, sigma_every)
    return outcome


# --- the ticks ----------------------------------------------------------------------------------


def _tick_locked(run: _Run, chain: list[_Stage], delays: Sequence[int]) -> None:
    """Run HUO algorithms 9 and 11: at tick t all stages forward batch t, then all go backward.

    Iterating from the last stage down makes a link of delay 0 (back-propagation) deliver within
    the tick. An error gradient on any other link arrives when the tick is over, so that within
    the tick the stages are as parallel as the papers have them.
    """
    for t in range(max(stage.indices for stage in chain)):
        if t < run.count:
            h = run.batches[t][0]
            for stage in chain:
                h = stage.forward(t, h)
        post = []
        for i, stage in reversed(list(enumerate(chain))):
            if t >= stage.indices:
                continue  # this stage has drained
            error = stage.backward(t)
            if error is not None and delays[i - 1] == 0:
                chain[i - 1].receive_error(stage.batch_of(t), error)
            elif error is not None:
                post.append((chain[i - 1], stage.batch_of(t), error))
            stage.close(t)
        for below, batch, error in post:
            below.receive_error(batch, error)


def _tick_skewed(run: _Run, chain: list[_Stage]) -> None:
    """Run ADL algorithm 1: at tick t stage k forwards batch n = t - (k - 1), then goes backward.

    Its input is what stage k-1 put out at the previous tick; the error gradient of batch
    n - 2(K - k) is what stage k+1 sent down at the previous tick (15). Nothing is delivered before
    the tick is over, so that the order of the stages inside the tick cannot matter.
    """
    features: dict[tuple[int, int], Tensor] = {(0, n): x for n, (x, _) in enumerate(run.batches)}
    for t in range(max(i + stage.indices for i, stage in enumerate(chain))):
        post_up, post_down = {}, []
        for i, stage in enumerate(chain):
            n = t - i
            if not 0 <= n < stage.indices:
                continue  # not yet filled, or drained
            if n < run.count:
                post_up[i + 1, n] = stage.forward(n, features[i, n])
            error = stage.backward(n)
            if error is not None:
                post_down.append((chain[i - 1], stage.batch_of(n), error))
            stage.close(n)
        features.update(post_up)
        for below, batch, error in post_down:
            below.receive_error(batch, error)


# --- one stage ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What all stages share."""

    batches: list[Batch]
    epoch_ends: list[int]  # the indices n = N_1 + ... + N_e
    keys: list[str]
    loss_fn: LossFn
    optimiser: Optimiser
    accumulate: int  # M
    current: bool  # weight_version == "current"
    shrink: float  # beta
    lr_factor: Callable[[int], float]

    @property
    def count(self) -> int:
        """N, the number of batches of all epochs."""
        return len(self.batches)


class _Stage:
    """Stage k with its whole past.

    `versions[s]` are the parameters after s updates, `buffers[n]` the buffers when index n begins,
    `inputs[b]` and `forward_version[b]` the features of batch b and the number of the weights that
    forwarded them.
    """

    def __init__(
        self,
        run: _Run,
        blocks: nn.Sequential,
        *,
        delay: int,
        replay: bool,
        first: bool,
        last: bool,
    ) -> None:
        self.run = run
        self.delay = delay  # D_k
        self.first = first
        self.last = last
        # Without delay, play and replay are the same pass at the same weights: one is enough.
        self.replays = replay and delay > 0
        self.indices = run.count + delay  # of these, the last D_k are the drain
        self.template = copy.deepcopy(blocks).train()
        self.trained = trained_of(self.template)
        self.versions = [parameters_of(self.template)]
        self.buffers = [buffers_of(self.template)]
        self.live = self.buffers[0]
        self.inputs: list[Tensor] = []
        self.forward_version: list[int] = []
        self.losses: list[float] = []
        self.errors: dict[int, Tensor] = {}
        self.stepper = Stepper(run.optimiser)
        self.window: list[State] = []
        self.window_norms: list[State] = []
        self.applied: dict[int, State] = {}
        self.window_staleness: list[int] = []
        self.staleness: list[list[int]] = []

    @property
    def updates(self) -> int:
        return len(self.versions) - 1

    def batch_of(self, n: int) -> int:
        """Return the batch whose gradient belongs to index n; negative during start-up."""
        return n - self.delay

    def receive_error(self, batch: int, error: Tensor) -> None:
        """Keep the gradient of the loss with respect to this stage's output of a batch."""
        assert batch not in self.errors
        self.errors[batch] = error

    def forward(self, n: int, h: Tensor) -> Tensor:
        """Do F(n): feed batch n at the current weights (in FR: play, which moves no buffer)."""
        assert n == len(self.inputs)
        self.inputs.append(h)
        self.forward_version.append(self.updates)
        module = load(self.template, self.versions[-1], self.live)
        with torch.no_grad():
            out: Tensor = module(h.clone())
            if self.last:
                self.losses.append(self.run.loss_fn(out, self.run.batches[n][1]).item())
        if not self.replays:
            self.live = buffers_of(module)
        return out

    def backward(self, n: int) -> Tensor | None:
        """Do B(n - D_k): put the batch's gradient into the window, return that of its input.

        At the weights of the forward (HUO 5.6, 5.7; ADL 15), or with a replay at the current ones
        (HUO 6.8, 6.9). Returns None where there is nothing to send down: stage 1, or start-up,
        where the gradient is zero (HUO 5.8).
        """
        b = self.batch_of(n)
        if b < 0:
            return None
        self.window_staleness.append(self.updates - self.forward_version[b])
        if self.replays:
            module = load(self.template, self.versions[-1], self.live)
            reading: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        else:
            # Whatever this second run does to the buffers is dropped with the copy.
            old = self.versions[self.forward_version[b]]
            module = load(self.template, old, self.buffers[b])
            reading = (
                _backward_reads(module, self.versions[-1])
                if self.run.current
                else contextlib.nullcontext()
            )
        h = self.inputs[b].clone()
        h.requires_grad_(not self.first)
        copies = own_copies(module, len(h)) if self.run.optimiser.kind == "clars" else {}
        with reading:
            out = module(h.clone())  # the clone lets a block work in place on its input
            if self.last:
                out = self.run.loss_fn(out, self.run.batches[b][1])
        error_above = None if self.last else self.errors[b]
        gradient, error = _differentiate(out, error_above, module, h, copies)
        self.window_norms.append(_norms_of(gradient, copies))
        if self.replays:
            self.live = buffers_of(module)
        self.window.append(gradient)
        self.applied[b] = gradient
        return None if error is None else self.run.shrink * error

    def close(self, n: int) -> None:
        """End index n: update if it closes a window or is this stage's last (ADL 16, HUO 5.9)."""
        if (n + 1) % self.run.accumulate == 0 or n + 1 == self.indices:
            weights = self.versions[-1]
            zero = {name: torch.zeros_like(weights[name]) for name in self.trained}
            mean = scaled_sum(self.window, 1 / self.run.accumulate, zero)
            norms = mean_norms(self.window_norms, self.run.accumulate)
            self.window_norms = []
            factor = self.run.lr_factor(self.updates)
            self.versions.append(self.stepper.step(weights, mean, factor, norms))
            self.staleness.append(self.window_staleness)
            self.window, self.window_staleness = [], []
        self.buffers.append(self.live)

    def state_at(self, n: int) -> State:
        """Return weights and buffers as index n finds them."""
        s = n // self.run.accumulate
        return state_dict_of(load(self.template, self.versions[s], self.buffers[n]))

    def final_state(self) -> State:
        return state_dict_of(load(self.template, self.versions[-1], self.buffers[-1]))


def _outcome(run: _Run, chain: list[_Stage]) -> Outcome:
    for stage in chain:
        applied = sum(len(window) for window in stage.staleness)
        assert applied == run.count, "every batch's gradient is applied exactly once"

    def merge(states: list[State]) -> State:
        whole = {key: value for state in states for key, value in state.items()}
        return {key: whole[key] for key in run.keys}

    return Outcome(
        state=merge([stage.final_state() for stage in chain]),
        staleness=[stage.staleness for stage in chain],
        updates=[stage.updates for stage in chain],
        losses=chain[-1].losses,
        epoch_states=[merge([stage.state_at(n) for stage in chain]) for n in run.epoch_ends],
    )


def _sigma(run: _Run, chain: list[_Stage], every: int) -> list[list[tuple[float, float]]]:
    """Return (6.10) at every measured index, stage by stage; nothing but whole networks."""
    found = []
    for n in range(max(stage.delay for stage in chain), run.count):
        if n % every:
            continue
        sums = []
        for k, stage in enumerate(chain):
            b = stage.batch_of(n)
            # In training mode no buffer has a say in what comes out.
            whole = [load(s.template, s.versions[n // run.accumulate], s.buffers[0]) for s in chain]
            x, y = run.batches[b]
            loss = run.loss_fn(nn.Sequential(*whole)(x.clone()), y)
            fresh, _ = _differentiate(loss, None, whole[k], x)
            sums.append(
                (
                    sum(float((g * stage.applied[b][name]).sum()) for name, g in fresh.items()),
                    sum(float(g.square().sum()) for g in fresh.values()),
                )
            )
        found.append(sums)
    return found


# --- the micro-batched, synchronous methods -----------------------------------------------------


def _train_synchronously(run: _Run, model: nn.Module, stages: int, micro_batches: int) -> Outcome:
    """Run GPipe or 1F1B: their schedules differ, their arithmetic is this.

    The micro-batches of a batch go forward one after another through the uncut network, each with
    batch statistics of its own, and each loss weighs as much as its share of the batch's samples.
    The running statistics move once a batch, by the mean of the moves that the micro-batches make
    from where the batch found them, weighted alike.
    """
    template = copy.deepcopy(model).train()
    zero = {name: torch.zeros_like(parameters_of(template)[name]) for name in trained_of(template)}
    stepper = Stepper(run.optimiser)
    versions = [parameters_of(template)]  # after s updates
    buffers = [buffers_of(template)]  # before batch n
    losses: list[float] = []
    window: list[State] = []
    window_norms: list[State] = []
    staleness: list[list[int]] = []
    for n, (x, y) in enumerate(run.batches):
        parts: list[State] = []
        moved: list[tuple[float, State]] = []
        losses.append(0.0)
        for x_part, y_part in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            module = load(template, versions[-1], buffers[-1])
            share = len(x_part) / len(x)
            copies = own_copies(module, len(x_part)) if run.optimiser.kind == "clars" else {}
            loss = run.loss_fn(module(x_part.clone()), y_part) * share
            losses[n] += loss.item()
            gradient = _differentiate(loss, None, module, x_part, copies)[0]
            window_norms.append(_norms_of(gradient, copies))
            parts.append(gradient)
            moved.append((share, buffers_of(module)))
        buffers.append(
            {
                name: torch.stack([share * each[name] for share, each in moved]).sum(0)
                if first.is_floating_point()
                else first
                for name, first in moved[0][1].items()
            }
        )
        window.append(scaled_sum(parts, 1.0, zero))
        if len(window) == run.accumulate or n + 1 == run.count:
            mean = scaled_sum(window, 1 / run.accumulate, zero)
            factor = run.lr_factor(len(staleness))
            norms = mean_norms(window_norms, run.accumulate)
            versions.append(stepper.step(versions[-1], mean, factor, norms))
            window_norms = []
            staleness.append([0 for _ in window])
            window = []

    def state_at(s: int, n: int) -> State:
        return state_dict_of(load(template, versions[s], buffers[n]))

    return Outcome(
        state=state_at(-1, -1),
        staleness=[copy.deepcopy(staleness) for _ in range(stages)],
        updates=[len(staleness)] * stages,
        losses=losses,
        epoch_states=[state_at(n // run.accumulate, n) for n in run.epoch_ends],
    )


# --- arithmetic ---------------------------------------------------------------------------------


class Stepper:
    """The update rules by their formulas, with the moments of one stage."""

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser
        self.steps = 0
        self.first: State = {}
        self.second: State = {}

    def step(
        self, weights: State, gradient: State, lr_factor: float, norms: State | None = None
    ) -> State:
        """Return the next version of the weights; frozen parameters carry no gradient.

        `norms` are the divisors of CLARS, by layer.
        """
        self.steps += 1
        if self.optimiser.kind in ("nag", "lars", "clars"):
            return self._nesterov(weights, gradient, lr_factor, norms or {})
        rule = self._sgd if self.optimiser.kind == "sgd" else self._adam
        lr = self.optimiser.lr * lr_factor
        new = dict(weights)
        for name, g in gradient.items():
            w = weights[name]
            new[name] = w - lr * rule(name, g + self.optimiser.weight_decay * w)
        return new

    def _nesterov(self, weights: State, gradient: State, lr_factor: float, norms: State) -> State:
        """Return w_{t+1} by (4.2) or (4.6) of HUO, with the rates of (4.3) or (4.7).

        Weights of more than one dimension are layers, the others are biases and normalisations.
        """
        rule, new = self.optimiser, dict(weights)
        for name, g in gradient.items():
            w, rate = weights[name], rule.lr * lr_factor
            decay = rule.weight_decay
            if rule.kind != "nag" and w.ndim > 1:
                divisor = norms.get(name, g.norm() * 0) if rule.kind == "clars" else g.norm()
                rate = layer_rate(rate, rule.trust, w, divisor, decay)
            elif rule.kind != "nag":
                decay = 0.0
            moved = w - rate * (g + decay * w)
            new[name] = moved + rule.momentum * (moved - self.first.get(name, w))
            self.first[name] = moved
        return new

    def _sgd(self, name: str, g: Tensor) -> Tensor:
        """Return buf <- momentum buf + g, where the first buf is g."""
        momentum = self.optimiser.momentum
        self.first[name] = momentum * self.first[name] + g if name in self.first else g
        return self.first[name]

    def _adam(self, name: str, g: Tensor) -> Tensor:
        """Return m^ / (sqrt(v^) + eps), as HUO algorithm 10 lines 4-8 have it."""
        beta1, beta2 = self.optimiser.betas
        zero = torch.zeros_like(g)
        self.first[name] = beta1 * self.first.get(name, zero) + (1 - beta1) * g
        self.second[name] = beta2 * self.second.get(name, zero) + (1 - beta2) * g * g
        m_hat = self.first[name] / (1 - beta1**self.steps)
        v_hat = self.second[name] / (1 - beta2**self.steps)
        return m_hat / (v_hat.sqrt() + self.optimiser.eps)


def scaled_sum(gradients: list[State], scale: float, zero: State) -> State:
    """Return scale times the sum; an empty list is the zero gradient of start-up (HUO 5.8)."""
    return {name: scale * sum((g[name] for g in gradients), zero[name]) for name in zero}


def _norms_of(gradient: State, copies: Mapping[str, Tensor]) -> State:
    """Take the samples' gradients out of `gradient`, and return the divisors of CLARS."""
    return clars_divisors({name: gradient.pop(f"{COPY}{name}") for name in copies})


def mean_norms(window: list[State], accumulate: int) -> State:
    """Return 1/M times the sum; a layer that nothing came back to has none."""
    names = {name for each in window for name in each}
    return {name: sum(each[name] for each in window) / accumulate for name in names}


def _differentiate(
    out: Tensor,
    error: Tensor | None,
    module: nn.Module,
    h: Tensor,
    copies: Mapping[str, Tensor] | None = None,
) -> tuple[State, Tensor | None]:
    """Return the gradients of the module's parameters, and of its input if it asks for one.

    With `copies` they are those of the samples' own copies of these parameters, under `COPY` and
    the parameter's name.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    named |= {f"{COPY}{name}": each for name, each in (copies or {}).items()}
    wanted = [*named.values(), *([h] if h.requires_grad else [])]
    if not wanted:
        return {}, None
    found = torch.autograd.grad(out, wanted, error, allow_unused=True)
    full = [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
    return dict(zip(named, full, strict=False)), (full[-1] if h.requires_grad else None)


@contextlib.contextmanager
def _backward_reads(module: nn.Module, current: State) -> Iterator[None]:
    """Record a graph at the module's weights whose backward formulas read the `current` ones.

    What the graph saves of a parameter, whole or as a view, is known by its storage and replaced
    by the same view of the current weights; saved activations and batch statistics stay. That is
    what happens to a kept graph when an optimiser writes through `p.data`.
    """
    by_storage = {
        p.untyped_storage().data_ptr(): torch.empty_like(p.detach()).copy_(current[name])
        for name, p in module.named_parameters()
        if p.numel() > 0
    }

    def pack(saved: Tensor) -> Any:
        now = by_storage.get(saved.untyped_storage().data_ptr())
        if now is None:
            return saved
        return now, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else torch.as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


# --- modules and states -------------------------------------------------------------------------


def cut_model(model: nn.Sequential, cuts: Sequence[int]) -> list[nn.Sequential]:
    """Return the stages' blocks under their names in the whole chain."""
    blocks = list(model._modules.items())
    bounds = [0, *cuts, len(blocks)]
    if any(low >= high for low, high in itertools.pairwise(bounds)):
        raise ValueError(
            f"0 < cuts[0] < cuts[1] < ... < {len(blocks)} must hold, but got cuts={list(cuts)}"
        )
    return [nn.Sequential(OrderedDict(blocks[i:j])) for i, j in itertools.pairwise(bounds)]


def _resolve(
    method: str, stages: int, link_delays: Sequence[int] | None, replay: bool
) -> tuple[list[int], bool]:
    """Return the link delays of the K-1 links, and whether the stages replay."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, but got {method!r}")
    if method == "family":
        delays = [] if link_delays is None else list(link_delays)
        if len(delays) != stages - 1 or any(delay < 0 for delay in delays):
            raise ValueError(
                "one link delay >= 0 for each of the K-1 links must be given, "
                f"but got (K={stages}, link_delays={link_delays})"
            )
        return delays, replay
    if link_delays is not None or replay:
        raise ValueError(f"link_delays and replay belong to 'family', but got method={method!r}")
    return [_LINK_DELAY.get(method, 0)] * (stages - 1), method in ("fr", "dsp")


def load(template: nn.Module, parameters: State, buffers: State) -> nn.Module:
    """Return a fresh copy of the template that holds these parameters and buffers."""
    module = _copied(template, {})
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(parameters[name])
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    return module


def _copied(module: nn.Module, seen: dict[int, Any]) -> Any:
    """Return a copy with tensors of its own; all else, which nobody writes to, is shared.

    copy.deepcopy copies the dozen empty dictionaries of hooks in every module, too, which takes
    longer than all the arithmetic of this file. `seen` keeps what stands in two places one.
    """

    def own(tensor: Tensor | None) -> Tensor | None:
        if tensor is not None and id(tensor) not in seen:
            fresh = tensor.detach().clone()
            trained = isinstance(tensor, nn.Parameter)
            seen[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if trained else fresh
        return None if tensor is None else seen[id(tensor)]

    if id(module) not in seen:
        twin = seen[id(module)] = copy.copy(module)
        vars(twin).update(
            _parameters={name: own(p) for name, p in module._parameters.items()},
            _buffers={name: own(buffer) for name, buffer in module._buffers.items()},
            _modules={
                name: None if child is None else _copied(child, seen)
                for name, child in module._modules.items()
            },
        )
    return seen[id(module)]


def parameters_of(module: nn.Module) -> State:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def trained_of(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.requires_grad]


def buffers_of(module: nn.Module) -> State:
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


def state_dict_of(module: nn.Module) -> State:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
