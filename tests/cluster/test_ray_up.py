"""`ray up` for real: over SSH on hosts of a LAN, from a laptop that is none of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._common.utils import get_default_ray_temp_dir

from tests.cluster.hosts import PROJECT, Hosts, missing, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

HEAD, WORKERS, LAPTOP = 0, (1, 2), 3
EPOCHS = 60


@pytest.fixture
def lan(tmp_path) -> Iterator[Hosts]:
    before = outside()
    with Hosts([0, 1, 1, 0], tmp_path) as hosts:
        yield hosts
    assert hosts.processes() == {}
    assert outside() == before


def outside() -> tuple[str, str, bool]:
    """Return what a host might leave on this machine: mounts, links, Ray's notes of a cluster."""
    links = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True)
    mounts = Path("/proc/self/mountinfo").read_text()
    ours = Path(get_default_ray_temp_dir(), "cluster-raylab.state")
    return mounts, links.stdout, ours.exists()


def has_joined(lan: Hosts, worker: int) -> bool:
    """Tell whether Ray runs on a worker, and the command that has started it has ended."""
    names = lan.processes(worker).values()
    return "raylet" in names and "ray" not in names


def test_a_cluster_comes_up_trains_through_the_loss_of_a_node_and_goes_down(lan, tmp_path):
    file, runs = tmp_path / "cluster.yaml", tmp_path / "runs"
    workers = ",".join(lan.addresses[k] for k in WORKERS)
    lan.run(
        LAPTOP,
        f"raylab cluster render --provider local --head-ip {lan.addresses[HEAD]} --worker-ips "
        f"{workers} --min-workers 2 --ssh-user root --ssh-key {lan.key} --environment {sys.prefix} "
        f"--output {file} && ray get-auth-token --generate && raylab cluster check {file}",
    )
    lan.run(LAPTOP, f"RAY_UP_enable_autoscaler_v2=0 ray up --yes {file}", tries=3)
    until(lambda: all(has_joined(lan, k) for k in WORKERS), "both workers")
    with lan.running(LAPTOP, f"ray dashboard {file}"):
        until(lambda: ":8265 " in lan.run(LAPTOP, "ss -tln"), "the tunnel")
        job = (
            f"train adl data=digits model=mlp epochs={EPOCHS} stages=2 checkpoint_every=50 "
            f"storage={runs}"
        )
        submit = f"cd {PROJECT} && raylab submit --"
        with lan.running(LAPTOP, f"{submit} {job} name=killed") as submitted:
            saved = runs / "killed" / "checkpoints"
            until(lambda: submitted.poll() or [*saved.glob("*/manifest.json")], "a checkpoint")
            (raylet,) = lan.raylets(WORKERS[0])
            lan.kill(raylet)
            said, _ = submitted.communicate(timeout=600)
        assert submitted.returncode == 0, said
    assert "(restart 1 of 3)" in said
    result = json.loads((runs / "killed" / "result.json").read_text())
    assert result["metrics"]["epoch"] == EPOCHS
    lan.run(LAPTOP, f"RAY_UP_enable_autoscaler_v2=0 ray down --yes {file}")
    assert lan.raylets(HEAD) == []
