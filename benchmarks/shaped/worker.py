"""A worker process with raylab's rule and torch's own methods.

raylab's rows are its rule of a replica (`raylab.algorithms.averaging`) on its seat in a process
group (`actors.averaging`). All methods share the processes, their connections and the model.
"""

from __future__ import annotations

import functools
import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from actors.averaging.collective import DistributedCollective
from benchmarks.shaped.flat_model import FlatModel, batch, loss
from benchmarks.shaped.serving import RATE, Answer, Task, meet, plain_step, serve, timed
from raylab.algorithms.averaging.averages import average_of
from raylab.algorithms.averaging.method import AveragingNumbers
from raylab.algorithms.averaging.worker import AveragingWorker, WorkerSettings


def alone(task: Task) -> Answer:
    """No communication: forward, backward and update, and nothing else."""
    model = FlatModel(task["megabytes"], task["compute_s"])
    return timed(task, plain_step(model, SGD(model.parameters(), lr=RATE)))


def average(task: Task, seat: DistributedCollective) -> Answer:
    """t_c: averages of the weights, one after another, and nothing beside them."""
    flat = FlatModel(task["megabytes"], 0.0).weights[0].detach()
    mean = average_of(seat, flat, averages="weights")
    return timed(task, lambda: mean.start(flat.clone()).wait())


def raylab(task: Task, seat: DistributedCollective) -> Answer:
    """Mini-batch SGD, Local SGD or DaSGD, by its numbers."""
    rule = AveragingNumbers(**task["rule"])
    worker = AveragingWorker(
        FlatModel(task["megabytes"], task["compute_s"]),
        WorkerSettings(rule=rule, worker=dist.get_rank()),
        optimizer=functools.partial(SGD, lr=RATE),
        schedule=None,
        loss_fn=loss,
        average=functools.partial(average_of, seat, averages=rule.averages),
    )
    x, y = batch()

    def step() -> None:
        worker.begin(x, y)
        worker.end()

    answer = timed(task, step, lambda: worker.figures.take()["blocked_s"])
    worker.drop()
    return answer


def ddp(task: Task) -> Answer:
    """Let DDP train; a flat parameter is one bucket, sent after the backward."""
    buckets = task["buckets"]
    model = DistributedDataParallel(
        FlatModel(task["megabytes"], task["compute_s"], buckets),
        # Less than a layer: each is a bucket.
        bucket_cap_mb=task["megabytes"] / buckets / 2,
    )
    return timed(task, plain_step(model, SGD(model.parameters(), lr=RATE)))


def post_local_sgd(task: Task) -> Answer:
    """Let PostLocalSGDOptimizer average from the first step on, one worker a node."""
    model = FlatModel(task["megabytes"], task["compute_s"])
    averager = PeriodicModelAverager(period=task["tau"], warmup_steps=0)
    optimizer = PostLocalSGDOptimizer(SGD(model.parameters(), lr=RATE), averager)
    return timed(task, plain_step(model, optimizer))


def main() -> None:
    """Serve."""
    meet(json.loads(sys.argv[1]))
    # As the trainer has it: averages have a group of their own.
    seat = DistributedCollective(dist.new_group(), torch.device("cpu"))
    serve(
        {
            "alone": alone,
            "average": functools.partial(average, seat=seat),
            "raylab": functools.partial(raylab, seat=seat),
            "ddp": ddp,
            "post_local_sgd": post_local_sgd,
        }
    )


if __name__ == "__main__":
    main()
