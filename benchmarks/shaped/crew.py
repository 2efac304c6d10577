"""Worker processes on the hosts of a LAN, all told the same and waited for together."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from benchmarks.shaped.lan import Lan

__all__ = ["Crew"]

_GRACE_S = 20.0


class Crew:
    """One process a host.

    Args:
        lan: with the hosts.
        interpreter: of the workers.
        module: what each one runs, with its place as an argument in JSON.
        port: where they meet, on the first host.
        timeout_s: after which a worker gives up waiting for another.
        hosts: that get a worker, the first so many; None: all.
        environment: of the workers; None: this one's, with gloo on the shaped link.
    """

    def __init__(
        self,
        lan: Lan,
        interpreter: str,
        module: str,
        *,
        port: int,
        timeout_s: float,
        hosts: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        variables = environment or os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
            # torchft tells of every quorum.
            "RUST_LOG": "error",
        }
        self._module = module
        self._workers: list[subprocess.Popen[str]] = []
        for host, address in enumerate(lan.addresses[:hosts]):
            place = {
                "rank": host,
                "size": lan.hosts,
                "address": address,
                "meets_at": lan.addresses[0],
                "port": port,
                "timeout_s": timeout_s,
            }
            self._workers.append(
                subprocess.Popen(
                    lan.inside(host, [interpreter, "-m", module, json.dumps(place)]),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=variables,
                )
            )

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            if kind is None and worker.stdin is not None:
                worker.stdin.close()
            else:
                worker.kill()
        for worker in self._workers:
            worker.wait(_GRACE_S)

    def do(self, task: Mapping[str, Any]) -> Sequence[Mapping[str, float]]:
        """Let all workers do a task; return their answers, by host.

        Raises:
            RuntimeError: one of them has ended; what it said stands on standard error.
        """
        for worker in self._workers:
            assert worker.stdin is not None  # noqa: S101 - it is a pipe
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
        answers = []
        for host, worker in enumerate(self._workers):
            assert worker.stdout is not None  # noqa: S101 - it is a pipe
            line = worker.stdout.readline()
            if not line:
                code = worker.wait(_GRACE_S)
                raise RuntimeError(f"{self._module} on host {host} has ended with code {code}")
            answers.append(json.loads(line))
        return answers
