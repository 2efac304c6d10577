"""The methods of the parameter server, as rows of one table; each is computed in its own file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SERVER_METHODS", "ServerMethod"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMethod:
    """One method.

    Args:
        name: under which users ask for it.
        title: as the papers write it.
        source: where it is defined.
        needs: the least that an objective must be: "gradient" (`Objective`), "residual"
            (`DualObjective`) or "linear" (`LinearObjective`).
        late: what happens to a message that would be too stale. A method with duals has changed
            its worker already, so the others wait; otherwise it is refused and computed anew.
        duals: whether workers keep an α_i for every sample, with w = Σ α_i/(λn) (3.3).
        stepped: whether there is a step eta.
        theory: whether the paper gives the step as a formula of known constants.
        serial: whether it has one worker only.
        rounds: whether it works in synchronous rounds only.
    """

    name: str
    title: str
    source: str
    needs: Literal["gradient", "residual", "linear"] = "gradient"
    late: Literal["wait", "refresh"] = "refresh"
    duals: bool = False
    stepped: bool = True
    theory: bool = False
    serial: bool = False
    rounds: bool = False


SERVER_METHODS: dict[str, ServerMethod] = {
    method.name: method
    for method in (
        ServerMethod(name="asysgd", title="AsySGD", source="compared in HUO 2.4"),
        ServerMethod(name="sgd_svrg", title="SGD_SVRG", source="HUO 2.5.1"),
        ServerMethod(name="asysvrg", title="AsySVRG", source="HUO alg. 2, 3; eq. 2.32, 2.33"),
        ServerMethod(
            name="dis_dfsdca",
            title="Dis-dfSDCA",
            source="HUO alg. 6, 7; eq. 3.5-3.8",
            needs="residual",
            late="wait",
            duals=True,
            theory=True,
        ),
        ServerMethod(
            name="dfsdca",
            title="dfSDCA",
            source="HUO alg. 5",
            needs="residual",
            late="wait",
            duals=True,
            theory=True,
            serial=True,
        ),
        ServerMethod(
            name="sdca",
            title="SDCA",
            source="HUO alg. 4; eq. 3.4",
            needs="linear",
            late="wait",
            duals=True,
            stepped=False,
            serial=True,
        ),
        ServerMethod(
            name="cocoa_plus",
            title="CoCoA+",
            source="Ma et al. 2015, compared in HUO 3.5",
            needs="linear",
            late="wait",
            duals=True,
            stepped=False,
            rounds=True,
        ),
    )
}
"""Every method of the server by name."""
