"""What the commands that train share: Ray's session, and how a result is said."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["ray_session", "say_result", "write"]


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """End Ray with the block, unless it was there before."""
    import ray

    from raylab.drivers.ray_start import disconnect

    if ray.is_initialized():
        yield
        return
    try:
        yield
    finally:
        disconnect()


def say_result(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a run's summary, after Ray's end: no late line of a worker comes behind ours."""
    if as_json:
        write(json.dumps(summary, allow_nan=False))
        return
    from rich.console import Console

    from raylab.report import final_table

    config = summary["config"]
    what = config["model"] if "model" in config else config["problem"]
    where = "" if config["data"] is None else f" on {config['data']}"
    Console().print(final_table(f"{config['method']}: {what}{where}", summary))
    write(f"results: {summary['path']}")
    write(f"report: {summary['path']}/report.html")


def write(text: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
