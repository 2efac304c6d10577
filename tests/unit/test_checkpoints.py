"""Checkpoints: whole or not there, checked when they are read, and pruned."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import random
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler

from raylab.errors import CheckpointError, ConfigError, InputError
from raylab.records import CheckpointStore, Part, SavedCheckpoint, Storage
from raylab.records.states import loadable

pytestmark = pytest.mark.unit

STATE = {"w": torch.arange(6.0, dtype=torch.float64).view(2, 3), "n": 3, "deep": [None, "x", 0.5]}


def save(store: CheckpointStore, step: int, stages: int = 2, about: Any = None) -> SavedCheckpoint:
    parts = [store.write_part(step, f"stage-{k}", {**STATE, "k": k}) for k in range(stages)]
    return store.commit(step, parts, about or {"epoch": step // 10})


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and torch.equal(a, b)
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return bool(type(a) is type(b) and a == b)


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(Storage.at(tmp_path / "checkpoints"))


def files(store: CheckpointStore) -> Path:
    assert store.folder.local is not None
    return store.folder.local


# ----------------------------------------------------------------- round trips


def test_a_checkpoint_reads_back_as_it_was_written(store):
    about = {"epoch": 3, "cuts": [1, 2], "settings": {"lr": 0.1, "name": "ñ", "delay": None}}
    committed = save(store, 120, about=about)
    for read in (committed, store.open(120), store.newest()):
        assert (read.step, read.about, read.names) == (120, about, ["stage-0", "stage-1"])
        assert equal(read.part("stage-0"), {**STATE, "k": 0})
        assert equal(read.part("stage-1"), {**STATE, "k": 1})
        read.verify()
    assert sorted(path.name for path in (files(store) / "step-00000120").iterdir()) == [
        "manifest.json",
        "stage-0.pt",
        "stage-1.pt",
    ]


def test_a_store_and_what_it_gives_can_be_pickled(store):
    again = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    assert again == store
    part = again.write_part(7, "a", STATE)
    committed = store.commit(7, [pickle.loads(pickle.dumps(part))], {})  # noqa: S301 - our own
    read = pickle.loads(pickle.dumps(committed))  # noqa: S301 - our own
    assert equal(read.part("a"), STATE)


def test_a_parts_size_and_hash_are_those_of_its_file(store):
    part = store.write_part(1, "a", STATE)
    content = (files(store) / "step-00000001" / "a.pt").read_bytes()
    assert part == Part("a", len(content), hashlib.sha256(content).hexdigest())


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.builds(
        lambda shape, dtype, seed: torch.testing.make_tensor(
            shape, dtype=dtype, device="cpu", low=0, high=9
        ),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from([torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64]),
        st.integers(),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict)
        | st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=3).map(Counter)
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(st.text(), plain, max_size=3))
def test_any_state_that_is_taken_is_loaded_again(state):
    file = io.BytesIO()
    torch.save(loadable(state), file)
    file.seek(0)
    assert equal(torch.load(file, weights_only=True), state)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (optim.SGD, lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5])),
        (optim.AdamW, lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
        (optim.LBFGS, lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step)),
        (optim.RMSprop, lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10)),
        (optim.Adagrad, lambda o: lr_scheduler.ReduceLROnPlateau(o)),
        (
            optim.Adam,
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.MultiStepLR(o, [1]), lr_scheduler.LinearLR(o)], [2]
            ),
        ),
    ],
)
def test_the_states_of_torchs_optimisers_and_schedulers_load_again(store, optimizer, schedule):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    made = optimizer(model.parameters(), lr=0.1)
    scheduler = schedule(made)

    def closure():
        made.zero_grad()
        loss = model(torch.ones(4, 3)).square().sum()
        loss.backward()
        return loss

    made.step(closure)
    scheduler.step(1.0) if hasattr(scheduler, "patience") else scheduler.step()
    state = {
        "model": model.state_dict(),
        "optimizer": made.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "python_rng": random.getstate(),
    }
    read = store.commit(1, [store.write_part(1, "a", state)], {}).part("a")
    assert equal(read, state)
    made.load_state_dict(read["optimizer"])
    scheduler.load_state_dict(read["scheduler"])


def test_a_defaultdict_is_kept_as_the_dict_that_it_is_equal_to(store):
    found = defaultdict(lambda: 1, a=2)
    read = store.commit(1, [store.write_part(1, "a", {"d": found})], {}).part("a")
    assert read == {"d": {"a": 2}}
    assert type(read["d"]) is dict


def test_parameters_are_kept_as_their_values(store):
    parameter = nn.Parameter(torch.ones(2))
    parameter.register_hook(print)
    parameter.tag = object()
    state = {"p": parameter, "g": parameter * 2}
    read = store.commit(1, [store.write_part(1, "a", state)], {}).part("a")
    assert equal(read, {"p": torch.ones(2), "g": torch.full((2,), 2.0)})
    assert not any(tensor.requires_grad for tensor in read.values())


def test_tensors_that_share_memory_are_written_once_and_share_it_again(store):
    shared = torch.ones(100_000)
    part = store.write_part(1, "a", {"a": shared, "b": shared})
    assert part.size_bytes < 500_000
    read = store.commit(1, [part], {}).part("a")
    assert read["a"].data_ptr() == read["b"].data_ptr()


# ----------------------------------------------------------------- states that cannot be

Pair = namedtuple("Pair", "a b")
Number = IntEnum("Number", "one")
CIRCLE: dict[str, Any] = {}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, {"b": object()}]}, r"state\['a'\]\[1\]\['b'\] is a builtins.object"),
        ({"lr": np.float64(0.1)}, r"state\['lr'\] is a numpy.float64"),
        ({"a": np.ones(2)}, r"state\['a'\] is a numpy.ndarray"),
        ({"f": len}, r"state\['f'\] is a builtins.builtin_function_or_method"),
        ({"p": (Pair(1, 2),)}, r"state\['p'\]\[0\] is a .*Pair"),
        ({"n": Number.one}, r"state\['n'\] is a .*Number"),
        ({"b": b""}, r"state\['b'\] is a builtins.bytes"),
        ({"s": {frozenset()}}, r"a key of state\['s'\] is a builtins.frozenset"),
        ({"d": {Path("x"): 1}}, r"a key of state\['d'\] is a pathlib"),
        ({"d": {torch.ones(1): 1}}, r"a key of a state must not be a tensor"),
        ({"i": 2**3000}, r"state\['i'\] is a integer of 3001 bits"),
        ({"t": torch.ones(2).to_sparse()}, r"state\['t'\] is a tensor on cpu of layout .*sparse"),
        ({"t": torch.ones(2, device="meta")}, r"state\['t'\] is a tensor on meta"),
        ([1], "must be a dictionary, but got a builtins.list"),
        (CIRCLE, "or holds itself"),
    ],
)
def test_a_state_that_could_not_be_loaded_again_is_refused_when_it_is_written(store, state, where):
    with pytest.raises(CheckpointError, match=where):
        store.write_part(1, "a", state)
    assert not files(store).exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b", "ä", "a\n"])
def test_a_parts_name_is_plain(store, name):
    with pytest.raises(ConfigError, match="a part's name"):
        store.write_part(1, name, {})


@pytest.mark.parametrize("step", [-1, 1.0, True, "1"])
def test_a_step_is_a_number_of_batches(store, step):
    with pytest.raises(ConfigError, match="step >= 0"):
        store.write_part(step, "a", {})


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_at_least_one_checkpoint_is_kept(tmp_path, keep):
    with pytest.raises(ConfigError, match="keep >= 1"):
        CheckpointStore(Storage.at(tmp_path), keep=keep)


@pytest.mark.parametrize("about", [{"a": object()}, {"a": math.nan}, {"a": CIRCLE}])
def test_what_a_checkpoint_is_about_is_json(store, about):
    part = store.write_part(1, "a", {})
    with pytest.raises(CheckpointError, match="about must be JSON"):
        store.commit(1, [part], about)
    assert store.steps() == []


# ----------------------------------------------------------------- commits


def test_parts_without_a_commit_are_no_checkpoint(store):
    assert (store.steps(), store.newest()) == ([], None)
    save(store, 10)
    store.write_part(20, "stage-0", STATE)
    assert store.steps() == [10]
    assert store.newest().step == 10
    with pytest.raises(CheckpointError, match=r"step 20, but .*step-00000020 has no manifest.json"):
        store.open(20)


def test_the_manifest_is_written_last(store, monkeypatch):
    written = []
    write = Storage.write
    monkeypatch.setattr(
        Storage,
        "write",
        lambda self, name, content: (written.append(name), write(self, name, content)),
    )
    save(store, 10)
    assert written == ["stage-0.pt", "stage-1.pt", "manifest.json"]


def test_a_commit_that_fails_leaves_the_checkpoint_before(store, monkeypatch):
    save(store, 10)
    parts = [store.write_part(20, "stage-0", STATE)]

    def fail(self, name, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            store.commit(20, parts, {})
    assert store.newest().step == 10
    store.newest().verify()


@pytest.mark.parametrize("harm", ["missing", "shorter", "elsewhere"])
def test_a_part_that_is_not_in_the_folder_cannot_be_committed(store, tmp_path, harm):
    other = CheckpointStore(Storage.at(tmp_path / "another node"))
    part = (other if harm == "elsewhere" else store).write_part(10, "a", STATE)
    path = files(store) / "step-00000010" / "a.pt"
    if harm == "missing":
        path.unlink()
    elif harm == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="a storage that all nodes see"):
        store.commit(10, [part], {})
    assert store.steps() == []


def test_a_commit_needs_parts_with_names_of_their_own(store):
    part = store.write_part(1, "a", {})
    for parts, named in (([], "none"), ([part, part], "a, a")):
        with pytest.raises(CheckpointError, match=f"names of their own, but got {named}"):
            store.commit(1, parts, {})


def test_a_step_that_is_written_again_is_no_checkpoint_until_its_commit(store):
    save(store, 10)
    save(store, 20, about={"time": 1})
    part = store.write_part(20, "stage-0", {"new": 1})
    assert store.steps() == [10]
    assert store.commit(20, [part], {"time": 2}).part("stage-0") == {"new": 1}
    assert store.newest().names == ["stage-0"]


def test_parts_may_be_written_at_once_by_threads(store):
    parts: list[Part] = []

    def put(k):
        parts.append(store.write_part(10, f"stage-{k}", {"w": torch.full((1000,), float(k))}))

    threads = [threading.Thread(target=put, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = store.commit(10, parts, {})
    assert [read.part(f"stage-{k}")["w"][0].item() for k in range(4)] == [0, 1, 2, 3]


# ----------------------------------------------------------------- damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 100, 300, 500, -1])
def test_a_flipped_bit_of_a_part_is_found(store, place):
    save(store, 10)
    path = files(store) / "step-00000010" / "stage-1.pt"
    flip(path, place)
    found = store.newest()
    for read in (found.verify, lambda: found.part("stage-1")):
        with pytest.raises(CheckpointError, match=f"{path} must .*bytes have changed"):
            read()
    assert found.part("stage-0")["k"] == 0


@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_truncated_part_is_found_with_the_way_out(store, left):
    save(store, 10)
    save(store, 20)
    path = files(store) / "step-00000020" / "stage-0.pt"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:left])
    told = f"{path} must .* has {left % size} bytes in place of {size}: take that of step 10"
    with pytest.raises(CheckpointError, match=told):
        store.newest().part("stage-0")


def test_a_missing_part_is_found(store):
    save(store, 10)
    path = files(store) / "step-00000010" / "stage-0.pt"
    found = store.newest()
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path} .*missing: there is no other checkpoint"):
        found.verify()


def test_a_part_that_vanishes_while_it_is_looked_at_is_told(store, monkeypatch):
    found = save(store, 10)
    (files(store) / "step-00000010" / "stage-0.pt").unlink()
    monkeypatch.setattr(Storage, "size", lambda self, name: found.parts["stage-0"].size_bytes)
    with pytest.raises(CheckpointError, match=r"cannot read .*stage-0\.pt"):
        found.part("stage-0")


def test_a_part_of_another_name_is_not_there(store):
    with pytest.raises(CheckpointError, match="one of stage-0, stage-1, but got 'stage-2'"):
        save(store, 10).part("stage-2")


def foreign(store: CheckpointStore, content: bytes) -> SavedCheckpoint:
    """Return a checkpoint whose part is a stranger's file, with its right hash."""
    store.folder.child("step-00000010").write("a.pt", content)
    part = Part("a", len(content), hashlib.sha256(content).hexdigest())
    return store.commit(10, [part], {})


