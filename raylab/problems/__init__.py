"""Problems of the parameter server: losses on rows of data, their gradients and duals.

build(name, source, shard) -> objective of one worker      what it can do: objective.py
    ridge, logistic, smoothed_hinge     linear.py, kernels.py
    pca                                 pca.py
    softmax_mlp                         softmax_mlp.py
custom(...) -> the same, of a user's loss and gradient     custom.py
"""

from __future__ import annotations

from raylab.problems.build import PROBLEMS, build, shards
from raylab.problems.custom import Custom, custom
from raylab.problems.objective import DualObjective, LinearObjective, Objective, Shard

__all__ = [
    "PROBLEMS",
    "Custom",
    "DualObjective",
    "LinearObjective",
    "Objective",
    "Shard",
    "build",
    "custom",
    "shards",
]
