"""`ray up` for real: over SSH on hosts of a LAN, from a laptop that is none of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import PROJECT, Hosts, missing, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

HEAD, WORKERS, LAPTOP = 0, (1, 2), 3
SMALL = "--object-store-memory=100000000 --disable-usage-stats"
HEAD_PORT = 6379


@pytest.fixture
def lan(tmp_path) -> Iterator[Hosts]:
    before = outside()
    with Hosts(4, tmp_path) as hosts:
        yield hosts
    assert hosts.processes() == {}
    assert outside() == before


def outside() -> tuple[str, str, bool]:
    """Return what a host might leave on this machine: mounts, links, Ray's notes of a cluster."""
    links = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True)
    mounts = Path("/proc/self/mountinfo").read_text()
    return mounts, links.stdout, Path("/tmp/ray/cluster-lan.state").exists()


def description(hosts: Hosts) -> dict[str, object]:
    """Return the cluster's: a head that only leads, and two workers with a CPU each."""
    addresses = hosts.addresses
    return {
        "cluster_name": "lan",
        "provider": {
            "type": "local",
            "head_ip": addresses[HEAD],
            "worker_ips": [addresses[k] for k in WORKERS],
        },
        "auth": {"ssh_user": "root", "ssh_private_key": str(hosts.key)},
        "file_mounts": {"~/.ray/auth_token": "/root/.ray/auth_token"},
        "head_start_ray_commands": [
            "ray stop",
            "RAY_enable_autoscaler_v2=0 RAY_AUTH_MODE=token AUTOSCALER_HEARTBEAT_TIMEOUT_S=10 "
            f"ray start --head --port={HEAD_PORT} --num-cpus=0 --dashboard-host=127.0.0.1 {SMALL} "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:{HEAD_PORT} --num-cpus=1 {SMALL}",
        ],
    }


def test_a_cluster_comes_up_trains_through_the_loss_of_a_node_and_goes_down(lan, tmp_path):
    (tmp_path / "lan.yaml").write_text(yaml.safe_dump(description(lan)))
    lan.run(LAPTOP, "ray get-auth-token --generate")
    up = f"RAY_UP_enable_autoscaler_v2=0 ray up --yes {tmp_path}/lan.yaml"
    print(lan.run(LAPTOP, up))
    until(lambda: all(lan.raylets(k) for k in WORKERS), "both workers' raylets")
    runs = tmp_path / "runs"

    def submitted(name: str) -> subprocess.Popen[str]:
        command = (
            f"cd {PROJECT} && RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 "
            "--working-dir . -- python -m raylab train adl data=digits model=mlp epochs=60 "
            f"stages=2 checkpoint_every=50 storage={runs} name={name}"
        )
        return subprocess.Popen(
            lan.command(LAPTOP, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    forward = lan.command(
        LAPTOP,
        f"exec ssh -N -i {lan.key} -o StrictHostKeyChecking=no "
        f"-L 8265:127.0.0.1:8265 {lan.addresses[HEAD]}",
    )
    tunnel = subprocess.Popen(forward)
    job = submitted("killed")
    until(lambda: list(runs.glob("killed/checkpoints/*/manifest*")), "a checkpoint")
    (raylet,) = lan.raylets(WORKERS[0])
    lan.kill(raylet)
    said, _ = job.communicate(timeout=200)
    print(said)
    assert job.returncode == 0
    assert "(restart 1 of 3)" in said
    result = json.loads((runs / "killed" / "result.json").read_text())
    assert result["metrics"]["epoch"] == 60
    print(lan.run(LAPTOP, f"ray down --yes {tmp_path}/lan.yaml"))
    tunnel.kill()
    tunnel.wait()
