"""The path of data that fill the memory, with fewer rows."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Mapping
from typing import Any

import pytest

from actors.server.server_group import ServerGroup
from benchmarks.large_rows import CASES, asked, measure

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

ROWS, DIM = 36_000, 500  # duals of 72 MB a worker: more than are copied for a checkpoint


def test_duals_too_large_to_copy_are_kept_and_come_back_when_a_worker_dies(
    tmp_path, when_saved, monkeypatch
):
    members: list[int] = []
    run = ServerGroup.run

    def watched(self: ServerGroup, *arguments: Any) -> str:
        members.extend(home.pid for home in self.homes)
        return run(self, *arguments)

    def saved_again(row: Mapping[str, Any]) -> bool:
        manifests = tmp_path.rglob("manifest.json")
        return bool(steps) and any(not each.match(f"*{steps[0]}/*") for each in manifests)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ServerGroup, "run", watched)
    steps = when_saved(lambda: os.kill(members[-1], signal.SIGKILL))
    words = "pca --epochs 1000 --checkpoint-every 100 --cpus 0.1"
    options = asked([*words.split(), "--rows", str(ROWS)])
    found = measure(CASES["pca"], "dis_dfsdca", options, saved_again)
    assert {"worker-0.zip", "worker-1.zip"} == found["parts"].keys()
    dual_bytes = ROWS // 2 * DIM * 8
    for size_bytes in found["parts"].values():
        assert dual_bytes < size_bytes < dual_bytes + 10_000
    assert sum(name.startswith("worker") for name in found["peaks"]) == 3  # one was replaced
    assert found["relation"] < 1e-12
    assert found["value"] < found["first"]
