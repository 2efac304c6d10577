"""A private LAN: one network namespace a host, every link shaped both ways.

namespace of the benchmark        namespace host0
┌───────────────────────┐         ┌─────────────────┐
│ switch ── port0 ──────┼─ veth ──┼─ eth0 10.79.0.1 │
│   │                   │         └─────────────────┘
│   └────── port1 ──────┼─ veth ──── host1: eth0 10.79.0.2
└───────────────────────┘
   tbf on portN: what host N receives; tbf on its eth0: what it sends
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Lan", "run"]

Command = list[str]

_NOBODY = "10.79.0.254"
_LATENCY_MS = 50
"""Longest stay in the queue before a shaped link."""
_LEAST_BURST_KB = 128
"""One packet as TCP hands it over: 64 KB, and a header for each segment that a network card makes
of it. tbf would cut up one that is larger than the burst, which took a third of both cores here."""
_TIMER_HZ = 1000


@dataclass(frozen=True, kw_only=True)
class Lan:
    """What is to be built.

    Args:
        hosts: number of hosts, 1 to 250.

    >>> lan = Lan(hosts=2)
    >>> lan.names, lan.addresses
    (['host0', 'host1'], ['10.79.0.1', '10.79.0.2'])
    >>> " ".join(lan.inside(1, ["hostname", "-I"]))
    'ip netns exec host1 hostname -I'
    """

    hosts: int

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= 250:
            raise ValueError(f"`1 <= hosts <= 250` must hold, but got {self.hosts}")

    @property
    def names(self) -> list[str]:
        """The namespaces' names, by host."""
        return [f"host{index}" for index in range(self.hosts)]

    @property
    def addresses(self) -> list[str]:
        """The addresses, by host."""
        return [f"10.79.0.{index + 1}" for index in range(self.hosts)]

    def build(self) -> list[Command]:
        """Return the commands that make switch, hosts and links, none of them shaped."""
        commands = [
            "ip link set lo up",
            "ip link add switch type bridge",
            "ip link set switch up",
        ]
        for index, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            commands += [
                f"ip netns add {name}",
                f"ip link add port{index} type veth peer name eth0 netns {name}",
                f"ip link set port{index} master switch",
                f"ip link set port{index} up",
                f"ip -n {name} link set lo up",
                f"ip -n {name} addr add {address}/24 dev eth0",
                f"ip -n {name} link set eth0 up",
                # Programs find their own address by a route to anywhere; nothing is there.
                f"ip -n {name} route add default via {_NOBODY}",
            ]
        return [command.split() for command in commands]

    def shape(self, mbit_s: float) -> list[Command]:
        """Return the commands that give every link this rate, whatever it had.

        Args:
            mbit_s: in Mbit/s, each way.
        """
        if not (math.isfinite(mbit_s) and mbit_s > 0):
            raise ValueError(f"`mbit_s > 0` must hold, but got {mbit_s}")
        burst_kb = max(_LEAST_BURST_KB, math.ceil(mbit_s * 1e6 / 8 / _TIMER_HZ / 1024))
        tbf = f"root tbf rate {round(mbit_s * 1e6)}bit burst {burst_kb}kb latency {_LATENCY_MS}ms"
        commands = []
        for index, name in enumerate(self.names):
            commands += [
                f"tc qdisc replace dev port{index} {tbf}",
                f"tc -n {name} qdisc replace dev eth0 {tbf}",
            ]
        return [command.split() for command in commands]

    def inside(self, host: int, command: Sequence[str]) -> Command:
        """Return the command that runs another one on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]


def run(commands: Sequence[Command]) -> None:
    """Run commands one after another.

    Raises:
        RuntimeError: one of them failed; the message has what it said.
    """
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
