"""Duals that fill the memory: a checkpoint copies what changes while it is written, and no more."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
import torch

from raylab.algorithms.server import dual_worker
from raylab.algorithms.server.dual_worker import DualWorker
from raylab.algorithms.server.row_snapshot import RowSnapshot, SpilledRows
from raylab.algorithms.server.rule_factory import ServerSettings, worker_rule
from raylab.data import open_rows
from raylab.drivers.server.checkpoints import _share
from raylab.errors import CheckpointError
from raylab.problems import build, shards
from raylab.records import CheckpointStore, Storage

pytestmark = pytest.mark.unit

ROWS, WIDTH = 1000, 5
BLOCK_BYTES = 80 * WIDTH * 8


def table() -> np.ndarray:
    return np.arange(ROWS * WIDTH, dtype=np.float64).reshape(ROWS, WIDTH)


def small_snapshot(values: np.ndarray, most_bytes: int = 1 << 30) -> RowSnapshot:
    return RowSnapshot(values, block_bytes=BLOCK_BYTES, most_bytes=most_bytes)


@pytest.mark.parametrize("width", [None, WIDTH])
def test_a_snapshot_is_what_the_rows_were_however_they_change_while_it_is_read(width):
    values = table() if width else table()[:, 0].copy()
    before = values.copy()
    snapshot = small_snapshot(values)
    draws = np.random.default_rng(0)
    found = []
    for _ in range(3):
        rows = draws.permutation(ROWS)[:50]
        snapshot.preserve(rows)
        values[rows] = -1.0
    for block in snapshot.blocks():
        found.append(block.copy())
        rows = draws.permutation(ROWS)[:100]
        snapshot.preserve(rows)
        values[rows] -= 0.5
    np.testing.assert_array_equal(np.concatenate(found), before)
    assert not np.array_equal(values, before)


def test_only_rows_that_change_before_they_are_written_are_copied():
    values = table()
    snapshot = small_snapshot(values)
    snapshot.preserve(np.array([7, 3, 900]))
    snapshot.preserve(np.array([3, 7]))  # known already
    blocks = snapshot.blocks()
    next(blocks)
    snapshot.preserve(np.arange(80))  # written already
    assert snapshot.copied_bytes == 3 * WIDTH * 8
    for _ in blocks:
        pass
    snapshot.preserve(np.arange(ROWS))
    assert snapshot.copied_bytes == 3 * WIDTH * 8


def test_copies_go_with_their_block():
    values = table()
    snapshot = small_snapshot(values)
    for _ in snapshot.blocks():
        ahead = np.arange(ROWS)[snapshot._written :][:80]
        snapshot.preserve(ahead)
    assert snapshot.copied_bytes == (ROWS - 80) * WIDTH * 8
    assert snapshot.most_copied_bytes == BLOCK_BYTES


def test_who_changes_too_much_waits_for_the_writer():
    values = table()
    before = values.copy()
    most = 4 * BLOCK_BYTES
    snapshot = small_snapshot(values, most_bytes=most)
    changed = threading.Event()

    def change() -> None:
        for rows in np.array_split(np.arange(ROWS)[::-1], 50):
            snapshot.preserve(rows)
            values[rows] = 0.0
        changed.set()

    blocks = snapshot.blocks()
    found = [next(blocks).copy()]
    thread = threading.Thread(target=change)
    thread.start()
    found += [block.copy() for block in blocks]
    thread.join(60)
    assert changed.is_set()
    assert not values.any()
    np.testing.assert_array_equal(np.concatenate(found), before)
    assert snapshot.most_copied_bytes <= most + ROWS // 50 * WIDTH * 8


def test_a_writer_that_fails_lets_the_worker_go_on():
    values = table()
    snapshot = small_snapshot(values, most_bytes=1)
    blocks = snapshot.blocks()
    next(blocks)
    snapshot.preserve(np.array([999]))
    blocks.close()
    snapshot.preserve(np.array([998]))  # would wait for ever
    with pytest.raises(RuntimeError, match="read once"):
        snapshot.array()


def test_a_snapshot_nobody_has_read_gives_its_rows_again_and_again():
    values = table()
    before = values.copy()
    snapshot = small_snapshot(values)
    snapshot.preserve(np.arange(10))
    values[:10] = 0.0
    np.testing.assert_array_equal(snapshot.array(), before)
    np.testing.assert_array_equal(snapshot.array(), before)


def test_spilled_rows_come_back():
    spilled = SpilledRows(table())
    np.testing.assert_array_equal(spilled.read(), table())
    np.testing.assert_array_equal(spilled.read(), table())


# ------------------------------------------------------------------ in a checkpoint


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(Storage.at(tmp_path))


def test_a_part_with_a_late_array_comes_back_with_a_tensor(store):
    state = {"worker": 1, "rule": {"duals": small_snapshot(table()), "w": torch.ones(2)}}
    part = store.write_part(3, "worker-1", state)
    assert part.file == "worker-1.zip"
    saved = store.commit(3, [part], {})
    saved.verify()
    found = store.open(3).part("worker-1")
    assert found["worker"] == 1
    torch.testing.assert_close(found["rule"]["w"], torch.ones(2))
    np.testing.assert_array_equal(found["rule"]["duals"].numpy(), table())


def test_a_damaged_part_with_a_late_array_is_named(store, tmp_path):
    part = store.write_part(3, "worker-1", {"rule": {"duals": small_snapshot(table())}})
    store.commit(3, [part], {})
    path = tmp_path / "step-00000003" / "worker-1.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"worker-1\.zip .*bytes have changed"):
        store.open(3).part("worker-1")


def worker(monkeypatch, large: bool = True, **options) -> DualWorker:
    if large:
        monkeypatch.setattr(dual_worker, "_LARGE_BYTES", 1)
    source = open_rows("pca:n=600,d=8")
    objective = build("pca", source, shards(600, 2)[0], strength=1e-2, mu=0.5)
    settings = ServerSettings(
        method="dis_dfsdca", workers=2, n=600, dim=8, strength=1e-2, smoothness=1.0,
        convex=False, dual_width=8, **options,
    )  # fmt: skip
    rule = worker_rule(settings, objective, 0)
    assert isinstance(rule, DualWorker)
    return rule


def commit_some(rule: DualWorker, rows: list[int]) -> None:
    rule._change = (np.array(rows), np.ones((len(rows), 8)))
    rule.commit()


def test_large_duals_are_saved_as_they_were_and_only_what_changes_is_copied(monkeypatch, store):
    rule = worker(monkeypatch)
    commit_some(rule, [1, 2, 3])
    before = rule.duals.copy()
    saved = rule.save()
    commit_some(rule, [3, 4])
    assert saved["duals"].copied_bytes == 2 * 8 * 8
    part = store.write_part(1, "worker-0", {"rule": saved})
    store.commit(1, [part], {})
    other = worker(monkeypatch)
    kept = store.open(1).part("worker-0")["rule"]
    other.restore(kept)
    np.testing.assert_array_equal(other.duals, before)
    assert np.shares_memory(other.duals, kept["duals"].numpy())
    commit_some(other, [5])
    other.rewind(None)
    np.testing.assert_array_equal(other.duals, before)


def test_a_rewind_leaves_what_is_being_saved_alone(monkeypatch):
    rule = worker(monkeypatch)
    commit_some(rule, [1, 2, 3])
    before = rule.duals.copy()
    saved = rule.save()
    rule.rewind(None)
    commit_some(rule, [2])
    assert not np.array_equal(rule.duals, before)
    np.testing.assert_array_equal(saved["duals"].array(), before)


def test_small_duals_are_copied(monkeypatch):
    rule = worker(monkeypatch, large=False)
    saved = rule.save()
    commit_some(rule, [0])
    assert not saved["duals"].any()


@pytest.mark.parametrize(("large", "before", "after"), [(True, 2, 3), (True, 3, 2), (False, 2, 3)])
def test_other_workers_get_the_duals_of_their_rows(store, large, before, after):
    whole = table()
    parts = []
    for k, shard in enumerate(shards(ROWS, before)):
        mine = whole[shard.lo : shard.hi].copy()
        kept = small_snapshot(mine) if large else torch.from_numpy(mine)
        parts.append(store.write_part(7, f"worker-{k}", {"worker": k, "rule": {"duals": kept}}))
    saved = store.commit(7, parts, {})
    found = [_share(saved, ROWS, before, after, k) for k in range(after)]
    assert [part["worker"] for part in found] == list(range(after))
    duals = [part["rule"]["duals"].numpy() for part in found]
    assert [len(each) for each in duals] == [shard.rows for shard in shards(ROWS, after)]
    np.testing.assert_array_equal(np.concatenate(duals), whole)


def test_a_share_of_large_duals_takes_no_more_memory_than_it_has_rows(store):
    rows, width = 4000, 250  # 8 MB
    whole = np.zeros((rows, width))
    parts = [
        store.write_part(7, f"worker-{k}", {"rule": {"duals": RowSnapshot(whole[lo : lo + 2000])}})
        for k, lo in enumerate((0, 2000))
    ]
    saved = store.commit(7, parts, {})
    saved.verify()  # what the first use brings in
    tracemalloc.start()
    try:
        share = _share(saved, rows, 2, 3, 1)["rule"]["duals"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    buffers = 12 << 20  # for the hash, and of the archive
    assert share.shape == (1333, width)
    assert peak < share.numpy().nbytes + buffers


def test_rows_that_an_archive_lacks_are_an_error(store):
    part = store.write_part(7, "worker-0", {"rule": {"duals": small_snapshot(table())}})
    saved = store.commit(7, [part], {})

    def too_many(place, late):
        late.read_into(np.empty((10, WIDTH)), ROWS - 5)

    with pytest.raises(CheckpointError, match="there must be 1005 rows"):
        saved.part("worker-0", too_many)
