"""The norm of every sample's gradient of every layer, from one backward pass.

`PerSampleNorms` hooks into the layers that own the parameters: a layer's call leaves its input, the
gradient that comes back to its output makes the norms, see `sample_gradients`. No backward pass
is added, no gradient is changed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from raylab.errors import ModelError
from raylab.optimizers.layer_identities import IDENTITY_NAMES, Identity, identity_of, padded
from raylab.optimizers.module_samples import ModuleSamples
from raylab.optimizers.sample_pass import SamplePass
from raylab.optimizers.sampled_convolution import SampledConvolution

__all__ = ["PerSampleNorms"]


@dataclass(frozen=True, slots=True)
class _Owner:
    """A module, and which of its parameters are watched: their names and layers."""

    name: str
    layers: Mapping[str, int]


class PerSampleNorms:
    """Record the norms of the samples' gradients while a model is trained.

        norms = PerSampleNorms({"weight": model.weight}, model)
        loss_fn(model(x), y).backward()
        norms.mean()  # of the norms of the 64 samples' gradients, one a parameter

    All forwards that one backward pass goes through are of the same samples: gradients of a
    parameter that is used twice are added before the norm. The next forward after a backward pass
    brings further samples. `recording` says by hand which forwards belong together.

    Every method that returns norms returns those of the *mean* loss's terms f_i: what a hook sees,
    a B-th of them, times B (`reduction="mean"`); of a summed loss what it sees.

    Args:
        parameters: to watch, by the names that errors call them.
        modules: that use them.
        limit: samples between two calls of `reset` that norms are taken of, the first ones; None:
            all. Parameters of a module without an identity then have theirs by running it again,
            sample by sample.
        reduction: of the loss, "mean" or "sum".
        by_hand: record only within `recording`.

    Raises:
        ModelError: a module owns a parameter that it has no identity for.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *modules: nn.Module,
        limit: int | None = None,
        reduction: str = "mean",
        by_hand: bool = False,
    ) -> None:
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.by_hand = by_hand
        self._limit = limit
        self._mean_reduced = reduction == "mean"
        self._pass: SamplePass | None = None
        self._handles: list[RemovableHandle] = []
        self._convolutions: list[nn.Module] = []
        self.reset()
        places = {id(p): layer for layer, p in enumerate(self.parameters)}
        self.owners: dict[str, nn.Module] = {}
        """Modules that own the parameters, by name."""
        named = {id(m): (name, m) for each in modules for name, m in each.named_modules()}
        for name, module in named.values():
            own = {n: places[id(p)] for n, p in _used_by(module) if id(p) in places}
            if own:
                owner = _Owner(name or type(module).__name__, own)
                self.owners[owner.name] = module
                self._watch(owner, module)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        for module in self._convolutions:
            vars(module).pop("_conv_forward", None)
        self._handles, self._convolutions = [], []

    # ----------------------------------------------------------------- what has been recorded

    def reset(self) -> None:
        """Forget all norms."""
        self.samples = 0
        """Whose gradients have come back since the last reset."""
        self._taken = 0
        self._sums: list[Tensor | float] = [0.0] * len(self.names)
        self._square_sums: list[Tensor | float] = [0.0] * len(self.names)
        self.seen = [False] * len(self.names)
        """Which parameters' gradients have come back."""
        self._last: SamplePass | None = None

    def collect(self, done: SamplePass | None = None) -> None:
        """Take in the norms of a backward pass that has ended.

        Args:
            done: from `recording`; None: what has been recorded since the last one.
        """
        if done is None:
            done, self._pass = self._pass, None
        if done is None or not done.begun:
            return
        done.close()
        self.samples += done.samples
        self._taken += done.taken
        self._last = done
        for layer in range(len(self.names)):
            squares = done.squares(layer)
            if squares is not None:
                self._sums[layer] += squares.sqrt().sum()
                self._square_sums[layer] += squares.sum()
                self.seen[layer] = True

    def norms(self) -> dict[str, Tensor]:
        """Return the norms of the samples of the last backward pass, (B,) each."""
        self.collect()
        last = self._last
        if last is None:
            return {}
        scale = last.samples if self._mean_reduced else 1
        found = {name: last.squares(layer) for layer, name in enumerate(self.names)}
        return {name: scale * each.sqrt() for name, each in found.items() if each is not None}

    def moments(self) -> Tensor:
        """Return the mean of the norms and of their squares over all samples, (2, parameters).

        Of passes between which gradients were accumulated, these are the moments of the terms of
        the loss whose gradient has been accumulated, times the number of all samples.
        """
        self.collect()
        scale = self.samples if self._mean_reduced else 1
        taken = max(1, self._taken)
        first = self._stacked(self._sums) * (scale / taken)
        second = self._stacked(self._square_sums) * (scale * scale / taken)
        return torch.stack([first, second])

    def mean(self) -> dict[str, float]:
        """Return the mean over the samples of the norm, by parameter."""
        return dict(zip(self.names, self.moments()[0].tolist(), strict=True))

    def _stacked(self, sums: Sequence[Tensor | float]) -> Tensor:
        if not sums:
            return torch.zeros(0)
        known = next((each for each in sums if isinstance(each, Tensor)), torch.zeros(()))
        return torch.stack([torch.as_tensor(each).to(known) for each in sums])

    # ----------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """Return what has been collected since the last reset, by parameter."""
        self.collect()
        return {
            "samples": self.samples,
            "taken": self._taken,
            "sums": {
                name: (float(self._sums[i]), float(self._square_sums[i]))
                for i, name in enumerate(self.names)
                if self.seen[i]
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        self.reset()
        self._pass = None
        self.samples, self._taken = state["samples"], state["taken"]
        for i, name in enumerate(self.names):
            if name in state["sums"]:
                p = self.parameters[i]
                like = torch.promote_types(p.dtype, torch.float32)
                pair = [torch.tensor(v, dtype=like, device=p.device) for v in state["sums"][name]]
                self._sums[i], self._square_sums[i] = pair
                self.seen[i] = True

    # ----------------------------------------------------------------- recording

    @contextmanager
    def recording(self, resumed: SamplePass | None = None) -> Iterator[SamplePass]:
        """Record the forwards within as those of the same samples.

        Args:
            resumed: of an earlier `recording`, to go on with.
        """
        before, self._pass = self._pass, resumed or SamplePass(self.names)
        try:
            yield self._pass
        finally:
            self._pass = before

    def _open(self) -> SamplePass | None:
        """Return what a forward belongs to, None if it is not recorded."""
        if not torch.is_grad_enabled() or (self.by_hand and self._pass is None):
            return None
        # A forward inside a backward pass is one that is run again: its first run is recorded.
        if torch._C._current_graph_task_id() != -1:
            return None
        if not self.by_hand and self._pass is not None and self._pass.begun:
            self.collect()
        if self._pass is None:
            self._pass = SamplePass(self.names)
        return self._pass

    def _watch(self, owner: _Owner, module: nn.Module) -> None:
        make = identity_of(module)
        unknown = [n for n in owner.layers if make is None or n not in ("weight", "bias")]
        if unknown and self._limit is None:
            raise ModelError(
                f"the norms of the samples' gradients are exact for {IDENTITY_NAMES}, but "
                f"{owner.name}, a {type(module).__name__}, owns {', '.join(unknown)}: take "
                'estimator="sampled", or exclude the module'
            )
        if isinstance(module, _ConvNd) and list(owner.layers) == ["weight"]:
            # Where torch's own forward of a convolution asks for the convolution proper.
            vars(module)["_conv_forward"] = functools.partial(self._convolve, owner, module)
            self._convolutions.append(module)
            return
        called = self._run_again if unknown else functools.partial(self._called, make)
        hook = functools.partial(called, owner)
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _convolve(
        self, owner: _Owner, conv: _ConvNd, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Convolve, so that the backward pass makes the norms on its way."""
        own = type(conv)._conv_forward
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return own(conv, x, weight, bias)
        same = weight.dtype == x.dtype and weight.dtype in (torch.float32, torch.float64)
        given, geometry = padded(conv, x)
        cast = torch.is_autocast_enabled(x.device.type)
        if not same or cast or geometry.by_gram(given.shape, len(weight)):
            output = own(conv, x, weight, bias)
            self._called(identity_of(conv), owner, conv, (x,), {}, output)
            return output
        # Where nobody records, too: what is run again for a checkpoint must be what was run.
        current = self._open() or SamplePass(self.names)
        layer = owner.layers["weight"]
        current.expect(layer)
        asked = functools.partial(self._rows, current, owner=owner)
        found: Tensor = SampledConvolution.apply(  # type: ignore[no-untyped-call]
            given, weight, bias, geometry, layer, current, asked
        )
        return found

    def _called(
        self,
        make: Any,
        owner: _Owner,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        if not output.requires_grad or (current := self._open()) is None:
            return
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        if output.ndim < 2:
            raise ModelError(
                f"{owner.name} must be given a batch of samples, but got {tuple(x.shape)}"
            )
        for layer in owner.layers.values():
            current.expect(layer)
        returned = functools.partial(self._returned, current, make(module), owner, x)
        output.register_hook(returned)  # type: ignore[no-untyped-call]

    def _returned(
        self, current: SamplePass, identity: Identity, owner: _Owner, x: Tensor, g: Tensor
    ) -> None:
        with torch.no_grad():
            rows = self._rows(current, x, owner)
            for name, layer in owner.layers.items() if current.taken else ():
                current.arrived(layer, identity(name, x, g.detach(), rows))

    def _run_again(
        self,
        owner: _Owner,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        current = self._open()
        if current is None:
            return
        outputs = [t for t in ModuleSamples.tensors(output) if t.requires_grad]
        if not outputs:
            return
        for layer in owner.layers.values():
            current.expect(layer)
        samples = ModuleSamples(module, owner.name, list(owner.layers), args, kwargs)
        torch.autograd.graph.register_multi_grad_hook(
            ModuleSamples.tensors(outputs),
            functools.partial(self._ran_again, current, owner, samples),
        )

    def _ran_again(
        self,
        current: SamplePass,
        owner: _Owner,
        samples: ModuleSamples,
        gradients: Sequence[Tensor | None],
    ) -> None:
        rows = self._rows(current, samples.first, owner)
        if current.taken:
            uses = samples.uses(gradients, rows)
            for layer, use in zip(owner.layers.values(), uses, strict=True):
                current.arrived(layer, use)

    def _rows(self, current: SamplePass, x: Tensor, owner: _Owner) -> slice:
        left = None if self._limit is None else max(0, self._limit - self._taken)
        return current.rows(x, owner.name, left)


def _used_by(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Return the parameters that a module uses itself, by name."""
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return ()  # the projection in an attention, which the attention runs in its place
    return module.named_parameters(recurse=isinstance(module, nn.MultiheadAttention))
