"""How many workers a run is to have, and what becomes of their parts when that changes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from actors.errors import MechanismError
from actors.groups.errands import Errands
from actors.wires.doorbell import Doorbell
from raylab.drivers import cluster, ray_start
from raylab.drivers.server import elastic as module
from raylab.drivers.server.checkpoints import ServerCheckpoints
from raylab.drivers.server.elastic import Elastic
from raylab.errors import CheckpointError, ConfigError
from raylab.records import CheckpointStore, RunFolder, Storage

pytestmark = pytest.mark.unit


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_number_stays_until_another_is_asked_for(clock):
    elastic = Elastic(4, lambda: 100)
    assert elastic.first() == 4
    assert not elastic.differs(4)
    elastic.want(6)
    assert elastic.differs(4)
    assert elastic.wanted == elastic.first() == 6


def test_a_range_begins_with_what_there_is_room_for_and_grows_with_it(clock):
    room = [4]
    elastic = Elastic([2, 8], lambda: room[0])
    assert elastic.first() == 3  # the server needs room, too
    room[0] = 0
    assert not elastic.differs(3)
    clock.now += 10
    room[0] = 2
    assert elastic.differs(3)
    assert elastic.wanted == 5
    room[0] = 0
    elastic.stay(3)
    clock.now += 10
    assert not elastic.differs(3)
    assert Elastic([2, 8], lambda: 0).first() == 2
    assert Elastic([2, 8], lambda: 50).first() == 8


def test_a_range_shrinks_where_that_gives_others_the_room_they_wait_for(clock):
    room = [7]
    elastic = Elastic([2, 6], lambda: room[0])
    assert elastic.first() == 6
    room[0] = -3
    assert elastic.differs(6)
    assert elastic.wanted == 3
    # Others want more than all that may go have: then nobody goes.
    room[0] = -2
    clock.now += 10
    assert not elastic.differs(3)
    elastic.want([1, 6])
    assert elastic.differs(3)
    assert elastic.wanted == 1
    elastic.want([4, 5])
    assert elastic.wanted == 4


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([], 3),
        ([("CREATED", {"CPU": 4.0})], 3),
        ([("PENDING", {"CPU": 1.0})], 2),
        ([("PENDING", {"CPU": 2.0}), ("PENDING", {"CPU": 2.0, "GPU": 1.0})], -1),
        ([("PENDING", {"CPU": 1.0, "TPU": 1.0}), ("PENDING", {"CPU": 9.0})], 3),
    ],
)
def test_the_room_that_others_wait_for_is_not_ours(monkeypatch, waiting, expected):
    groups = {
        str(i): {"state": state, "bundles": {0: {"CPU": 0.0}, 1: bundle}}
        for i, (state, bundle) in enumerate(waiting)
    }
    monkeypatch.setattr(cluster, "placement_group_table", lambda: groups)
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert cluster.room({"CPU": 1.0}) == expected


def test_a_run_waits_longer_for_room_where_nodes_may_come(monkeypatch):
    monkeypatch.setattr(ray_start, "_gcs_address", lambda: "10.0.0.1:6379")
    assert cluster.patience_s(None) == 1800
    assert cluster.patience_s(5.0) == 5
    monkeypatch.setattr(ray_start, "_started", {"10.0.0.1:6379"})
    assert cluster.patience_s(None) == 60


@pytest.mark.parametrize("workers", [0, [3, 2], [0, 2], [1, 2, 3], True, 2.0, "4"])
def test_what_is_no_number_of_workers_is_refused(workers):
    with pytest.raises(ConfigError, match="workers must be a number >= 1"):
        Elastic(workers, lambda: 0)
    if isinstance(workers, int):
        with pytest.raises(ConfigError, match="workers must be a number >= 1"):
            Elastic(1, lambda: 0).want(workers)


# --- parts of workers that were others


def checkpoints(folder: Path, samples: int) -> ServerCheckpoints:
    storage = Storage.at(folder)
    return ServerCheckpoints(
        CheckpointStore(storage.child("checkpoints")), RunFolder(storage, "run"), {}, samples
    )


def keep(run: ServerCheckpoints, step: int, parts: dict[str, dict[str, object]]) -> None:
    written = [(step, run.store.write_part(step, name, part)) for name, part in parts.items()]
    run.took(written, [])


def duals(*values: float) -> dict[str, object]:
    return {"rule": {"duals": torch.tensor(values)}}


def test_the_duals_of_every_row_go_to_whoever_has_it_now(tmp_path):
    run = checkpoints(tmp_path, samples=7)
    assert run.begin(2)[:2] == (None, False)
    assert run.back(1).step is None
    keep(run, 5, {"server": {}, "worker-0": duals(0, 1, 2), "worker-1": duals(3, 4, 5, 6)})
    assert run.committed == 5
    for workers in (1, 3, 5, 7):
        saved, recut, _, keepings = run.begin(workers)
        assert saved is not None
        assert recut
        parts = [keeping.resume()["rule"]["duals"] for keeping in keepings if keeping.resume]
        assert torch.cat(parts).tolist() == [0, 1, 2, 3, 4, 5, 6]
        # One that is lost at once begins with what was handed to it, not with nothing.
        back = run.back(workers - 1)
        assert back.step == 5
        assert back.keeping is not None
        assert back.keeping.resume is not None
        assert torch.equal(back.keeping.resume()["rule"]["duals"], parts[-1])
    saved, recut, _, keepings = run.begin(2)
    assert not recut
    assert keepings[1].resume is not None
    assert keepings[1].resume()["rule"]["duals"].tolist() == [3, 4, 5, 6]
    assert run.back(0).step == 5


def test_a_lost_worker_begins_with_its_newest_part_though_no_checkpoint_has_it(tmp_path):
    run = checkpoints(tmp_path, samples=4)
    run.begin(2)
    keep(run, 3, {"server": {}, "worker-0": duals(1, 1), "worker-1": duals(2, 2)})
    keep(run, 6, {"worker-1": duals(4, 4)})
    assert run.committed == 3
    assert [run.back(k).step for k in (0, 1)] == [3, 6]
    keeping = run.back(1).keeping
    assert keeping is not None
    assert keeping.resume is not None
    assert keeping.resume()["rule"]["duals"].tolist() == [4, 4]


def test_what_is_not_kept_by_row_cannot_be_shared(tmp_path):
    run = checkpoints(tmp_path, samples=4)
    run.begin(1)
    keep(run, 3, {"server": {}, "worker-0": {"rule": {"state": torch.zeros(2)}}})
    _, _, _, keepings = run.begin(2)
    assert keepings[0].resume is not None
    with pytest.raises(CheckpointError, match="go on with as many workers"):
        keepings[0].resume()


# --- the server's thread does what others ask of it between two steps


def test_errands_are_done_by_the_loops_thread_and_refused_without_one():
    bell: Doorbell[str] = Doorbell()
    errands = Errands(bell.ring)
    with pytest.raises(MechanismError, match="the loop does not run"):
        errands.ask(threading.get_ident)
    errands.begin()
    done_by: list[int] = []

    def ask() -> None:
        done_by.append(errands.ask(threading.get_ident))
        with pytest.raises(ZeroDivisionError):
            errands.ask(lambda: 1 / 0)

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive():
        bell.wait(0.1)
        errands.carry_out()
    asking.join()
    assert done_by == [threading.get_ident()]
    errands.end()
    bell.close()


def test_a_bell_wakes_for_everything_once():
    bell: Doorbell[str] = Doorbell()
    bell.watch("one", ())
    bell.watch("two", ())
    assert bell.wait(0.0) == set()
    for _ in range(3):
        bell.ring()
    assert bell.wait(10.0) == {"one", "two"}
    assert bell.wait(0.0) == set()
    bell.leave("one")
    bell.ring()
    assert bell.wait(10.0) == {"two"}
    bell.close()
    bell.ring()
