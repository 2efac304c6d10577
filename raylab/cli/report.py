"""`raylab report PATH… [--output FILE] [--png DIR] [--json]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylab.cli.session import write
from raylab.errors import ConfigError

if TYPE_CHECKING:
    from raylab.report import RunRecord

__all__ = ["run", "write_report"]

_DESCRIPTION = """\
Make one HTML page of a run, or of several to compare them: curves by epoch and by time, the
timeline of the stages, staleness, memory, throughput and the configurations side by side. The
page holds all that it needs and works offline. Every run writes its own as report.html. Of a
search by raylab tune, the page has its best keys and all its trials, also while it goes on.

examples:
  raylab report runs/try1                        runs/try1/report.html
  raylab report runs/try1 runs/try2              report.html, both runs in every plot
  raylab report runs --output all.html           every run below runs/
  raylab report runs/tune1                       the search in runs/tune1
  raylab report runs/tune1/trials/3 runs/tune1/trials/7   two of its trials, compared
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
        "paths",
        nargs="+",
        metavar="PATH",
        help="the folder of a run or of a search, or a folder of runs",
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
    from raylab.drivers.tuning.page import holds_search

    searches = [path for path in given.paths if holds_search(path)]
    if searches:
        return _report_search(given, searches)
    from raylab.report import read_runs

    runs = read_runs(given.paths)
    if given.output is not None:
        output = write_report(runs, str(given.output.parent), given.output.name)
    else:
        output = write_report(runs, given.paths[0] if len(given.paths) == 1 else ".")
    pngs = _pngs(runs, given.png) if given.png else []
    told = {"runs": [{"name": each.name, **each.result} for each in runs]}
    _say(output, pngs, told, as_json=given.json)
    return 0


def _report_search(given: argparse.Namespace, searches: Sequence[str]) -> int:
    if len(given.paths) > 1:
        raise ConfigError(
            f"the page of a search must be of it alone, but got {', '.join(given.paths)}: give "
            f"{searches[0]}, or {searches[0]}/trials/N for the runs of its trials"
        )
    from raylab.drivers.tuning.page import read_tuning
    from raylab.records import Storage
    from raylab.report.png import write_pngs
    from raylab.report.tuning_page import tuning_figures, tuning_page

    record = read_tuning(searches[0])
    output = given.output or Path(searches[0]) / "report.html"
    if given.output is not None:
        record = replace(record, reported=())  # the links would lead nowhere
    storage = Storage.at(str(output.parent))
    storage.write(output.name, tuning_page(record).encode())
    pngs = (
        write_pngs(tuning_figures(record), given.png.expanduser().absolute()) if given.png else []
    )
    _say(
        f"{storage.uri}/{output.name}", pngs, {"tuning": {"name": record.name, **record.summary}},
        as_json=given.json,
    )  # fmt: skip
    return 0


def _say(report: str, pngs: Sequence[Path], more: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        answer = {"report": report, "png": [str(path) for path in pngs], **more}
        write(json.dumps(answer, allow_nan=False))
        return
    for path in pngs:
        write(f"figure: {path}")
    write(f"report: {report}")


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
