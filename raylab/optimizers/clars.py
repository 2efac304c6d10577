"""CLARS: LARS with the mean of the samples' gradient norms in place of their mean's norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from raylab.errors import ConfigError, ModelError
from raylab.optimizers.lars import LARS, by_layer, by_name
from raylab.optimizers.per_sample_norms import PerSampleNorms
from raylab.optimizers.sample_pass import SamplePass

__all__ = ["CLARS"]

_SAMPLED = 512


class CLARS(LARS):
    """Complete layer-wise adaptive rate scaling, (4.7) of HUO, moved by (4.6).

        gamma_k = gamma · eta · |w_k| / (1/B sum_i |∇_k f_i(w)|)

    The norms of the samples' own gradients come from the backward pass that is made anyway, see
    `PerSampleNorms`. Where samples disagree, as they do at first and in the upper layers, the rate
    is smaller than that of LARS by the factor of (4.8): no warm-up is needed.

    Differs from the paper: algorithm 8 squares the norm in line 4, (4.7) does not, and is what is
    computed. `estimator="sampled"` is 4.4.4: LARS's rate times |mean_i ∇_k f_i|^2 over
    mean_j |∇_k f_j|^2 of the first J samples of an update, which are drawn at random as all are.
    M_k in `layer_figures` is that of 4.4.3, mean |∇_k f_i|^2 / |mean ∇_k f_i|^2.

    Args:
        params: parameters or groups of them.
        lr: gamma_scale, > 0.
        trust: eta, > 0.
        momentum: beta, 0 <= beta < 1.
        weight_decay: lambda >= 0, see `LARS`.
        plain: factor of gamma for all that is no layer, see `LARS`.
        exclude: class names of modules whose parameters go by the plain rate, too.
        estimator: of the samples' norms: "exact", or "sampled" from J of them.
        samples: J.
        model: to watch at once; without, call `watch` before the first step.

    Raises:
        ConfigError: a value is unknown or out of range.
        ModelError: a module of the model owns a layer whose norms are not known exactly.
    """

    _own: ClassVar[tuple[str, ...]] = (
        *LARS._own,
        *("_sampled", "_samples", "_norms", "_factor", "_moments", "_variances", "_given"),
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        trust: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        plain: float = 1.0,
        exclude: Sequence[str] = (),
        estimator: Literal["exact", "sampled"] = "exact",
        samples: int = _SAMPLED,
        model: nn.Module | None = None,
    ) -> None:
        if estimator not in ("exact", "sampled"):
            raise ConfigError(f"estimator must be exact or sampled, but got {estimator!r}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ConfigError(f"samples (J) >= 1 must hold for an integer, but got {samples!r}")
        self._sampled = estimator == "sampled"
        self._samples = samples
        self._norms: PerSampleNorms | None = None
        self._factor = 1.0
        self._moments: dict[Tensor, Tensor] = {}
        self._variances: dict[Tensor, Tensor] = {}
        self._given: Tensor | None = None
        super().__init__(
            params,
            lr,
            trust=trust,
            momentum=momentum,
            weight_decay=weight_decay,
            plain=plain,
            exclude=exclude,
            model=model,
        )

    def watch(
        self,
        *modules: nn.Module,
        names: Mapping[int, str] | None = None,
        by_hand: bool = False,
    ) -> None:
        """Find out which parameters are layers, and record their samples' norms from now on.

        Args:
            modules: that use the parameters.
            names: of the parameters, by `id`; None: as the first module has them.
            by_hand: record only within `recording`; what it yields goes to `collect`.

        Raises:
            ConfigError: it has been called before.
            ModelError: a module owns a layer whose norms are not known exactly.
        """
        super().watch(*modules, names=names)
        self._norms = PerSampleNorms(
            dict(self._layers),
            *modules,
            limit=self._samples if self._sampled else None,
            by_hand=by_hand,
        )

    def measured(self) -> dict[str, nn.Module]:
        """Return the modules whose samples' gradients are measured, by name."""
        return dict(self._its_norms().owners)

    def recording(self, resumed: SamplePass | None = None) -> AbstractContextManager[SamplePass]:
        """Record the forwards within, which one backward pass will go through.

        Args:
            resumed: what an earlier `recording` yielded, to add further forwards to.
        """
        return self._its_norms().recording(resumed)

    def collect(self, recorded: SamplePass | None) -> None:
        """Take in the norms of a recording whose backward pass has ended."""
        if recorded is not None:
            self._its_norms().collect(recorded)

    def scale(self, factor: float) -> None:
        """The gradients of this step have been multiplied by a factor after the backward passes.

        For 1/M after M sums. Clipping is none of it: a clipped gradient makes a smaller step.
        """
        self._factor *= factor

    def moments(self) -> Tensor:
        """Return the mean over samples of |∇_k f_i| and of its square, (2, layers).

        Several processes that average their gradients average these, too: what is written into
        the tensor is what the next step uses.
        """
        if self._given is None:
            moments = self._its_norms().moments()
            if self._factor != 1:
                moments[0] *= self._factor
                moments[1] *= self._factor**2
            self._given = moments
        return self._given

    def layer_figures(self) -> dict[str, list[Any]]:
        """Return names, last rates and last M_k (4.4.3) of the layers."""
        known = [p for _, p in self._layers if p in self._rates]
        return {
            **super().layer_figures(),
            "layer_variances": [float(self._variances[p]) for p in known],
        }

    def samples_state(self) -> dict[str, Any]:
        """Return the last figures, and what was recorded since, by parameter."""
        return {
            **super().samples_state(),
            "variances": by_name(self._layers, self._variances),
            **self._its_norms().state(),
        }

    def restore_samples(self, state: Mapping[str, Any]) -> None:
        """Go on with what `samples_state` returned."""
        super().restore_samples(state)
        self._variances = by_layer(self._layers, state["variances"])
        self._its_norms().restore(state)

    # ----------------------------------------------------------------- inside

    def _begin_step(self) -> None:
        norms, moments = self._its_norms(), self.moments()
        for layer, (name, p) in enumerate(self._layers):
            if not norms.seen[layer] and p.grad is not None and bool(p.grad.any()):
                raise ModelError(
                    f"{name} has a gradient, but none that came back through the module that owns "
                    "it: call the module, not its weights, train with "
                    "checkpoint(use_reentrant=False), or exclude the module"
                )
        self._moments = dict(zip((p for _, p in self._layers), moments.unbind(1), strict=True))
        self._given, self._factor = None, 1.0
        norms.reset()

    def _divisors(self, params: Sequence[Tensor], norms: Tensor) -> Tensor:
        if any(p not in self._moments for p in params):
            raise ModelError(
                "CLARS must have watched the modules of all its layers, but there is one more: "
                "give such parameters a group with layerwise=False"
            )
        first, second = torch.stack([self._moments[p] for p in params], 1).to(norms)
        squares = norms.square()
        # Without any gradient samples do not differ.
        variances = torch.where(squares > 0, second / squares, 1.0)
        self._variances.update(zip(params, variances.unbind(), strict=True))
        return norms * variances if self._sampled else first

    def _its_norms(self) -> PerSampleNorms:
        if self._norms is None:
            raise ModelError(
                "CLARS needs the norms of the samples' gradients, but watches no model: give it "
                "model=..., or call watch(model) before the first forward"
            )
        return self._norms
