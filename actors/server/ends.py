"""When the run of a server ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Ends"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """When a run ends: at whichever comes first.

    Args:
        samples: looked at, in all; None: any number.
        messages: applied; None: any number.
        tolerance: largest `figure` of a certificate that is good enough; 0: none is.
        figure: of the certificate, e.g. duality_gap.
        certify_samples: samples between two certificates.
    """

    samples: float | None = None
    messages: int | None = None
    tolerance: float = 0.0
    figure: str = ""
    certify_samples: float = float("inf")

    def reached(self, samples: int, messages: int) -> str:
        """Return why a run ends that has come so far; empty: it goes on."""
        if self.samples is not None and samples >= self.samples:
            return "epochs"
        if self.messages is not None and messages >= self.messages:
            return "messages"
        return ""

    def good_enough(self, figures: Mapping[str, float]) -> bool:
        """Tell whether a run may end with a certificate."""
        value = figures.get(self.figure)
        return value is not None and self.tolerance > 0 and value <= self.tolerance
