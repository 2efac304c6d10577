"""What servers and workers keep, take back, and become again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from raylab.algorithms.server.rule_factory import server_rule, worker_rule
from tests.server_problems import linear, linear_objectives, settings_for

pytestmark = pytest.mark.unit


@dataclass
class Task:
    number: int


def pair(method="dis_dfsdca", workers=2, **options):
    objectives = linear_objectives(linear(), workers)
    settings = settings_for(method, objectives, **options)
    server = server_rule(settings, np.zeros(settings.dim))
    return server, [worker_rule(settings, each, k) for k, each in enumerate(objectives)]


def exchange(server, workers, number, which=None):
    """Let workers make one message each, which the server applies."""
    for k, worker in enumerate(workers):
        if which is None or k in which:
            worker.work(Task(number), server.answer(k), 0)
            message = worker.message()
            server.apply(k, message, 0)
            worker.commit()


def w_of(server):
    return server.answer(-1)[0].numpy().copy()


def certified(server, workers, number=1):
    answer = server.answer(-1)
    for k, worker in enumerate(workers):
        server.mark(k, number)
        worker.mark(number, number - 1)
    return server.certify({k: w.certify(answer) for k, w in enumerate(workers)}, answer)


def test_an_answer_is_not_changed_by_what_is_applied_later():
    for method in ("dis_dfsdca", "asysgd"):
        server, workers = pair(method)
        answer = server.answer(0)[0]
        before = answer.clone()
        exchange(server, workers, 0)
        assert torch.equal(answer, before)
        assert not np.array_equal(w_of(server), before.numpy())


def test_w_is_copied_only_while_somebody_has_the_one_before():
    server, workers = pair("dis_dfsdca")
    exchange(server, workers, 0)
    place = server.writable().ctypes.data
    exchange(server, workers, 1)
    assert server.writable().ctypes.data == place
    view = server.answer(0)[0][1:]
    before = view.clone()
    exchange(server, workers, 2)
    assert server.writable().ctypes.data != place
    assert torch.equal(view, before)


@pytest.mark.parametrize("method", ["dis_dfsdca", "cocoa_plus", "asysgd", "asysvrg"])
def test_a_server_names_every_coordinate_that_a_message_changes_or_none(method):
    server, _ = pair(method, inner=5) if method == "asysvrg" else pair(method)
    if server.phase().kind == "full":
        server.close_phase()
    values = torch.tensor([0.5, -2.0], dtype=torch.float64)
    sparse = (torch.tensor([1, 3], dtype=torch.int32), values)
    dense = (torch.arange(1.0, 6.0, dtype=torch.float64),)
    for message in (dense, sparse, dense, sparse):
        before = w_of(server)
        server.apply(0, message, 0)
        places = server.changed()
        named = range(5) if places is None else places.tolist()
        assert set(np.flatnonzero(w_of(server) != before)) <= set(named)
    # Dual methods leave the others as they are.
    assert (places is None) == method.startswith("asy")


def test_a_checkpoint_of_the_server_fits_what_the_workers_kept_at_their_own_moments():
    server, workers = pair()
    parts = {}
    for k, number in ((0, 0), (1, 1)):
        exchange(server, workers, number)
        server.kept(k, 5)
        parts[k] = workers[k].save()
    exchange(server, workers, 2)
    again, fresh = pair()
    again.restore(server.save())
    for k, worker in enumerate(fresh):
        worker.restore(parts[k])
    assert certified(again, fresh)["relation"] < 1e-14
    assert again.eta == server.eta
    exchange(again, fresh, 3)
    again.take_back(1, 5)
    fresh[1].restore(parts[1])
    assert certified(again, fresh, 2)["relation"] < 1e-14


def test_what_a_lost_worker_did_after_its_checkpoint_is_taken_back_and_no_more():
    server, workers = pair()
    exchange(server, workers, 0)
    server.kept(1, 3)
    part = workers[1].save()
    exchange(server, workers, 1, which=[1])
    exchange(server, workers, 2, which=[0])
    assert certified(server, workers)["relation"] < 1e-14
    server.take_back(1, 3)
    assert certified(server, workers, 2)["relation"] > 1e-3
    workers[1].restore(part)
    assert certified(server, workers, 3)["relation"] < 1e-14
    server.take_back(1, None)
    workers[1].duals = workers[1].objective.zero_duals()
    assert certified(server, workers, 4)["relation"] < 1e-14
    with pytest.raises(KeyError):
        server.take_back(0, 3)


def test_a_rewind_goes_to_the_marks_or_to_where_a_process_began():
    server, workers = pair()
    exchange(server, workers, 0)
    figures = certified(server, workers, 1)
    assert server.judge(figures) is None
    marked = w_of(server)
    exchange(server, workers, 1)
    server.take_back(1, None)
    workers[1].duals = workers[1].objective.zero_duals()
    eta = server.eta
    server.rewind(1)
    workers[0].rewind(1)
    workers[1]._marks = {}
    workers[1].rewind(1)
    assert server.eta == eta / 2
    assert not np.array_equal(w_of(server), marked)
    assert certified(server, workers, 2)["relation"] < 1e-14
    server.rewind(None)
    for worker in workers:
        worker.rewind(None)
    np.testing.assert_array_equal(w_of(server), 0.0)


def test_a_loss_is_not_taken_for_a_step_that_is_too_long():
    server, workers = pair(workers=1)
    for number in range(40):
        exchange(server, workers, number)
    assert server.judge(certified(server, workers, 1)) is None
    server.take_back(0, None)
    workers[0].rewind(None)
    for number in (2, 3, 4):
        assert server.judge(certified(server, workers, number)) is None
    server._share(0)[:] += 100.0
    server._add_up()
    assert "rose" in server.judge(certified(server, workers, 5))


def test_samples_that_move_between_workers_take_their_share_of_w_along():
    server, workers = pair(workers=2)
    exchange(server, workers, 0)
    duals = np.concatenate([worker.duals for worker in workers])
    before = w_of(server)
    other, moved = pair(workers=3)
    lows = [each.objective.shard.lo for each in moved]
    for worker, part in zip(moved, np.split(duals, lows[1:]), strict=True):
        worker.duals = part.copy()
    other.adopt({k: each.objective.dual_sum(each.duals) for k, each in enumerate(moved)}, 7)
    np.testing.assert_allclose(w_of(other), before, rtol=1e-12)
    assert certified(other, moved)["relation"] < 1e-14
    # One that is lost before it has kept anything goes back to what it was handed.
    handed = moved[1].duals.copy()
    exchange(other, moved, 1)
    other.take_back(1, 7)
    moved[1].restore({"duals": torch.from_numpy(handed)})
    assert certified(other, moved, 2)["relation"] < 1e-14


@pytest.mark.parametrize("method", ["asysvrg", "sgd_svrg", "asysgd"])
def test_a_server_without_duals_goes_on_from_what_it_saved(method):
    options = {"inner": 5, "pretrain": 0.2, "batch": 4}
    server, workers = pair(method, workers=1, **options)

    def go(rule, worker, steps, first, begun=-1):
        for number in range(first, first + steps):
            phase = rule.phase()
            if phase.number != begun:
                worker.begin(phase, rule.opening())
                begun = phase.number
            exchange(rule, [worker], number)
            counts[0] += 1
            if phase.messages is not None and counts[0] >= phase.messages:
                rule.close_phase()
                counts[0] = 0

    counts = [0]
    go(server, workers[0], 9, 0)
    saved, at = server.save(), list(counts)
    go(server, workers[0], 9, 9, begun=-2)
    again, fresh = pair(method, workers=1, **options)
    again.restore(saved)
    counts = at
    go(again, fresh[0], 9, 9)
    np.testing.assert_array_equal(w_of(again), w_of(server))
