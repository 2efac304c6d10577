"""A driver beside the first Ray node: `raylab.AveragingTrainer` as a user runs it."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import uuid
from collections.abc import Mapping
from typing import Any

import ray
from ray.train import RunConfig
from torch.optim import SGD

from benchmarks.shaped.flat_model import FlatModel, batch, loss
from raylab import AveragingTrainer

_RATE = 1e-3
_FOLDER = "/run/raylab"


def train(task: Mapping[str, Any], workers: int) -> dict[str, float]:
    """Return seconds a step from the end of one row to that of the next, and those blocked."""
    rule = task["rule"]
    own = {"minibatch_sgd": {}, "local_sgd": {"tau": rule["tau"]}}
    trainer = AveragingTrainer(
        FlatModel(task["megabytes"], task["compute_s"]),
        loss,
        method=task["method"],
        workers=workers,
        optimizer=functools.partial(SGD, lr=_RATE),
        checkpoint_minutes=0,
        resources_per_worker={"CPU": 1},
        wait_s=task["wait_s"],
        run_config=RunConfig(name=uuid.uuid4().hex, storage_path=_FOLDER),
        **own.get(task["method"], {name: rule[name] for name in ("tau", "delay", "xi")}),
    )
    steps = task["steps"]
    result = trainer.fit([batch()] * (2 * steps * workers), report_every=steps, progress=False)
    first, second = (row for row in result.table.to_pylist() if row["epoch"] is None)
    return {
        "step_s": (second["time_s"] - first["time_s"]) / steps,
        "blocked_s": second["blocked_s"] / steps,
    }


def main() -> None:
    """Join the cluster, then do what standard input says."""
    place = json.loads(sys.argv[1])
    ray.init(
        f"{place['meets_at']}:{place['port']}", log_to_driver=False, logging_level=logging.WARNING
    )
    for line in sys.stdin:
        task = {**json.loads(line), "wait_s": place["timeout_s"]}
        # What libraries print must not stand between the answers.
        with contextlib.redirect_stdout(sys.stderr):
            answer = train(task, place["size"])
        print(json.dumps(answer), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
