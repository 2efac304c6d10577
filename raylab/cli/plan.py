"""`raylab plan WHAT …`: which plan it is."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from raylab.cli import plan_averaging, plan_pipeline

__all__ = ["run"]

_PLANS = {"pipeline": plan_pipeline.run, "averaging": plan_averaging.run}

_DESCRIPTION = """\
Say what a run would give, without training.

plans:
  pipeline    where to cut a network into stages, and every pipeline method on it
  averaging   how often data-parallel workers average, how late the average may come, and what
              mini-batch SGD, Local SGD and DaSGD lose to the network

examples:
  raylab plan pipeline adl stages=4
  raylab plan averaging --model resnet50 --workers 256 --gpus-per-node 8 --ethernet-gbps 20 \\
      --pcie-gbps 16 --step-ms 526
  raylab plan pipeline --help
  raylab plan averaging --help"""


def run(argv: Sequence[str]) -> int:
    """Run the command with the words after `raylab plan`; return its exit code.

    Raises:
        RaylabError: the input cannot be used, or a stage or a worker failed.
    """
    if argv and argv[0] in _PLANS:
        return _PLANS[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(
        prog="raylab plan",
        usage="raylab plan pipeline|averaging ...",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    given, words = parser.parse_known_args(argv)
    del given
    if not words:
        parser.error("what is planned must be pipeline or averaging, but got nothing")
    close = difflib.get_close_matches(words[0], _PLANS, n=1)
    hint = f": did you mean {close[0]}?" if close else f": raylab plan pipeline {words[0]}"
    return parser.error(
        f"what is planned must be pipeline or averaging, but got {words[0]!r}{hint}"
    )
