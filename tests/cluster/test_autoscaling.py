"""Clusters whose nodes come when a run asks for them, and go when nobody needs them any more.

Ray's fake provider makes nodes on the head's own machine; it belongs on one where it may stop Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.cluster.hosts import Hosts, missing, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

MOST = 4
CLUSTER = {
    "cluster_name": "fake",
    "max_workers": MOST,
    "idle_timeout_minutes": 0.5,  # longer than nodes take that come one after another
    "upscaling_speed": 10.0,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 80_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MOST,
        },
    },
    **{key: [] for key in ("initialization_commands", "setup_commands", "cluster_synced_files")},
    **{f"{node}_setup_commands": [] for node in ("head", "worker")},
    **{f"{node}_start_ray_commands": [] for node in ("head", "worker")},
    **{key: {} for key in ("auth", "docker", "file_mounts")},
}
AS_HEAD = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


class Autoscaled:
    """A cluster that has no node but its head until somebody asks for one."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.runs = folder / "runs"
        config = folder / "cluster.json"
        config.write_text(json.dumps(CLUSTER))
        environment = " ".join(f"{key}={value}" for key, value in AS_HEAD.items())
        hosts.run(
            0,
            "ray stop --force && ray get-auth-token --generate && "
            # What a host says that Ray shall see there would be said of its nodes too.
            f"env -u RAY_OVERRIDE_RESOURCES RAY_AUTH_MODE=token {environment} "
            "ray start --head --port=6379 --num-cpus=0 "
            f"--include-dashboard=false --autoscaling-config={config}",
            tries=3,
        )

    def nodes(self) -> list[int]:
        """Return the raylets that are not the head's."""
        return self.hosts.raylets(0)[1:]

    def run(self, words: str, name: str, nodes: int, *, kill: bool = False) -> str:
        """Run a command to its end; return what it said.

        Args:
            words: of the command.
            name: of the run or of the search.
            nodes: that it has when it saves its first checkpoint.
            kill: one of them then.
        """
        line = f"python -m raylab {words} storage={self.runs} name={name}"
        with self.hosts.running(0, f"RAY_AUTH_MODE=token RAY_ADDRESS=auto {line}") as run:
            saved = self.runs / name
            until(
                lambda: run.poll() is not None or [*saved.glob("**/checkpoints/*/*")],
                "a checkpoint",
            )
            there = self.nodes()
            if kill:
                self.hosts.kill_node(there[-1])
            said, _ = run.communicate(timeout=600)
        assert run.returncode == 0, said
        assert len(there) == nodes
        return said

    def result(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / name / "result.json").read_text())
        return found

    def weights(self, name: str) -> dict[str, Any]:
        file = self.runs / name / "checkpoints" / "final" / "model.pt"
        found: dict[str, Any] = torch.load(file, weights_only=True)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Autoscaled]:
    folder = tmp_path_factory.mktemp("autoscaled")
    with Hosts([0], folder) as hosts:
        yield Autoscaled(hosts, folder)


@pytest.mark.parametrize(
    "words",
    [
        "adl stages=2 data=digits model=mlp epochs=80 checkpoint_every=200",
        "dasgd workers=2 tau=4 delay=1 data=digits model=mlp epochs=80 checkpoint_every=200",
    ],
    ids=["pipeline", "averaging"],
)
def test_a_run_brings_its_nodes_and_ends_with_the_same_weights_though_one_is_lost(
    cluster, words, request
):
    kind = request.node.callspec.id
    until(lambda: not cluster.nodes(), "a cluster of a head")
    cluster.run(f"train {words}", f"{kind}-calm", nodes=2)
    said = cluster.run(f"train {words}", f"{kind}-killed", nodes=2, kill=True)
    assert "going on from" in said, said
    calm, killed = cluster.weights(f"{kind}-calm"), cluster.weights(f"{kind}-killed")
    assert all(torch.equal(calm[name], killed[name]) for name in calm)
    until(lambda: not cluster.nodes(), "a cluster of a head")


def test_a_server_brings_its_nodes_and_ends_at_its_gap_though_one_is_lost(cluster):
    words = "dis_dfsdca problem=ridge data=digits workers=2 checkpoint_every=20 sample_s=0.002"
    said = cluster.run(f"train {words}", "server", nodes=3, kill=True)
    assert "(restart 1 of 3)" in said, said
    assert cluster.result("server")["ended_by"] == "tolerance"
    until(lambda: not cluster.nodes(), "a cluster of a head")


def test_a_search_brings_the_nodes_of_its_trials_and_loses_nothing_with_one(cluster):
    search = {
        "train": {
            "method": "adl",
            "stages": 2,
            "model": "mlp",
            "data": "digits",
            "epochs": 60,
            "checkpoint_every": 200,
        },
        "space": {"lr": {"uniform": [0.01, 0.1], "log": True}},
        "objectives": [{"metric": "test_loss"}],
        "scheduler": {"name": "none"},
        "budget": {"trials": 3},
        "concurrent": 2,
    }
    file = cluster.runs.parent / "search.yaml"
    file.write_text(json.dumps(search))
    cluster.run(f"tune {file}", "search", nodes=4, kill=True)
    assert cluster.result("search")["trials"]["complete"] == 3
    for number in range(3):
        assert cluster.result(f"search/trials/{number}")["metrics"]["epoch"] == 60
    until(lambda: not cluster.nodes(), "a cluster of a head")
