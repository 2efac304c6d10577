"""Servers of several shards on real actors: certified ends, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal

import pytest

from actors.server.server_group import ServerGroup
from actors.server.shard_log import shard_member
from tests.actor.test_parameter_server import DATA, SLOW_S, assert_solved, trainer

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]


def test_a_lost_worker_comes_back_to_all_shards(tmp_path, capsys):
    dying = {"straggler": "dies:worker=1,message=6", "sample_s": SLOW_S}
    found = trainer(tmp_path, "run", failures=1, servers=2, **dying).fit(DATA)
    assert_solved(found)
    assert "worker 1 begins again with" in capsys.readouterr().err
    rows = found.table.to_pylist()
    assert all(sum(row["server_bytes"]) == row["bytes"] for row in rows)
    assert all(len(row["server_bytes"]) == 2 and min(row["server_bytes"]) > 0 for row in rows)


def test_a_shard_that_is_killed_is_replaced_and_the_relation_still_holds(
    tmp_path, when_saved, monkeypatch, capsys
):
    shards: list[int] = []
    run = ServerGroup.run

    def watched(self: ServerGroup, *arguments: object) -> str:
        shards.append(self.homes[self.members.index(shard_member(1))].pid)
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ServerGroup, "run", watched)
    when_saved(lambda: os.kill(shards[0], signal.SIGKILL))
    given = {"workers": 1, "servers": 2, "sample_s": SLOW_S}
    found = trainer(tmp_path, "run", failures=1, **given).fit(DATA)
    assert_solved(found)
    assert len(shards) == 2
    assert "going on from the checkpoint of step" in capsys.readouterr().err
