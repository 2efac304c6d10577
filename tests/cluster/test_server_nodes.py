"""A parameter server over Ray nodes: it bears the loss of one, and takes in one that comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, RunConfig

from actors.server.server_group import ServerGroup
from raylab import ParameterServerTrainer
from raylab.drivers.commits import Commits
from tests.actor.test_parameter_server import DATA, STRENGTH, closed_form

pytestmark = pytest.mark.cluster

SLOW_S = 4e-3
"""Modelled time of a sample: the run is longer than a node takes to come."""


@pytest.fixture
def three_nodes(nodes) -> Iterator[Cluster]:
    with nodes(0, 1, 1, 1) as cluster:
        yield cluster


def test_a_worker_whose_node_is_lost_goes_on_with_its_duals_on_a_node_that_comes(
    three_nodes, tmp_path, monkeypatch, capsys
):
    groups: list[ServerGroup] = []
    enter, took, lost = ServerGroup.__enter__, Commits.took, []

    def entered(self: ServerGroup) -> ServerGroup:
        groups.append(self)
        return enter(self)

    def watched(self: Commits, *arguments: Any) -> None:
        took(self, *arguments)
        if self.committed >= 0 and not lost:
            (group,) = groups
            home = group.homes[group.members.index(2)].node_id
            (node,) = (each for each in three_nodes.worker_nodes if each.node_id == home)
            lost.append(home)
            three_nodes.remove_node(node, allow_graceful=False)
            three_nodes.add_node(num_cpus=1)

    monkeypatch.setattr(ServerGroup, "__enter__", entered)
    monkeypatch.setattr(Commits, "took", watched)
    homes: list[str] = []
    close = ServerGroup.close

    def closed(self: ServerGroup) -> None:
        homes.extend(home.node_id for home in self.homes)
        close(self)

    monkeypatch.setattr(ServerGroup, "close", closed)
    result = ParameterServerTrainer(
        "ridge",
        strength=STRENGTH,
        workers=2,
        resources_per_worker={"CPU": 1},
        sample_s=SLOW_S,
        checkpoint_every=5,
        checkpoint_minutes=0,
        run_config=RunConfig(
            storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=1)
        ),
    ).fit(DATA)
    assert "worker 1 begins again with" in capsys.readouterr().err
    assert len(set(homes)) == 3
    assert lost[0] not in homes
    assert result.summary["ended_by"] == "tolerance"
    rows = result.table.to_pylist()
    assert all(row.get("relation") is None or row["relation"] < 1e-12 for row in rows)
    expected = closed_form()
    error = np.linalg.norm(result.weights["w"].numpy() - expected)
    assert error <= np.sqrt(2e-8 / STRENGTH)
