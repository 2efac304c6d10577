"""`raylab report PATH… [--output FILE] [--png DIR] [--json]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylab.cli.session import write

if TYPE_CHECKING:
    from raylab.report import RunRecord

__all__ = ["run", "write_report"]

_DESCRIPTION = """\
Make one HTML page of a run, or of several to compare them: curves by epoch and by time, the
timeline of the stages, staleness, memory, throughput and the configurations side by side. The
page holds all that it needs and works offline. Every run writes its own as report.html.

examples:
  raylab report runs/try1                        runs/try1/report.html
  raylab report runs/try1 runs/try2              report.html, both runs in every plot
  raylab report runs --output all.html           every run below runs/
  raylab report runs/try1 --png figures          each figure as a PNG, too; needs Chromium"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab report`; return its exit code.

    Raises:
        InputError: there is no run, a file of it is broken, or the page cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="raylab report",
        usage="raylab report PATH [PATH ...] [--output FILE] [--png DIR] [--json]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a run's folder, or a folder of runs"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page; default: report.html in PATH, or here if there are several",
    )
    parser.add_argument(
        "--png", type=Path, metavar="DIR", help="write each figure as a PNG file to this folder"
    )
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object instead of the paths"
    )
    given = parser.parse_args(argv)
    from raylab.report import read_runs

    runs = read_runs(given.paths)
    if given.output is not None:
        output = write_report(runs, str(given.output.parent), given.output.name)
    else:
        output = write_report(runs, given.paths[0] if len(given.paths) == 1 else ".")
    pngs = _pngs(runs, given.png) if given.png else []
    if given.json:
        answer = {
            "report": output,
            "png": [str(path) for path in pngs],
            "runs": [{"name": each.name, **each.result} for each in runs],
        }
        write(json.dumps(answer, allow_nan=False))
        return 0
    for path in pngs:
        write(f"figure: {path}")
    write(f"report: {output}")
    return 0


def write_report(runs: Sequence[RunRecord], folder: str, name: str = "report.html") -> str:
    """Write the page of `runs`; return its path or address.

    Args:
        runs: to show.
        folder: path or address.
        name: of the file.

    Raises:
        InputError: it cannot be written there.
    """
    from raylab.records import Storage
    from raylab.report.page import report_page

    storage = Storage.at(folder)
    storage.write(name, report_page(runs).encode())
    return f"{storage.uri}/{name}"


def _pngs(runs: Sequence[RunRecord], folder: Path) -> list[Path]:
    from raylab.report.page import report_figures
    from raylab.report.png import write_pngs

    return write_pngs(report_figures(runs), folder.expanduser().absolute())
