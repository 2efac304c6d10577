"""DASGD's Table II: seven networks on two clusters of 256 GPUs, and the plan computed anew.

The networks are those for ImageNet. Their parameters are counted as the paper's performance model
counts them: convolutions have biases and there is no batch norm. With that,

    Network-in-Network  7,595,176    exact: Lin et al.'s twelve convolutions, 1,000 classes
    VGG-16, VGG-19      138,357,544  exact, 143,667,240 exact: torchvision's
    ResNet-50           25,530,472   exact; torchvision's, with batch norm, has 25,557,032
    DenseNet-121        7,905,448    exact; torchvision's, with batch norm, has 7,978,856
    DenseNet-201        17,900,106   exact for 10 classes in place of 1,000; torchvision's, with
                                     batch norm and 1,000 classes, has 20,013,928
    ResNeXt-50          167,153,128  not matched: 32×4d has 24,994,792 counted like this and
                                     25,028,904 as torchvision's. Nearest is the same network with
                                     dense 3×3 convolutions, 68,849,128; no grouping or width of
                                     its authors gives nearly seven times their 25 M

Times of a step are the paper's, from its performance model; times of an average are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raylab.planner.all_reduce import Network, all_reduce_s
from raylab.planner.averaging import averaging_plan

__all__ = ["PAPER_CLUSTERS", "PAPER_NETWORKS", "PaperNetwork", "PaperPlan", "paper_table"]

BYTES_PER_PARAMETER = 4
PAPER_BATCH = 64
"""Samples of a local batch in Table II."""

PAPER_CLUSTERS = {
    "titan_x": Network(workers=256, workers_per_node=8, ethernet_gbit_s=20, pcie_gbyte_s=16),
    "k80": Network(workers=256, workers_per_node=8, ethernet_gbit_s=10, pcie_gbyte_s=16),
}
"""The two clusters: 32 nodes of 8 GPUs, PCIe 3.0 within."""


@dataclass(frozen=True, slots=True)
class PaperPlan:
    """What Table II prints for a network on a cluster: times in milliseconds, d and tau."""

    step_ms: float
    tree_ms: float
    butterfly_ms: float
    delay: int
    tau: int


@dataclass(frozen=True, slots=True)
class PaperNetwork:
    """A row of Table II."""

    title: str
    parameters: int
    titan_x: PaperPlan
    k80: PaperPlan

    def printed(self, cluster: str) -> PaperPlan:
        """Return what is printed for `titan_x` or `k80`."""
        return self.titan_x if cluster == "titan_x" else self.k80


def _row(title: str, parameters: int, *printed: float) -> PaperNetwork:
    """Make a row from its ten numbers in the order of the paper's columns."""
    halves = [
        PaperPlan(step, tree, butterfly, int(delay), int(tau))
        for step, tree, butterfly, delay, tau in (printed[:5], printed[5:])
    ]
    return PaperNetwork(title, parameters, *halves)


# fmt: off
PAPER_NETWORKS = {
    "network_in_network": _row(
        "Network-in-Network", 7_595_176,
        119.08, 132.91, 66.45, 2, 3, 129.80, 254.43, 127.21, 2, 3),
    "vgg16": _row(
        "VGG-16", 138_357_544,
        2164.32, 2421.25, 1210.62, 2, 3, 2361.61, 4634.97, 2317.48, 2, 3),
    "vgg19": _row(
        "VGG-19", 143_667_240,
        2684.73, 2514.17, 1257.08, 1, 2, 2932.49, 4812.85, 2406.42, 2, 3),
    "resnet50": _row(
        "ResNet-50", 25_530_472,
        526.05, 446.78, 223.39, 1, 2, 575.29, 855.27, 427.63, 2, 3),
    "resnext50": _row(
        "ResNeXt-50", 167_153_128,
        1640.05, 2925.17, 1462.58, 2, 3, 1795.83, 5599.62, 2799.81, 4, 5),
    "densenet121": _row(
        "DenseNet-121", 7_905_448,
        358.23, 138.34, 69.17, 1, 2, 390.73, 264.83, 132.41, 1, 2),
    "densenet201": _row(
        "DenseNet-201", 17_900_106,
        538.06, 313.25, 156.62, 1, 2, 587.64, 599.65, 299.82, 2, 3),
}
# fmt: on
"""The networks by the name that `raylab plan averaging --model` knows them by."""


def paper_table() -> dict[str, Any]:
    """Compute Table II anew, and the two shares that section V-B gives for ResNet-50.

    d follows from Tree, as in the paper. The shares are those of Tree's t_c too and tau = 4; the
    caption of Fig. 7 says Butterfly, with which they would be 29.8 % and 9.6 %.

    Returns:
        `rows`: one for each network and cluster, times in seconds, with the printed values in
        `paper`; `shares`: of communication, from 0 to 1.
    """
    rows = []
    for name, network in PAPER_NETWORKS.items():
        size = BYTES_PER_PARAMETER * network.parameters
        for cluster, connection in PAPER_CLUSTERS.items():
            printed = network.printed(cluster)
            plan = averaging_plan(size, printed.step_ms / 1e3, connection)
            rows.append(
                {
                    "model": name,
                    "title": network.title,
                    "cluster": cluster,
                    "parameters": network.parameters,
                    "step_s": plan.step_s,
                    "tree_s": plan.all_reduce_s,
                    "butterfly_s": all_reduce_s(size, connection, "butterfly"),
                    "ring_s": all_reduce_s(size, connection, "ring"),
                    "delay": plan.delay,
                    "tau": plan.tau,
                    "paper": {
                        "tree_s": printed.tree_ms / 1e3,
                        "butterfly_s": printed.butterfly_ms / 1e3,
                        "delay": printed.delay,
                        "tau": printed.tau,
                    },
                }
            )
    resnet = PAPER_NETWORKS["resnet50"]
    plan = averaging_plan(
        BYTES_PER_PARAMETER * resnet.parameters,
        resnet.titan_x.step_ms / 1e3,
        PAPER_CLUSTERS["titan_x"],
        tau=4,
    )
    shares = {
        "model": "resnet50",
        "cluster": "titan_x",
        "tau": 4,
        "minibatch_sgd": plan.share("minibatch_sgd"),
        "local_sgd": plan.share("local_sgd"),
        "dasgd": plan.share("dasgd"),
        "paper": {"minibatch_sgd": 0.459, "local_sgd": 0.175, "dasgd": 0.0},
    }
    return {"table": "paper", "rows": rows, "shares": shares}
