"""Claim: a message between two stage actors costs what the raw transport costs, not what Ray's
arguments cost.

    python -m benchmarks.message_cost

One way, pipelined: µs per float32 tensor, through the product's mailboxes (order, credits,
statistics) between two Ray actors, beside the same transports bare between two processes. Wires
are interleaved; medians over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Literal

import ray
import torch

from actors.pipeline.stage_actor import StageWorker
from actors.wires.link import Link
from actors.wires.messages import Kind, Message
from benchmarks.peers.raw_wires import measure_wire
from benchmarks.session import ray_session

SIZES = {
    "4 KB": 4 << 10,
    "64 KB": 64 << 10,
    "512 KB": 512 << 10,
    "2 MB": 2 << 20,
    "16 MB": 16 << 20,
}
WIRES: dict[str, tuple[Literal["zmq", "ray"], Literal["ipc", "tcp"]]] = {
    "mailbox over zmq ipc": ("zmq", "ipc"),
    "mailbox over zmq tcp, CURVE": ("zmq", "tcp"),
    "mailbox over ray": ("ray", "ipc"),
}
CAPACITY = 8


class Postman(StageWorker):
    """A stage that only sends and receives."""

    def send(self, size_bytes: int, count: int) -> None:
        """Put `count` tensors."""
        tensor = torch.ones(size_bytes // 4)
        for index in range(count):
            self._put("features", Message(Kind.PROBE, index, (tensor,)))

    def receive(self, count: int) -> float:
        """Take `count` tensors; return the seconds from the first to the last."""
        self._take("features")
        started = time.perf_counter()
        for _ in range(count - 1):
            message = self._take("features")
            float(message.tensors[0][-1])  # type: ignore[index]
        return time.perf_counter() - started


def pair(wire: Literal["zmq", "ray"], transport: Literal["ipc", "tcp"]) -> tuple[Any, Any]:
    """Return a sending and a receiving actor, wired."""
    cls = ray.remote(concurrency_groups={"control": 1, "mail": 1})(Postman)  # type: ignore[call-overload]
    sender, receiver = (
        cls.options(num_cpus=0.1).remote(0, 1, 0),
        cls.options(num_cpus=0.1).remote(1, 1, 0),
    )
    home, _ = ray.get([sender.home.remote(), receiver.home.remote()])
    link = Link(box="features", source=0, target=1, capacity=CAPACITY)
    address = ray.get(receiver.listen.remote(link, wire, transport, sender, home.public_key))
    ray.get(sender.connect.remote(link, address, receiver))
    ray.get(receiver.accept.remote())
    return sender, receiver


def count_for(size_bytes: int) -> int:
    """Return how many messages to average over."""
    return max(40, min(2000, (256 << 20) // size_bytes))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with ray_session(2):
        pairs = {name: pair(*wire) for name, wire in WIRES.items()}
        costs: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.repeats):
            for size, size_bytes in SIZES.items():
                count = count_for(size_bytes)
                for name, (sender, receiver) in pairs.items():
                    took = receiver.receive.remote(count)
                    ray.get(sender.send.remote(size_bytes, count))
                    costs.setdefault((name, size), []).append(1e6 * ray.get(took) / (count - 1))
                for bare in ("zmq-ipc", "zmq-tcp"):
                    cost = measure_wire(bare, size_bytes, messages=count, repeats=1)
                    costs.setdefault((f"bare {bare}", size), []).append(cost.median_us)
    print("| µs per message | " + " | ".join(SIZES) + " |")
    print("| --- |" + " --- |" * len(SIZES))
    for name in [*WIRES, "bare zmq-ipc", "bare zmq-tcp"]:
        cells = [costs[name, size] for size in SIZES]
        print(
            f"| {name} | "
            + " | ".join(f"{statistics.median(c):.0f} ({min(c):.0f}–{max(c):.0f})" for c in cells)
            + " |"
        )


if __name__ == "__main__":
    main()
