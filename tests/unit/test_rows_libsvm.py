"""LIBSVM text: read once, kept as Arrow, mapped without copying; and what is no such text."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from raylab.data import libsvm, open_rows
from raylab.data.rows import row_order
from raylab.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

TEXT = b"""\
2 1:0.5 3:-1.25 # a comment
1 2:1
1 1:2 2:3 3:4

2 3:0.125
"""
MATRIX = np.array([[0.5, 0, -1.25], [0, 1, 0], [2, 3, 4], [0, 0, 0.125]])


def dense(block):
    matrix = np.zeros((block.rows, block.dim))
    row = np.repeat(np.arange(block.rows), np.diff(block.indptr))
    matrix[row, block.indices] = block.values
    return matrix


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "four rows, dim=odd.txt"
    path.write_bytes(TEXT)
    return path


def arrow_files(folder):
    return sorted(folder.glob("*"))


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".txt", bytes), (".bz2", bz2.compress), (".xz", lzma.compress), (".gz", gzip.compress)],
)
def test_text_is_read_however_it_is_compressed(tmp_path, suffix, compress):
    path = tmp_path / f"four{suffix}"
    path.write_bytes(compress(TEXT))
    source = open_rows(f"libsvm:{path},shuffle=no", folder=tmp_path / "kept")
    assert (source.n, source.dim, source.classes) == (4, 3, 2)
    block = source.block(0, 4)
    np.testing.assert_array_equal(dense(block), MATRIX)
    assert block.labels.tolist() == [1, -1, -1, 1]
    assert (block.indptr.dtype, block.indices.dtype, block.values.dtype) == (
        np.int64,
        np.int32,
        np.float64,
    )


def test_rows_are_kept_in_a_fixed_order_that_is_not_the_files(text_file, tmp_path):
    source = open_rows(f"libsvm:{text_file}", folder=tmp_path / "kept", seed=5)
    order = row_order(4)
    assert order.tolist() != [0, 1, 2, 3]
    np.testing.assert_array_equal(dense(source.block(0, 4)), MATRIX[order])
    np.testing.assert_array_equal(dense(source.block(1, 3)), MATRIX[order][1:3])
    # Both classes of a sorted file come to every shard.
    path = tmp_path / "sorted.txt"
    path.write_bytes(b"1 1:1\n" * 50 + b"2 1:1\n" * 50)
    shuffled = open_rows(f"libsvm:{path}", folder=tmp_path / "kept")
    assert abs(shuffled.block(0, 50).labels.mean()) < 0.5


def test_the_text_is_read_once(text_file, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    first = open_rows(f"libsvm:{text_file}", folder=folder)
    assert len(arrow_files(folder)) == 1

    def no_reading(path, columns):
        raise AssertionError("the text is read again")

    monkeypatch.setattr(libsvm, "_read", no_reading)
    assert open_rows(f"libsvm:{text_file}", folder=folder) == first
    assert first.block(0, 4).rows == 4
    os.utime(text_file, ns=(1, 1))  # written anew
    with pytest.raises(AssertionError, match="read again"):
        open_rows(f"libsvm:{text_file}", folder=folder)


def test_other_ways_to_read_a_text_are_kept_apart(text_file, tmp_path):
    folder = tmp_path / "kept"
    plain = open_rows(f"libsvm:{text_file}", folder=folder)
    wide = open_rows(f"libsvm:{text_file},dim=9,dtype=float32", folder=folder)
    assert (plain.dim, wide.dim) == (3, 9)
    assert wide.block(0, 4).values.dtype == np.float32
    np.testing.assert_array_equal(dense(wide.block(0, 4))[:, :3], dense(plain.block(0, 4)))
    assert len(arrow_files(folder)) == 2
    assert wide.name == f"libsvm:{text_file},dim=9,dtype=float32"


def test_workers_map_rows_without_copying(text_file, tmp_path):
    source = open_rows(f"libsvm:{text_file}", folder=tmp_path / "kept")
    before = pa.total_allocated_bytes()
    one, other = source.block(0, 3), source.block(1, 4)
    assert pa.total_allocated_bytes() == before
    assert np.shares_memory(one.values, other.values)
    assert np.shares_memory(one.indices, other.indices)
    assert np.shares_memory(one.labels, other.labels)
    # The map is of the file: no page of it is this process's own.
    address = one.values.ctypes.data
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123  # no file of ours
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                assert str(source.arrow_path) in line
                return
    raise AssertionError("the values are nowhere in memory")


def test_a_source_travels_light_and_a_node_without_the_arrow_file_makes_it(text_file, tmp_path):
    source = open_rows(f"libsvm:{text_file}", folder=tmp_path / "kept")
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    expected = dense(source.block(0, 4))
    source.arrow_path.unlink()
    libsvm.map_rows.cache_clear()
    there = pickle.loads(sent)  # noqa: S301  # our own
    np.testing.assert_array_equal(dense(there.block(0, 4)), expected)
    assert source.arrow_path.exists()


def test_nothing_is_left_beside_the_arrow_file(text_file, tmp_path):
    folder = tmp_path / "kept"
    source = open_rows(f"libsvm:{text_file}", folder=folder)
    assert arrow_files(folder) == [source.arrow_path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1 1:2\nx 1:3\n", r"says of line 2, 'x 1:3': "),
        (b"1 1:2\n" * 1500 + b"1 1:2:3\n", r"says of line 1501, '1 1:2:3': "),
        (b"1 3:2 2:1\n", r"columns ascending, but the reader says of line 1, '1 3:2 2:1': "),
        (b"1 1:nan\n1 1:2\n", r"labels and values must be finite, but row 1 of .* leave such"),
        (b"1 1:1\n1 2:inf 3:1\n", r"must be finite, but row 2 of "),
        (b"", r"must hold at least one row, but it is empty"),
    ],
)
def test_what_is_no_libsvm_text_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        open_rows(f"libsvm:{path}", folder=tmp_path / "kept")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "kept").exists()


def test_columns_beyond_those_that_are_asked_for_are_refused(text_file, tmp_path):
    with pytest.raises(DataError, match=r"columns ascending and at most 2, but the reader says"):
        open_rows(f"libsvm:{text_file},dim=2", folder=tmp_path / "kept")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.bz2", bz2.compress(TEXT * 100)[:-10]),
        ("cut.xz", lzma.compress(TEXT * 100)[:-10]),
        ("none.bz2", TEXT),
        ("none.xz", TEXT),
        ("none.gz", TEXT),
    ],
)
def test_a_damaged_compressed_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"must be a whole file, compressed as its name says"):
        open_rows(f"libsvm:{path}", folder=tmp_path / "kept")


def test_a_missing_file_and_a_folder_that_cannot_be_are_data_errors(text_file, tmp_path):
    with pytest.raises(DataError, match=r"must name a file, but .*gone\.txt is none"):
        open_rows(f"libsvm:{tmp_path / 'gone.txt'}")
    with pytest.raises(DataError, match=r"could not be written there: .*; give another folder"):
        open_rows(f"libsvm:{text_file}", folder=text_file / "kept")


def test_an_arrow_file_that_is_damaged_is_named(text_file, tmp_path):
    source = open_rows(f"libsvm:{text_file}", folder=tmp_path / "kept")
    source.arrow_path.write_bytes(b"no rows")
    libsvm.map_rows.cache_clear()
    with pytest.raises(DataError, match=r"Arrow cannot map it as such: .*; delete it"):
        source.block(0, 4)


def test_an_option_after_the_path_must_be_in_its_range(text_file):
    with pytest.raises(ConfigError, match=r"shuffle=yes or no, but .* has 'shuffle=maybe'"):
        open_rows(f"libsvm:{text_file},shuffle=maybe")


def _lzma(text: bytes) -> bytes:
    return lzma.compress(text, preset=0)  # others take megabytes for what they look back at


@pytest.mark.parametrize(("suffix", "compress"), [(".bz2", bz2.compress), (".xz", _lzma)])
def test_a_text_is_never_in_memory_as_a_whole(tmp_path, suffix, compress):
    line = b"1 3:0.5 # " + b"a long remark " * 70 + b"\n"
    text = line * 4_000
    path = tmp_path / f"remarks{suffix}"
    path.write_bytes(compress(text))
    values_bytes = 4_000 * (8 + 8 + 8 + 8)  # of each row: column, value, label, where it begins
    spec = f"libsvm:{path}"
    open_rows(f"libsvm:{_warm(tmp_path)}", folder=tmp_path)  # imports, and what they keep
    tracemalloc.start()
    try:
        open_rows(spec, folder=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(text) / 3
    assert peak < 6 * values_bytes + (1 << 19)


def _warm(tmp_path):
    path = tmp_path / "warm.txt"
    path.write_bytes(b"1 1:1\n")
    return path
