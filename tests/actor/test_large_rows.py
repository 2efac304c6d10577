"""The path of data that fill the memory, with fewer rows."""

from __future__ import annotations

import pytest

from benchmarks.large_rows import CASES, asked, measure

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

ROWS, DIM = 36_000, 500  # duals of 72 MB a worker: more than are copied for a checkpoint


def test_duals_too_large_to_copy_are_kept_and_come_back_when_a_worker_dies():
    words = f"pca --rows {ROWS} --epochs 0.2 --checkpoint-every 100 --dies 120 --cpus 0.1"
    found = measure(CASES["pca"], "dis_dfsdca", asked(words.split()))
    assert sorted(found["parts"]) == ["worker-0.zip", "worker-1.zip"]
    dual_bytes = ROWS // 2 * DIM * 8
    for size_bytes in found["parts"].values():
        assert dual_bytes < size_bytes < dual_bytes + 10_000
    assert sum(name.startswith("worker") for name in found["peaks"]) == 3  # one was replaced
    assert found["relation"] < 1e-12
    assert found["value"] < found["first"]
