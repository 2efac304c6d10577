"""How long an average over all workers takes: by tree, by butterfly, and by ring as NCCL does it.

A cluster is nodes of equally many workers. Workers of a node talk over PCIe, nodes over Ethernet:

    Tree        2 log2(nodes) bytes / ethernet + 2 log2(workers a node) bytes / pcie
    Butterfly   half of it
    ring        2 (workers - 1) / workers · bytes / the slowest link of the ring

A tree halves the number of partial sums in each round on the way up and sends the mean down the
same way; every round moves all bytes, on each level of the network. A butterfly (recursive
doubling) has the mean everywhere after the way up. A ring runs once through every worker, so that
each node is entered and left once; the bytes go round in pieces, all links busy at a time, and the
slowest sets the pace: within a node PCIe, between nodes whatever is slower, which is the Ethernet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from raylab.errors import ConfigError

__all__ = ["ALL_REDUCES", "AllReduce", "Network", "all_reduce_s", "scaled_ring_s"]

AllReduce = Literal["tree", "butterfly", "ring"]
ALL_REDUCES: tuple[AllReduce, ...] = get_args(AllReduce)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the workers are connected by.

    Args:
        workers: W, on all nodes together.
        workers_per_node: equally many on each node.
        ethernet_gbit_s: between two nodes, each way, in Gbit/s; None: there is one node only.
        pcie_gbyte_s: between two workers of a node, each way, in GByte/s (16: PCIe 3.0 × 16);
            None: one worker on each node.
        latency_s: of one message, whatever its size; the paper has none.

    Raises:
        ConfigError: a number out of its range, a node that is not full, or a rate is missing.
    """

    workers: int
    workers_per_node: int = 1
    ethernet_gbit_s: float | None = None
    pcie_gbyte_s: float | None = None
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("workers", "workers_per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name} >= 1` must hold, but got {getattr(self, name)}")
        if self.workers % self.workers_per_node:
            raise ConfigError(
                f"{self.workers_per_node} workers a node must divide the workers, "
                f"but got {self.workers}"
            )
        for name, unit in (("ethernet_gbit_s", "Gbit/s"), ("pcie_gbyte_s", "GByte/s")):
            rate = getattr(self, name)
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise ConfigError(f"`{name}` must be a rate > 0 in {unit}, but got {rate}")
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ConfigError(f"`latency_s >= 0` must hold, but got {self.latency_s}")
        if self.nodes > 1 and self.ethernet_gbit_s is None:
            raise ConfigError(
                f"{self.nodes} nodes need the rate between them, `ethernet_gbit_s`, but got none"
            )
        if self.workers_per_node > 1 and self.pcie_gbyte_s is None:
            raise ConfigError(
                f"{self.workers_per_node} workers on a node need the rate between them, "
                "`pcie_gbyte_s`, but got none"
            )

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.workers // self.workers_per_node

    @property
    def links(self) -> list[tuple[int, float]]:
        """The levels of the network: (members that meet on it, bytes/s of each)."""
        levels: list[tuple[int, float]] = []
        if self.ethernet_gbit_s is not None and self.nodes > 1:
            levels.append((self.nodes, self.ethernet_gbit_s * 1e9 / 8))
        if self.pcie_gbyte_s is not None and self.workers_per_node > 1:
            levels.append((self.workers_per_node, self.pcie_gbyte_s * 1e9))
        return levels


def all_reduce_s(parameter_bytes: float, network: Network, algorithm: AllReduce) -> float:
    """Return t_c, the time of an average over all workers in seconds.

    >>> titan_x = Network(workers=256, workers_per_node=8, ethernet_gbit_s=20, pcie_gbyte_s=16)
    >>> [round(1e3 * all_reduce_s(4 * 25_530_472, titan_x, each), 2) for each in ALL_REDUCES]
    [446.78, 223.39, 81.38]

    Tree and Butterfly are those of DASGD Table II, the ring is ours. A number of nodes, or of
    workers on a node, that is no power of two is put into the logarithm as it is.

    Args:
        parameter_bytes: of the averaged weights, 4 a parameter in float32.
        network: between the workers.
        algorithm: of the average.

    Raises:
        ConfigError: there is no such algorithm, or the number of bytes is negative.
    """
    if not (math.isfinite(parameter_bytes) and parameter_bytes >= 0):
        raise ConfigError(f"`parameter_bytes >= 0` must hold, but got {parameter_bytes}")
    if algorithm == "ring":
        return _ring_s(parameter_bytes, network)
    if algorithm not in ("tree", "butterfly"):
        raise ConfigError(
            f"an all-reduce must be one of {', '.join(ALL_REDUCES)}, but got {algorithm!r}"
        )
    ways = 2 if algorithm == "tree" else 1
    return ways * sum(
        math.log2(members) * (parameter_bytes / rate + network.latency_s)
        for members, rate in network.links
    )


def _ring_s(parameter_bytes: float, network: Network) -> float:
    """Patarasuk and Yuan 2009: a reduce-scatter and an all-gather of W - 1 steps each."""
    steps = 2 * (network.workers - 1)
    if not network.links:
        return 0.0
    slowest = min(rate for _, rate in network.links)
    return steps * (parameter_bytes / network.workers / slowest + network.latency_s)


def scaled_ring_s(measured_s: float, measured_workers: int, workers: int) -> float:
    """Return what a measured average takes among more workers, by the ring's formula.

    A ring's time is nearly that of two workers, however many more there are, as long as each has
    the link that was measured: 2 (workers - 1) / workers · bytes / link.

    >>> scaled_ring_s(1.0, 2, 256)
    1.9921875

    Args:
        measured_s: of one average.
        measured_workers: >= 2, that took part.
        workers: that shall take part.

    Raises:
        ConfigError: a number out of its range.
    """
    if measured_workers < 2 or workers < 1:
        raise ConfigError(
            "`measured_workers >= 2` and `workers >= 1` must hold, but got "
            f"(measured_workers={measured_workers}, workers={workers})"
        )
    return measured_s * (1 - 1 / workers) / (1 - 1 / measured_workers)
