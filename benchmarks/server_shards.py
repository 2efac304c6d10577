"""Messages a second of a parameter server of S shards, on long dense vectors.

Every worker pushes a dense message of d float64 numbers, its slices to S actors, which add them to
their ranges of w and answer with these: 8·d bytes up and 8·d bytes down a message, however many
servers share them. With S servers a message has S times as many headers and two more steps, an ack
and a piece of the log; so short vectors lose by it, and what long ones gain is the processors and
the network that S servers have in place of one.

On a machine of C cores all of them, and the workers, share C cores and one memory: the bound is
then not S, but the processor time of a message over C. It stands in the table: CPU, the seconds
that all processes of the run have used for a message, times the rate, is the number of cores that
are busy. Where that is C, more servers cannot be faster here; on nodes of their own they can.

    python -m benchmarks.server_shards --dims 1000 47236 1000000 --servers 1 2 4
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.server.company import Company, Shard
from actors.server.ends import Ends
from actors.server.protocols import Certificate
from actors.server.server_actor import ServerNews, ServerProgram
from actors.server.server_group import ServerGroup
from actors.server.staleness import Bound
from actors.server.worker_actor import WorkerProgram
from actors.units import Tensors
from benchmarks.server_messages import AddingServer, AddingWorker, Load
from benchmarks.session import ray_session
from raylab.algorithms.server.shards import Cut

Figures = tuple[float, float]
"""Messages a second, processor seconds of all processes for each."""


class AddingShard(AddingServer):
    """A range of w to which slices of messages are added."""

    def __init__(self, load: Load, length: int) -> None:
        super().__init__(load)
        self._w = torch.zeros(length, dtype=torch.float64)

    def measure(self, parts: Mapping[int, Certificate], answer: Tensors) -> dict[str, float]:  # noqa: ARG002
        """Return nothing."""
        return {}

    def figures(
        self,
        parts: Mapping[int, Certificate],  # noqa: ARG002
        measured: Mapping[str, float],  # noqa: ARG002
    ) -> dict[str, float]:
        """Return nothing."""
        return {}

    def accept(self) -> None:
        """Find nothing wrong."""

    def weights(self, answer: Tensors) -> dict[str, Tensor]:
        """Return the rate of the first server; the group puts that of all in a row."""
        return super().weights(answer) if self._ended[0] else {"rate": torch.zeros(0)}


def _worker(load: Load, worker: int, supplied: Any) -> AddingWorker:  # noqa: ARG001
    return AddingWorker(load, worker)


def _nothing(supplied: Any) -> Any:
    return supplied


def measured(group: ServerGroup, load: Load) -> Figures:
    """Run once."""
    workers, servers = range(load.workers), group.servers
    cut = Cut(dim=load.dim, servers=servers)
    rules = [functools.partial(AddingShard, load, hi - lo) for lo, hi in cut.ranges]
    company = Company(
        server=rules[0],
        supplies={k: functools.partial(_nothing, None) for k in workers},
        workers={k: functools.partial(_worker, load, k) for k in workers},
        program=ServerProgram(
            workers=tuple(workers),
            bound=Bound(),
            ends=Ends(messages=load.messages),
            servers=servers,
        ),
        paces=WorkerProgram(servers=servers, cut=cut if servers > 1 else None),
        shards=tuple(Shard(rule=rule) for rule in rules[1:]),
    )
    group.supply(company.supplies, _nothing)
    group.load(company)
    pids = [home.pid for home in group.homes]
    before = sum(_processor_s(pid) for pid in pids)
    group.run(company, _watch, _nobody)
    worked_s = sum(_processor_s(pid) for pid in pids) - before
    return float(group.weights()["rate"][0]), worked_s / load.messages


def _watch(news: ServerNews) -> int:  # noqa: ARG001
    return -1


def _nobody(worker: int, error: Exception) -> Any:
    raise RuntimeError(f"worker {worker} was lost") from error


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(dim: int, servers: int, found: Sequence[Figures], one: Sequence[Figures]) -> str:
    """Return a row of the table."""
    rates = [rate for rate, _ in found]
    rate = statistics.median(rates)
    worked = statistics.median(worked for _, worked in found)
    ratio = statistics.median(a[0] / b[0] for a, b in zip(found, one, strict=True))
    busy = statistics.median(rate * worked for rate, worked in found)
    return (
        f"| {dim:,} | {servers} | {rate:,.0f} ({min(rates):,.0f}–{max(rates):,.0f}) "
        f"| {16 * dim * rate / 1e9:.2f} | {1e6 * worked:,.0f} | {busy:.2f} | {ratio:.2f} |"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="*", default=[1_000, 47_236, 1_000_000])
    parser.add_argument("--servers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="that pass in a run, at most")
    parser.add_argument("--messages", type=int, default=2000, help="of a run, at most")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    loads = {
        dim: Load(
            dim=dim,
            rows=None,
            workers=options.workers,
            messages=max(50, min(options.messages, round(1e9 * options.gigabytes / 16 / dim))),
        )
        for dim in options.dims
    }
    found: dict[tuple[int, int], list[Figures]] = {}
    with ray_session(options.workers + max(options.servers)):
        for _ in range(options.repeats):
            for servers in options.servers:
                with ServerGroup(
                    options.workers,
                    servers=servers,
                    server={"CPU": 1.0},
                    worker={"CPU": 1.0},
                    threads=1,
                    seed=0,
                    wait_s=60.0,
                ) as group:
                    for dim, load in loads.items():
                        figures = measured(group, load)
                        found.setdefault((dim, servers), []).append(figures)
                        print(f"d={dim} S={servers}: {figures}", file=sys.stderr)
    print(f"{options.workers} workers, {os.cpu_count()} cores")
    print("| d | S | messages/s | GB/s | CPU of a message, µs | cores busy | of S = 1 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for dim in options.dims:
        for servers in options.servers:
            print(told(dim, servers, found[dim, servers], found[dim, options.servers[0]]))


if __name__ == "__main__":
    main()