class Stranger:
    def __reduce__(self):
        return (print, ("taken over",))


def test_a_strangers_pickle_is_not_run(store, tmp_path, capsys):
    path = tmp_path / "strange.pt"
    torch.save({"a": Stranger()}, path)
    with pytest.raises(CheckpointError, match=r"a\.pt must .*torch cannot load it"):
        foreign(store, path.read_bytes()).part("a")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\3\4 half an archive", b"\x80\x02N."])
def test_a_file_that_torch_cannot_read_is_told(store, content):
    with pytest.raises(CheckpointError, match=r"a\.pt must .*torch cannot load it"):
        foreign(store, content).part("a")


def test_a_file_that_holds_no_dictionary_is_told(store, tmp_path):
    path = tmp_path / "list.pt"
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="it holds a list"):
        foreign(store, path.read_bytes()).part("a")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[:-10], "(Expecting|Unterminated)"),
        (lambda text: "[" * 100_000, "recursion"),
        (lambda text: "[]", "something else"),
        (lambda text: "{}", "something else"),
        (lambda text: "\udcff", "codec can't decode"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "another version of raylab"),
        (lambda text: text.replace('"epoch": 2', '"epoch": 3'), "its content has changed"),
        (lambda text: text.replace("stage-1", "stage-7"), "its content has changed"),
        (lambda text: text.replace('"step": 20', '"step": 21'), "its content has changed"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_found(store, change, told):
    save(store, 10)
    save(store, 20)
    path = files(store) / "step-00000020" / "manifest.json"
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=f"{path} must .*{told}.*: take that of step 10"):
        store.newest()


