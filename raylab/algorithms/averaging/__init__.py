"""The averaging methods: data-parallel replicas that average what they have learnt.

`AVERAGING_METHODS` is the table; `AveragingWorker` is the rule of one replica, which runs under
torch.distributed and, with `SerialCollectives`, for any number of replicas in one process.
"""

from __future__ import annotations

from raylab.algorithms.averaging.method import AveragingMethod, AveragingNumbers

__all__ = ["AVERAGING_METHODS", "AveragingMethod", "AveragingNumbers"]

_ROWS = (
    AveragingMethod(
        name="minibatch_sgd",
        title="mini-batch SGD",
        source="DASGD eq. 1",
        averages="gradients",
        tau=1,
        delay=0,
        xi=0.0,
        free=(),
    ),
    AveragingMethod(
        name="local_sgd",
        title="Local SGD",
        source="DASGD II.C; Stich 2019, Local SGD converges fast and communicates little",
        averages="weights",
        tau=4,
        delay=0,
        xi=0.0,
        free=("tau",),
    ),
    AveragingMethod(
        name="dasgd",
        title="DaSGD",
        source="DASGD eq. 2 and 7",
        averages="weights",
        tau=4,
        delay=1,
        xi=0.25,
        free=("tau", "delay", "xi"),
    ),
)

AVERAGING_METHODS = {method.name: method for method in _ROWS}
"""All averaging methods by name."""
