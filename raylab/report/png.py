"""The report's figures as PNG files, drawn by a browser that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from raylab.errors import ConfigError
from raylab.report.figure import Figure, safe

__all__ = ["write_pngs"]

_WIDTH_PX, _WIDE_PX, _SCALE = 760, 1400, 2


def write_pngs(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write a PNG per figure, on white, with its title; return the files.

    Args:
        figures: of the report.
        folder: made if missing.

    Raises:
        ConfigError: there is no Chromium or Chrome, or the folder cannot be written.
    """
    import kaleido
    from choreographer.errors import ChromeNotFoundError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{figure.name}.png" for figure in figures]
        # Without this, every page would ask the network for a script that no figure needs.
        kaleido.write_fig_from_object_sync(
            [
                {
                    "fig": _titled(figure),
                    "path": str(path),
                    "opts": {
                        "format": "png",
                        "width": _WIDE_PX if figure.wide else _WIDTH_PX,
                        "height": figure.plot.layout.height + 60,
                        "scale": _SCALE,
                    },
                }
                for figure, path in zip(figures, paths, strict=True)
            ],
            kopts={"mathjax": False},
        )
    except ChromeNotFoundError as error:
        raise ConfigError(
            "--png must have a browser to draw with, but found no Chromium or Chrome: install "
            "one (apt-get install chromium, or plotly_get_chrome) or name it in BROWSER_PATH"
        ) from error
    except OSError as error:
        raise ConfigError(f"--png must be a folder to write to, but {folder}: {error}") from error
    return paths


def _titled(figure: Figure) -> go.Figure:
    plot = go.Figure(figure.plot)
    more = 34 if plot.layout.showlegend else 0
    names = {trace.name for trace in plot.data}
    return plot.update_layout(
        title={"text": safe(figure.title), "x": 0.02, "font": {"size": 17}},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"t": 64 + more},
        # The page's own legend is not on the picture.
        showlegend=plot.layout.showlegend or len(names) > 1,
    )