def test_a_folder_that_was_renamed_is_not_the_checkpoint_of_its_new_name(store):
    save(store, 10)
    (files(store) / "step-00000010").rename(files(store) / "step-00000030")
    with pytest.raises(CheckpointError, match="it is that of step 10"):
        store.open(30)


def test_a_flipped_bit_of_the_manifest_is_found_wherever_it_is(store):
    save(store, 10)
    path = files(store) / "step-00000010" / "manifest.json"
    whole = path.read_bytes()
    unseen = []
    for place in range(0, len(whole), 2):
        flip(path, place)
        try:
            read = store.open(10)
        except CheckpointError:
            pass
        else:
            # White space between the values, and nothing else.
            unseen.append(whole[place : place + 1].isspace())
            assert read == SavedCheckpoint(store.folder, 10, {"epoch": 1}, read.parts)
        path.write_bytes(whole)
    assert all(unseen)


def test_a_damaged_checkpoint_is_an_input_error(store):
    assert issubclass(CheckpointError, InputError)
    assert CheckpointError.exit_code == 2


# ----------------------------------------------------------------- pruning


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [40]), (2, [30, 40]), (3, [20, 30, 40]), (None, [10, 20, 30, 40])]
)
def test_the_newest_checkpoints_are_kept(tmp_path, keep, left):
    store = CheckpointStore(Storage.at(tmp_path), keep=keep)
    for step in (10, 20, 30, 40):
        save(store, step, stages=1)
    assert store.steps() == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{s:08d}" for s in left]


