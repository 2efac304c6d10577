"""What the commands that train share: Ray's session, and how a result is said."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylab.drivers.result import Result

__all__ = ["ray_session", "say_result", "write"]


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """End Ray with the block, unless it was there before."""
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        yield
    finally:
        ray.shutdown()


def say_result(result: Result, *, as_json: bool) -> None:
    """Print a run's result, after Ray's end, so that no late line of a worker comes behind ours."""
    if as_json:
        write(json.dumps(result.summary, allow_nan=False))
        return
    from rich.console import Console

    from raylab.report import final_table

    config = result.summary["config"]
    what = config["model"] if "model" in config else config["problem"]
    where = "" if config["data"] is None else f" on {config['data']}"
    title = f"{config['method']}: {what}{where}"
    Console().print(final_table(title, result.summary))
    write(f"results: {result.summary['path']}")
    write(f"report: {result.summary['path']}/report.html")


def write(text: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
