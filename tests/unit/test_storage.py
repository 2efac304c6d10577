"""A folder on a file system: files that are whole or not there, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import stat
import threading
from pathlib import Path

import fsspec
import pytest
import torch
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from raylab.errors import ConfigError, DataError
from raylab.records import Storage

pytestmark = pytest.mark.unit


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["local", "sub-tree", "fsspec"])
def storage(request, tmp_path):
    """Three ways to one folder; the last goes the way of a store that is far away."""
    if request.param == "local":
        return Storage.at(tmp_path)
    if request.param == "sub-tree":
        return Storage.at("", SubTreeFileSystem(str(tmp_path), LocalFileSystem()))
    far = PyFileSystem(FSSpecHandler(fsspec.filesystem("file")))
    return Storage.at(str(tmp_path), far)


# ----------------------------------------------------------------- where


def test_a_local_path_is_made_absolute_with_the_home_for_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Storage.at("~/runs").local == tmp_path / "runs"
    assert Storage.at("runs/").local == Storage.at(Path("runs")).local == tmp_path / "runs"
    assert str(Storage.at("runs")) == Storage.at("runs").uri == str(tmp_path / "runs")


def test_a_file_uri_and_a_sub_tree_are_local_folders(tmp_path):
    inner = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    twice = SubTreeFileSystem("deep", inner)
    assert Storage.at(f"file://{tmp_path}/runs") == Storage.at(tmp_path / "runs")
    assert Storage.at("runs", inner) == Storage.at(tmp_path / "runs")
    assert Storage.at("/runs/", twice) == Storage.at(tmp_path / "deep" / "runs")


def test_an_address_names_its_store_without_credentials_and_options():
    where = "s3://key:secret@bucket/runs/?endpoint_override=127.0.0.1:1&scheme=http"
    storage = Storage.at(where)
    assert storage.local is None
    assert storage.path == "bucket/runs"
    assert str(storage.child("one")) == "s3://bucket/runs/one"
    inner = SubTreeFileSystem("bucket/runs", storage.filesystem)
    assert Storage.at("two/", inner).uri == "s3://bucket/runs/two"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nowhere://key:secret@bucket", "nowhere://.*Unrecognized filesystem type"),
        ("s3://key:secret@/?region=x", "s3://.*Missing bucket name"),
        ("s3://key:secret@bucket?colour=red", "s3://.*Unexpected query parameter"),
        ("a\0b", "must be one inside the file system"),
    ],
)
def test_a_storage_that_cannot_be_is_a_config_error_without_the_password(where, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Storage.at(where)
    assert "secret" not in str(caught.value)


def test_a_file_system_goes_with_a_path_inside_it():
    with pytest.raises(ConfigError, match="inside the file system"):
        Storage.at("s3://bucket/runs", LocalFileSystem())
    with pytest.raises(ConfigError, match=r"pyarrow\.fs\.PyFileSystem"):
        Storage.at("runs", object())


def test_a_storage_can_be_pickled(storage):
    storage.write("a", b"1")
    again = pickle.loads(pickle.dumps(storage))  # noqa: S301 - our own
    assert again == storage
    assert again.read("a") == b"1"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden", "a\0"])
def test_a_name_is_one_plain_name(tmp_path, name):
    storage = Storage.at(tmp_path)
    for use in (storage.child, storage.read, storage.delete, lambda n: storage.write(n, b"")):
        with pytest.raises(ConfigError, match="one plain file or folder name"):
            use(name)


# ----------------------------------------------------------------- files


def test_what_is_written_reads_back_and_missing_folders_are_made(storage, tmp_path):
    deep = storage.child("one", "two")
    deep.write("a.bin", b"\0\1")
    deep.write("b.bin", lambda file: [file.write(b"12"), file.write(memoryview(b"34"))])
    assert (deep.read("a.bin"), deep.read("b.bin")) == (b"\0\1", b"1234")
    assert everything(tmp_path) == ["one/two/a.bin", "one/two/b.bin"]
    with deep.open("b.bin") as file:
        assert file.read(3) == b"123"


def test_names_are_sorted_without_the_hidden_ones(storage, tmp_path):
    assert storage.child("none").names() == []
    for name in ("b", "a.txt"):
        storage.write(name, b"")
    storage.child("c").make()
    (tmp_path / ".hidden").write_text("")
    assert storage.names() == ["a.txt", "b", "c"]
    assert storage.folders() == ["c"]
    assert [storage.exists(name) for name in ("a.txt", "c", "d")] == [True, True, False]


def test_sizes_are_those_of_files(storage):
    storage.write("a", b"123")
    storage.child("c").make()
    assert [storage.size(name) for name in ("a", "c", "d")] == [3, None, None]


def test_files_and_folders_are_deleted_and_missing_ones_are_no_error(storage, tmp_path):
    storage.child("one", "two").write("a", b"")
    storage.write("b", b"")
    storage.write("c", b"")
    for name in ("one", "b", "none"):
        storage.delete(name)
    assert everything(tmp_path) == ["c"]
    assert storage.names() == ["c"]


def test_a_missing_file_is_a_data_error_that_names_it(storage):
    with pytest.raises(DataError, match=f"cannot read {storage}/gone: .*; check the path"):
        storage.read("gone")


def test_a_folder_where_a_file_is_cannot_be_made(storage, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"cannot make the folder {storage}/file/runs: "):
        storage.child("file", "runs").make()
    with pytest.raises(DataError, match=f"cannot write {storage}/file/a: "):
        storage.child("file").write("a", b"")


# ----------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DataError),
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_writer_that_fails_midway_leaves_what_was_there(storage, tmp_path, before, error, told):
    if before:
        storage.write("a", before)

    def fail(file):
        file.write(b"half of")
        raise error

    with pytest.raises(told):
        storage.write("a", fail)
    assert everything(tmp_path) == (["a"] if before else [])
    if before:
        assert storage.read("a") == before


def test_a_full_disk_is_told_also_where_torch_covers_its_error(storage, tmp_path):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    with pytest.raises(DataError, match=f"cannot write {storage}/w.pt: No space left on device"):
        storage.write("w.pt", lambda file: torch.save({"w": torch.zeros(2)}, Full()))
    assert everything(tmp_path) == []


def test_nobody_sees_a_file_before_it_is_whole(storage):
    seen = []

    def slowly(file):
        file.write(b"new")
        file.flush()
        seen.append((storage.names(), storage.read("a")))

    storage.write("a", b"old")
    storage.write("a", slowly)
    assert seen == [(["a"], b"old")]
    assert storage.read("a") == b"new"


def test_bytes_are_on_the_disk_before_the_file_has_its_name_and_the_name_afterwards(
    tmp_path, monkeypatch
):
    synced = []

    def fsync(handle):
        about = os.fstat(handle)
        folder = stat.S_ISDIR(about.st_mode)
        what = about.st_ino if folder else about.st_size
        synced.append((what, Storage.at(tmp_path / "one" / "two").names()))

    monkeypatch.setattr(os, "fsync", fsync)
    Storage.at(tmp_path).child("one", "two").write("a", b"12345")
    one = tmp_path / "one"
    folders = [each.stat().st_ino for each in (tmp_path, one, one / "two")]
    # A folder that is new has a name, too, which is in the one above.
    assert sorted(synced[:2]) == sorted((folder, []) for folder in folders[:2])
    assert synced[2:] == [(5, []), (folders[2], ["a"])]


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_fails_is_told_and_one_that_keeps_names_by_itself_is_let_be(
    tmp_path, monkeypatch, refused
):
    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(os, "fsync", fsync)
    told = pytest.raises(DataError, match=r"cannot write .*/a: Input/output error")
    with told if refused == errno.EIO else contextlib.nullcontext():
        Storage.at(tmp_path).write("a", b"12345")
    assert Storage.at(tmp_path).read("a") == b"12345"


def test_writers_of_one_file_at_once_leave_one_of_their_files(storage, tmp_path):
    start = threading.Barrier(4)

    def put(content):
        start.wait()
        storage.write("a", content)

    contents = [bytes([k]) * 100_000 for k in range(4)]
    threads = [threading.Thread(target=put, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.read("a") in contents
    assert everything(tmp_path) == ["a"]


def test_a_folder_that_may_not_be_written_is_told(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="Permission denied; choose a folder that you may write to"):
        Storage.at(tmp_path).write("a", b"")
