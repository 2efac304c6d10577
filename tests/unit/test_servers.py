"""What `servers` means to each method, and when it is refused."""

from __future__ import annotations

import dataclasses

import pytest

from raylab import ConfigError, ParameterServerTrainer
from raylab.algorithms.server.shards import Cut
from raylab.config import SimulationConfig
from raylab.drivers.server.simulated import _timing

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("problem", "method"), [("ridge", "shared_asysvrg"), ("cartpole", "asysgd")]
)
def test_what_has_one_w_says_so(problem, method):
    with pytest.raises(ConfigError, match="has no use for servers=2: leave that out"):
        ParameterServerTrainer(problem, method=method, servers=2)
    ParameterServerTrainer(problem, method=method, servers=1)


@pytest.mark.parametrize("servers", [0, -1, 1.5, True, "auto"])
def test_servers_are_a_number(servers):
    with pytest.raises(ConfigError, match="servers must be an integer >= 1, but got"):
        ParameterServerTrainer("ridge", servers=servers)


def test_every_server_has_a_coordinate(tmp_path):
    trainer = ParameterServerTrainer("ridge", servers=21, workers=2)
    wanted = "servers=21 share d=20: ask for 1 to 20"
    with pytest.raises(ConfigError, match=wanted):
        trainer.fit("sparse:n=240,d=20,density=0.4", progress=False)
    assert [hi - lo for lo, hi in Cut(dim=20, servers=20).ranges] == [1] * 20


def test_simulated_servers_have_a_link_each_and_a_longer_way():
    one = _timing(SimulationConfig(apply_s=1e-3))
    four = _timing(SimulationConfig(apply_s=1e-3, servers=4))
    assert four == dataclasses.replace(
        one,
        apply_s=one.apply_s / 4,
        bytes_per_s=4 * one.bytes_per_s,
        latency_s=2 * one.latency_s,
    )
