"""Colours that the colour-blind can tell apart, for light and for dark pages.

After Okabe and Ito, *Color Universal Design* (2008); lighter for dark backgrounds, darker where a
thin line would be lost on white. A colour is named by its *tone*, and the page picks the value.
"""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "RANKS", "run_dash", "run_tone"]

_RUNS_LIGHT = ("#0072B2", "#D55E00", "#007F5F", "#B0508A", "#8A6A00", "#3A9BD9", "#5B5B5B")
_RUNS_DARK = ("#5CB8F0", "#FF9A52", "#38CFA3", "#EDA3CF", "#F0D442", "#9AD8FF", "#C4C7CE")
_DASHES = ("solid", "longdash", "dashdot")

_RANKS_LIGHT = ("#08366B", "#2171B5", "#5FA3D3", "#9CC3E2", "#CBDCEB")
_RANKS_DARK = ("#E2F2FF", "#93CCFB", "#4F9BD6", "#38699A", "#2C445E")
"""From the best to the worst, of one hue: they differ in lightness alone."""

_KINDS_LIGHT = {
    "forward": "#0072B2",
    "backward": "#E69F00",
    "update": "#009E73",
    "evaluate": "#CC79A7",
    "waiting": "#C3C8D0",
    "activations": "#0072B2",
    "versions": "#E69F00",
    "mailboxes": "#009E73",
}
_KINDS_DARK = {
    "forward": "#4FA8E0",
    "backward": "#F0B43C",
    "update": "#2BBF94",
    "evaluate": "#E3A0C8",
    "waiting": "#4B5361",
    "activations": "#4FA8E0",
    "versions": "#F0B43C",
    "mailboxes": "#2BBF94",
}

LIGHT = {
    **{f"run{i}": colour for i, colour in enumerate(_RUNS_LIGHT)},
    **{f"rank{i}": colour for i, colour in enumerate(_RANKS_LIGHT)},
    **_KINDS_LIGHT,
    "text": "#1C2430",
    "muted": "#566071",
    "grid": "#E4E8EE",
    "axis": "#A3ACBA",
    "card": "#FFFFFF",
}
DARK = {
    **{f"run{i}": colour for i, colour in enumerate(_RUNS_DARK)},
    **{f"rank{i}": colour for i, colour in enumerate(_RANKS_DARK)},
    **_KINDS_DARK,
    "text": "#E8ECF2",
    "muted": "#A4AEBD",
    "grid": "#2A313C",
    "axis": "#5A6474",
    "card": "#181D25",
}


RANKS = tuple(f"rank{i}" for i in range(len(_RANKS_LIGHT)))
"""Tones of things in an order, the best first."""


def run_tone(index: int) -> str:
    """Return the tone of a run; from the eighth on, tones come again with another dash."""
    return f"run{index % len(_RUNS_LIGHT)}"


def run_dash(index: int) -> str:
    """Return the dash that tells runs of the same tone apart, `solid` for the first seven."""
    return _DASHES[index // len(_RUNS_LIGHT) % len(_DASHES)]
