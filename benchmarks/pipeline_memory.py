"""Claim: what is in flight grows with the method as HUO's Table 6 says: Features Replay stays close
to back-propagation, DDG holds about twice as much at K = 4 (Fig. 27), ADL more, and with
`recompute` both hold inputs in place of graphs.

    python -m benchmarks.pipeline_memory --model resnet56 --batch-size 32

Bytes are those that the stages count: inputs and what autograd saves for open batches, weights of
old forwards, messages not yet taken, and the parameters, gradients and momenta that every method
has. Peaks of all stages added up, on one process a stage.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from raylab.config import pipeline_config
from raylab.drivers.pipeline.command import run_pipeline

CASES: list[dict[str, Any]] = [
    {"method": "bp"},
    {"method": "ddg"},
    {"method": "ddg", "recompute": True},
    {"method": "fr"},
    {"method": "adl"},
    {"method": "adl", "recompute": True},
]
MIB = 2**20


def measure(case: dict[str, Any], stages: int, options: argparse.Namespace) -> dict[str, float]:
    """Run some batches; return the bytes in flight by kind, added over the stages, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        images = f"random:n={options.batches * options.batch_size},shape=3x32x32,classes=10"
        result = run_pipeline(
            pipeline_config(
                {
                    **case,
                    "model": options.model,
                    "data": images,
                    "batch_size": options.batch_size,
                    "stages": stages,
                    "storage": folder,
                    "checkpoint_minutes": 0.0,
                    "timeline": 0,
                }
            ),
            progress=False,
        )
    row = result.metrics
    parameters = sum(p.numel() * p.element_size() for p in result.model.parameters())
    kinds = ("activation", "version", "mailbox")
    found = {kind: sum(row[f"stage_{kind}_bytes_peak"]) / MIB for kind in kinds}
    return {**found, "parameters": 3 * parameters / MIB}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 3, 4])
    options = parser.parse_args()
    print("| K | method | activations | versions | mailboxes | weights ×3 | sum MiB | over BP |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for stages in options.stages:
        base = 0.0
        for case in CASES:
            found = measure(case, stages, options)
            total = sum(found.values())
            base = base or total
            name = case["method"] + (" recompute" if case.get("recompute") else "")
            print(
                f"| {stages} | {name} | {found['activation']:.1f} | {found['version']:.1f} "
                f"| {found['mailbox']:.1f} | {found['parameters']:.1f} | {total:.1f} "
                f"| {total / base:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
