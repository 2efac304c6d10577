"""Steps: the theorems', and the largest that is likely to be stable.

**Dual-free methods.** A message of H samples at one w moves w by -η Σ κ_i, on average by -ηH ∇P(w),
and α_i to (1 - ηλn) α_i - ηλn ∇φ_i. What limits the step:

    ηλn <= 1                  α_i is then replaced whole; beyond, it overshoots
    ηH(c + λ)(1 + τ) <= 1     mean dynamics δ' = δ - a δ_stale: stable for a < 2 sin(π/(4τ + 2)), of
                              which 1/(1 + τ) is 0.5 to 0.65 for any τ
    ηL <= 1                   the noise of single samples: E|Σ κ_i|² grows as H (H c + L)

with c the largest eigenvalue of the mean Hessian, not L: rows that point everywhere leave c far
below L, and H may be larger by that much. The second and third add up, as the moments do. τ is the
typical staleness, K - 1, whatever the bound is.

**SVRG and SGD** step by the mean of b samples: H = 1 above, and noise of L/b, of which a quarter is
the usual margin of variance-reduced steps.
"""

from __future__ import annotations

from raylab.algorithms.server.settings import ServerSettings

__all__ = [
    "LARGEST_FACTOR",
    "auto_eta",
    "chosen_eta",
    "long_rows",
    "notes",
    "sgd_eta",
    "theory_eta",
]

LARGEST_FACTOR = 2.0
"""By which non-uniform sampling multiplies the step of one sample, at most."""
_NOISE_MARGIN = 4.0
_LONG_ROWS = 100.0
"""Of L/(λn), about the passes that divide the distance to the optimum by e (SDCA's n + L/λ)."""


def theory_eta(settings: ServerSettings) -> float:
    """Return the largest step of Theorem 3.4.1 or 3.4.3.

    (3.18), convex φ_i:      1 / (4HLτ² + λn + 2L)
    (3.30), others:          λ² / (2HLτ²λ² + 8HLτ²(L+λ)² + 4λL² + nλ³)

    with τ the bound of the staleness; dfSDCA has H = 1 and τ = 0.

    >>> theory_eta(ServerSettings(method="dfsdca", workers=1, n=98, dim=3, strength=1.0,
    ...                           smoothness=1.0))
    0.01
    """
    smooth, strength, n = settings.smoothness, settings.strength, settings.n
    late = _per_message(settings) * smooth * settings.delta_updates**2
    if settings.convex:
        return 1 / (4 * late + strength * n + 2 * smooth)
    return strength**2 / (
        2 * late * strength**2
        + 8 * late * (smooth + strength) ** 2
        + 4 * strength * smooth**2
        + n * strength**3
    )


def auto_eta(settings: ServerSettings) -> float:
    """Return the step to begin with where none is given; methods without a step have 0."""
    if not settings.traits.stepped:
        return 0.0
    mean = (settings.mean_curvature + settings.strength) * settings.workers
    smooth = settings.smoothness
    if not settings.traits.duals:
        return 1 / (mean + _NOISE_MARGIN * smooth / settings.message_samples)
    factor = LARGEST_FACTOR if settings.sampling != "uniform" else 1.0
    if settings.traits.serial:
        return 1 / (settings.lambda_n + smooth)
    return min(
        1 / (factor * settings.lambda_n),
        1 / (factor * smooth + settings.message_samples * mean),
    )


def chosen_eta(settings: ServerSettings) -> float:
    """Return the step that a run begins with."""
    if settings.eta == "auto":
        return auto_eta(settings)
    if settings.eta == "theory":
        return theory_eta(settings)
    return settings.eta


def sgd_eta(eta: float, strength: float, updates: int) -> float:
    """Return the step of SGD after some updates: eta / (1 + eta λ t).

    It falls as 1/(λt) in the end, as strongly convex problems need, and stays constant for as long
    as λ says nothing; the paper tunes α/(1+s)^β for each problem (HUO 2.5.1).
    """
    return eta / (1 + eta * strength * updates)


def long_rows(smoothness: float, strength: float, n: int) -> list[str]:
    """Return a note where a linear model's rows are so long that a run takes very many passes."""
    if smoothness <= _LONG_ROWS * strength * n:
        return []
    return [
        f"the longest row gives L={smoothness:.3g}, and λn={strength * n:.3g}: about "
        f"L/(λn)={smoothness / (strength * n):.2g} passes divide the distance to the optimum by e, "
        "and a gap may rise before it falls; scale the columns of the data, or raise strength"
    ]


def notes(settings: ServerSettings) -> list[str]:
    """Return what a user should know of the settings before a run: what no theorem covers, and
    rows that are long.
    """
    linear = settings.convex and settings.dual_width == 1 and settings.strength > 0
    slow = long_rows(settings.smoothness, settings.strength, settings.n) if linear else []
    return [*_uncovered(settings), *slow]


def _uncovered(settings: ServerSettings) -> list[str]:
    """Return what of the given eta, delta and local_steps the theorems do not cover.

    Theorem 3.4.1 or 3.4.3 for dual-free methods; (2.46) of Theorem 2.4.2 for AsySVRG, with
    u_0 b = ηL, which is the least that its exponent allows.
    """
    eta = chosen_eta(settings)
    delta = settings.delta_updates
    if settings.traits.theory:
        given = [
            f"{name}={value}"
            for name, value in (
                ("eta", settings.eta if isinstance(settings.eta, float | int) else None),
                ("delta", settings.delta),
                ("local_steps", settings.local_steps),
            )
            if value is not None
        ]
        most = theory_eta(settings)
        if not given or eta <= most * (1 + 1e-12):
            return []
        equation = "(3.18)" if settings.convex else "(3.30)"
        return [
            f"{', '.join(given)}: eta={eta:.3g} is beyond the bound of {equation}, which is "
            f"{most:.3g} for H={_per_message(settings)}, tau={delta}"
        ]
    if settings.method in ("asysvrg", "sgd_svrg") and not isinstance(settings.eta, str):
        u = eta * settings.smoothness
        square = min(1 / (2 * u), (3 - 28 * u) / (28 * u * u))
        if delta**2 >= square:
            bound = f"{square**0.5:.3g}" if square > 0 else "below 0"
            return [
                f"eta={eta:.3g}: a staleness of up to delta={delta} is beyond the bound of "
                f"(2.46), which is {bound}"
            ]
    return []


def _per_message(settings: ServerSettings) -> int:
    return 1 if settings.traits.serial else settings.message_samples
