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

__all__ = ["driver_on_nodes"]

_PORT = 6379
_FOLDER = "/run/ray"
_PATIENCE_S = "180"
"""Of Ray, in seconds or tries of a second each."""

_AGENTS = [
    "--dashboard-agent-grpc-port=52366",
    "--metrics-export-port=52367",
    "--runtime-env-agent-port=52368",
]
"""Ports of a node's agents: a raylet that need not ask for them does not give up waiting."""


def driver_on_nodes(lan: Lan, *, timeout_s: float) -> Crew:
    """Start a node a host, each with one CPU, and return a driver that takes tasks.

    The nodes end with the namespace of their processes.

    Args:
        lan: with the hosts; not shaped yet, so that starting takes no longer than elsewhere.
        timeout_s: after which the driver gives up waiting for nodes and workers.
    """
    environment = _environment()
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
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", *_AGENTS]
        command = lan.inside(host, [*ray, f"--node-ip-address={address}", *where])
        # Ray waits 30 s for a node and then says no, but the node goes on starting: what counts on
        # a busy machine is how many the driver sees in time.
        subprocess.run(
            command, env=environment, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False
        )
    return Crew(
        lan,
        sys.executable,
        "benchmarks.shaped.ray_driver",
        port=_PORT,
        timeout_s=timeout_s,
        hosts=1,
        environment=environment,
    )


def _environment() -> Mapping[str, str]:
    return os.environ | {
        "PYTHONPATH": str(Path(benchmarks.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
        # Without it gloo looks up the host's name, which all hosts here share.
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_NUM_REDIS_GET_RETRIES": _PATIENCE_S,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": _PATIENCE_S,
    }
