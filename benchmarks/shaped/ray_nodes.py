"""Ray nodes, one on each host of a LAN, and a driver beside the first of them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import benchmarks
from benchmarks.shaped.crew import Crew
from benchmarks.shaped.lan import Lan

__all__ = ["driver_on_nodes"]

_PORT = 6379
_FOLDER = "/run/ray"
_START_S = 180.0


@contextlib.contextmanager
def driver_on_nodes(lan: Lan, *, timeout_s: float) -> Iterator[Crew]:
    """Hold a node a host, each with one CPU, and a driver that takes tasks.

    Args:
        lan: with the hosts; not shaped yet, so that starting takes no longer than elsewhere.
        timeout_s: after which a worker gives up waiting for another.
    """
    environment = _environment()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    nodes = []
    with contextlib.ExitStack() as stack:
        for host, address in enumerate(lan.addresses):
            where = [f"--address={lan.addresses[0]}:{_PORT}"]
            if host == 0:
                where = [
                    "--head",
                    f"--port={_PORT}",
                    "--include-dashboard=false",
                    "--disable-usage-stats",
                    f"--temp-dir={_FOLDER}",
                    "--system-config=" + json.dumps({"worker_niceness": 0}),
                ]
            node = subprocess.Popen(
                lan.inside(host, [*ray, f"--node-ip-address={address}", *where]),
                stdout=subprocess.DEVNULL,
                env=environment,
            )
            stack.callback(_end, node)
            nodes.append(node)
        driver = Crew(
            lan,
            sys.executable,
            "benchmarks.shaped.ray_driver",
            port=_PORT,
            timeout_s=timeout_s,
            hosts=1,
            environment=environment,
        )
        with driver:
            yield driver


def _environment() -> Mapping[str, str]:
    return os.environ | {
        "PYTHONPATH": str(Path(benchmarks.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
        # Without it gloo looks up the host's name, which all hosts here share.
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_START_S),
    }


def _end(node: subprocess.Popen[bytes]) -> None:
    node.terminate()
    try:
        node.wait(20)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
