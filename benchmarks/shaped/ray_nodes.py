"""Ray nodes, one on each host of a LAN, and a driver beside the first of them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import benchmarks
from benchmarks.shaped.crew import Crew
from benchmarks.shaped.lan import Lan

__all__ = ["driver_on_nodes", "start_nodes"]

_PORT = 6379
_FOLDER = "/run/ray"
_GROUP_START_S = "180"
"""Of the workers' processes, which the shaped link does not make faster."""


def start_nodes(lan: Lan) -> Mapping[str, str]:
    """Start a Ray node a host, each with one CPU, and return the environment of what joins them.

    The nodes end with the namespace of their processes.

    Args:
        lan: with the hosts; not shaped yet, so that starting takes no longer than elsewhere.

    Raises:
        RuntimeError: a node has not started.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(benchmarks.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
        # Without it gloo looks up the host's name, which all hosts here share.
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_ADDRESS": f"{lan.addresses[0]}:{_PORT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": _GROUP_START_S,
    }
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
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1"]
        command = lan.inside(host, [*ray, f"--node-ip-address={address}", *where])
        done = subprocess.run(
            command, env=environment, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"a Ray node on host {host} must start within the 30 s for which Ray waits, but "
                "it has not: try again when the machine is less busy"
            )
    return environment


def driver_on_nodes(lan: Lan, *, timeout_s: float) -> Crew:
    """Start the nodes, and return a driver beside the first one that takes tasks.

    Args:
        lan: see `start_nodes`.
        timeout_s: after which a run gives up waiting for workers.

    Raises:
        RuntimeError: a node has not started.
    """
    return Crew(
        lan,
        sys.executable,
        "benchmarks.shaped.ray_driver",
        port=_PORT,
        timeout_s=timeout_s,
        hosts=1,
        environment=start_nodes(lan),
    )