@pytest.mark.parametrize("keep", [2, None])
def test_leftovers_of_older_steps_go_and_those_of_newer_ones_stay(tmp_path, keep):
    store = CheckpointStore(Storage.at(tmp_path), keep=keep)
    for step in (5, 15, 25):
        store.write_part(step, "stage-0", STATE)
    (tmp_path / "step-00000005" / ".stage-0.pt.half").write_text("")
    save(store, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000025"]


def test_what_is_not_a_checkpoint_is_never_deleted(store):
    other = ("final", "step-1", "step-000000030", "mine", "step-00000001.old")
    for name in other:
        store.folder.child(name).write("model.pt", b"")
    store.folder.write("step-00000002", b"a file")
    for step in (10, 20, 30, 100_000_000):
        save(store, step, stages=1)
    assert store.steps() == [30, 100_000_000]
    store.drop_after(0)
    assert set(store.folder.names()) == {*other, "step-00000002"}
    assert all(store.folder.child(name).exists("model.pt") for name in other)


def test_the_one_just_committed_stays_also_below_newer_ones(tmp_path):
    store = CheckpointStore(Storage.at(tmp_path), keep=1)
    save(store, 100)
    save(store, 50).verify()
    assert store.steps() == [50, 100]
    save(store, 60).verify()
    assert store.steps() == [60, 100]


def test_a_run_that_goes_on_from_an_older_one_drops_the_later_ones(tmp_path):
    store = CheckpointStore(Storage.at(tmp_path), keep=None)
    for step in (10, 20, 30):
        save(store, step, stages=1)
    store.write_part(40, "stage-0", STATE)
    store.drop_after(20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]
    assert store.newest().step == 20


def test_a_deletion_that_stops_midway_leaves_no_checkpoint(store, monkeypatch):
    save(store, 10)
    save(store, 20)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", stop_at("step-00000010", Storage.delete))
        with pytest.raises(KeyboardInterrupt):
            save(store, 30)
    assert store.steps() == [20, 30]


def stop_at(name: str, delete: Any) -> Any:
    def stopping(self: Storage, which: str) -> None:
        if which == name:
            raise KeyboardInterrupt
        delete(self, which)

    return stopping
