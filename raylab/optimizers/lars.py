"""LARS: a rate for every layer, by the norms of its weights and of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raylab.errors import ConfigError
from raylab.optimizers.layers import plain_parameters
from raylab.optimizers.nag import check_numbers, nesterov_step

__all__ = ["LARS", "by_layer", "by_name"]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, (4.3) of HUO, moved by (4.6).

        gamma_k = gamma · eta · |w_k| / (|g_k| + lambda |w_k|)
        m_k <- beta m_k - gamma_k (g_k + lambda w_k),  w_k <- w_k + beta m_k - gamma_k (...)

    (4.3) has no weight decay lambda; it stands where You et al. 2017 (arXiv 1708.03888) have it. A
    layer whose weights are all zero has gamma · eta. Every parameter is a layer until `watch`
    has walked through the model: then biases and normalisations go by the plain gamma (times
    `plain`), without weight decay, in a parameter group that says `layerwise: False`. Groups may
    say so themselves.

    Args:
        params: parameters or groups of them.
        lr: gamma_scale, > 0.
        trust: eta, > 0.
        momentum: beta, 0 <= beta < 1.
        weight_decay: lambda >= 0.
        plain: factor of gamma for all that is no layer: 1 suits networks with normalisation; one
            without may need less, as gamma grows with the batch.
        exclude: class names of modules whose parameters go by the plain rate, too.
        model: to watch at once, see `watch`.

    Raises:
        ConfigError: a number is out of range.
    """

    _own: ClassVar[tuple[str, ...]] = ("_exclude", "_layers", "_watched", "_rates")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        trust: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        plain: float = 1.0,
        exclude: Sequence[str] = (),
        model: nn.Module | None = None,
    ) -> None:
        check_numbers(lr=lr, trust=trust, momentum=momentum, weight_decay=weight_decay, plain=plain)
        self._exclude = tuple(exclude)
        self._layers: list[tuple[str, nn.Parameter]] = []
        self._watched = False
        self._rates: dict[Tensor, Tensor] = {}
        defaults = {"lr": lr, "trust": trust, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "plain": plain, "layerwise": True})
        if model is not None:
            self.watch(model)

    def watch(
        self,
        *modules: nn.Module,
        names: Mapping[int, str] | None = None,
        by_hand: bool = False,  # noqa: ARG002 - of those that record samples
    ) -> None:
        """Find out which parameters are layers. Before a scheduler is made, and once.

        Args:
            modules: that use the parameters.
            names: of the parameters, by `id`; None: as the first module has them.
            by_hand: record samples only within `recording`.

        Raises:
            ConfigError: it has been called before.
            ModelError: see `CLARS`.
        """
        if self._watched:
            raise ConfigError(f"{type(self).__name__} must watch a model once: make another one")
        self._watched = True
        plain = {id(p) for p in plain_parameters(*modules, exclude=self._exclude)}
        for group in [g for g in self.param_groups if g["layerwise"]]:
            others = {key: value for key, value in group.items() if key != "params"}
            beside = [p for p in group["params"] if id(p) in plain]
            group["params"] = [p for p in group["params"] if id(p) not in plain]
            # Also an empty one: every stage of a pipeline has as many groups as the others.
            self.add_param_group({**others, "params": beside, "layerwise": False, **_PLAIN})
        known = names or {id(p): n for m in modules for n, p in m.named_parameters()}
        self._layers = [
            (known.get(id(p), f"a parameter of {tuple(p.shape)}"), p)
            for group in self.param_groups
            for p in group["params"]
            if group["layerwise"]
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient, see the class."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._begin_step()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if params and group["layerwise"]:
                rates = self._layer_rates(group, params, grads)
                self._rates.update(zip(params, rates, strict=True))
                nesterov_step(self.state, group, params, grads, rates)
            else:
                rate = group["lr"] * group["plain"]
                nesterov_step(self.state, group, params, grads, rate)
        return loss

    def layer_figures(self) -> dict[str, list[Any]]:
        """Return names and last rates of the layers that `watch` has found."""
        known = [(name, p) for name, p in self._layers if p in self._rates]
        return {
            "layer_names": [name for name, _ in known],
            "layer_rates": [float(self._rates[p]) for _, p in known],
        }

    # ----------------------------------------------------------------- samples, of those that ask

    def recording(self, resumed: Any = None) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Record the forwards within, see `CLARS.recording`."""
        return nullcontext()

    def collect(self, recorded: Any) -> None:
        """Take in what was recorded, see `CLARS.collect`."""

    def scale(self, factor: float) -> None:
        """The gradients are multiplied by a factor, see `CLARS.scale`."""

    def samples_state(self) -> dict[str, Any]:
        """Return the last rates, and what was recorded since, see `CLARS.samples_state`."""
        return {"rates": by_name(self._layers, self._rates)}

    def restore_samples(self, state: Mapping[str, Any]) -> None:
        """Go on with what `samples_state` returned."""
        self._rates = by_layer(self._layers, state["rates"])

    # ----------------------------------------------------------------- inside

    def _begin_step(self) -> None:
        """Prepare what all groups need."""

    def _divisors(self, params: Sequence[Tensor], norms: Tensor) -> Tensor:  # noqa: ARG002
        """Return what |w_k| is divided by, (K,).

        Args:
            params: the layers.
            norms: of their gradients, (K,).
        """
        return norms

    def _layer_rates(
        self, group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        """Return gamma_k of every layer, ()."""
        weights = torch.stack(torch._foreach_norm(params))
        divisors = self._divisors(params, torch.stack(torch._foreach_norm(grads)))
        divisors = divisors.to(weights) + group["weight_decay"] * weights
        # A gradient of zero moves nothing, whatever its rate.
        trusts = torch.where(divisors > 0, weights / divisors, 0.0)
        rates = torch.where(weights > 0, trusts, 1.0) * (group["lr"] * group["trust"])
        return list(rates.unbind())

    def __getstate__(self) -> dict[str, Any]:
        # torch's own leaves out all that is not its own, and a copy of it would not work.
        own = {name: value for name, value in vars(self).items() if name in self._own}
        return {**super().__getstate__(), **own}


_PLAIN = {"weight_decay": 0.0}
Layers = Sequence[tuple[str, nn.Parameter]]


def by_name(layers: Layers, numbers: Mapping[Tensor, Tensor]) -> dict[str, float]:
    """Return what is known of the layers by their names."""
    return {name: float(numbers[p]) for name, p in layers if p in numbers}


def by_layer(layers: Layers, numbers: Mapping[str, float]) -> dict[Tensor, Tensor]:
    """Return what `by_name` returned, where it belongs, in at least float32."""
    return {
        p: torch.tensor(
            numbers[name], dtype=torch.promote_types(p.dtype, torch.float32), device=p.device
        )
        for name, p in layers
        if name in numbers
    }
