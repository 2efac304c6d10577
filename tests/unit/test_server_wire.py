"""What server and workers tell each other, through frames and back."""

from __future__ import annotations

import random

import pytest
import torch

from actors.errors import MailboxError
from actors.server.changes import ChangesIn, ChangesOut, Trail
from actors.server.exchange import Asked, Part, ServerSide, WorkerSide
from actors.server.messages import News, Proof, Push, Reply
from actors.server.protocols import Task
from actors.wires.frames import decode, encode
from actors.wires.messages import Message

pytestmark = pytest.mark.unit

DIM = 300


def sent(message: Message) -> Message:
    return decode([bytes(frame) for frame in encode(7, message)])[1]


def answer(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(DIM, dtype=torch.float64, generator=generator), torch.tensor([0.5]))


def reply(**changed: object) -> Reply:
    given: dict[str, object] = {
        "verdict": "commit",
        "rewind": False,
        "good": None,
        "save": None,
        "certify": None,
        "era": 3,
        "opening": None,
        "task": None,
        "answer": (),
    }
    return Reply(**{**given, **changed})  # type: ignore[arg-type]


def assert_same(there: object, here: object) -> None:
    if isinstance(here, torch.Tensor):
        assert isinstance(there, torch.Tensor)
        assert there.dtype == here.dtype
        assert torch.equal(there, here)
    elif isinstance(here, tuple):
        assert isinstance(there, tuple)
        for one, other in zip(there, here, strict=True):
            assert_same(one, other)
    else:
        assert there == here


TASK = Task(
    phase=Asked(number=4, kind="inner", gather=True, messages=None, pieces=3), number=9, version=12
)


@pytest.mark.parametrize(
    "told",
    [
        reply(),
        reply(verdict="none", over=True, save=0),
        reply(verdict="discard", rewind=True, good=2, save=17, certify=(5, answer(1), 0)),
        reply(task=TASK, answer=answer(2), opening=()),
        reply(task=TASK, answer=answer(2), opening=(*answer(3), None), certify=(1, answer(4), 0)),
    ],
)
def test_a_reply_arrives_as_it_was_told(told):
    found = WorkerSide().unpacked(sent(ServerSide().packed(told)))
    assert isinstance(found, Reply)
    for name in ("verdict", "rewind", "good", "save", "certify", "era", "opening", "answer"):
        assert_same(getattr(found, name), getattr(told, name))
    assert found.over is told.over
    assert found.task == told.task


def test_pushes_proofs_and_news_arrive_as_they_were_told():
    push = Push(era=1, phase=2, number=3, tensors=(*answer(1), None), samples=64, waited_s=1.5)
    found = ServerSide().unpacked(sent(WorkerSide().packed(push)))
    assert isinstance(found, Push)
    assert (found.era, found.phase, found.number, found.samples, found.waited_s) == (
        1,
        2,
        3,
        64,
        1.5,
    )
    assert_same(found.tensors, push.tensors)
    part = Part(values={"losses": float("inf"), "η": -2.0}, tensors={"gradient": answer(2)[0]})
    proof = ServerSide().unpacked(sent(WorkerSide().packed(Proof(number=8, certificate=part))))
    assert isinstance(proof, Proof)
    assert proof.number == 8
    assert dict(proof.certificate.values) == part.values
    assert_same(proof.certificate.tensors["gradient"], part.tensors["gradient"])
    news = WorkerSide().unpacked(
        sent(ServerSide().packed(News(era=2, version=40, answer=answer(3))))
    )
    assert isinstance(news, News)
    assert (news.era, news.version) == (2, 40)
    assert_same(news.answer, answer(3))


def test_a_side_refuses_what_is_not_for_it():
    with pytest.raises(MailboxError, match="a server takes pushes and proofs, but got a WORD"):
        ServerSide().unpacked(ServerSide().packed(reply()))
    push = Push(era=1, phase=2, number=3, tensors=(), samples=1)
    with pytest.raises(MailboxError, match="a worker takes replies and news, but got a PUSH"):
        WorkerSide().unpacked(WorkerSide().packed(push))
    with pytest.raises(MailboxError, match="changes came of a vector that never did"):
        ChangesIn().unpack(-1, (torch.tensor([0]), torch.tensor([1.0])))


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_has_the_bits_of_the_server_however_little_changes(seed):
    draw = random.Random(seed)
    server, worker, trail = ServerSide(), WorkerSide(), Trail()
    w = answer(seed)[0]
    certified, at = w.clone(), 0
    sizes, kept = [], []
    for version in range(60):
        for _ in range(draw.choice([0, 1, 4])):
            places = torch.randperm(DIM)[: draw.choice([0, 1, 5, DIM])].to(torch.int32)
            w[places.long()] += draw.choice([1.0, float("nan"), -0.0])
            trail.add(None if draw.random() < 0.1 else places)
        told: Reply | News = reply(task=TASK, answer=(w, torch.tensor([version])), at=trail.at)
        if draw.random() < 0.3:
            told = News(era=1, version=version, answer=(w,), at=trail.at)
        elif draw.random() < 0.3:
            told = reply(task=TASK, certify=(1, (certified,), at), answer=(w,), at=trail.at)
        elif draw.random() < 0.3:
            certified, at = w.clone(), trail.at
        message = server.packed(told, trail)
        sizes.append(sum(t.numel() for t in message.tensors if t is not None))
        found = worker.unpacked(sent(message))
        assert torch.equal(found.answer[0].view(torch.int64), w.view(torch.int64))
        if isinstance(found, Reply) and found.certify is not None:
            kept.append((found.certify[1][0], certified))
    for there, here in kept:
        assert torch.equal(there.view(torch.int64), here.view(torch.int64))
    assert len(kept) > 2
    assert min(sizes[1:]) < DIM / 4


def test_a_trail_names_what_differs_between_any_two_updates_it_remembers():
    trail = Trail()
    for place in range(5):
        trail.add(torch.tensor([place, place + 10]))
    assert set(trail.between(1, 3, DIM).tolist()) == {1, 11, 2, 12}
    assert set(trail.between(3, 1, DIM).tolist()) == {1, 11, 2, 12}
    assert trail.between(4, 4, DIM).size == 0
    assert trail.between(1, 3, 3) is None
    trail.add(None)
    assert trail.between(5, 6, DIM) is None
    trail.add(torch.tensor([7]))
    assert trail.between(6, 7, DIM).tolist() == [7]
    assert trail.between(5, 7, DIM) is None


def test_a_trail_forgets_what_is_old():
    trail = Trail()
    for _ in range(40):
        trail.add(torch.arange(10_000))
    assert trail.between(39, 40, 1e9) is not None
    assert trail.between(1, 40, 1e9) is None


def test_what_changes_in_many_places_goes_whole():
    out, trail = ChangesOut(), Trail()
    vector = answer(0)[0]
    assert out.pack((vector,), trail.at, trail)[0] == 1
    trail.add(torch.arange(DIM // 3 + 1))
    assert out.pack((vector,), trail.at, trail)[0] == 1
    trail.add(torch.arange(DIM // 3))
    assert out.pack((vector,), trail.at, trail)[0] == -1
    assert ChangesOut().pack((vector,), trail.at, trail)[0] == 1
