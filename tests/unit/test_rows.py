"""Rows of generated data and images: the same in every division, of the shape that is asked for."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

from raylab.data import generated_rows, open_rows
from raylab.data.rows import RowBlock, label_classes, row_order, signed_labels
from raylab.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

SPECS = [
    "digits",
    "pca:n=9000,d=7",
    "sparse:n=9000,d=300,density=0.02",
    "sparse:n=20,d=4,density=1,dtype=float32",
]
BLOCKS = [(0, 4096), (1, 904)]  # of 5,000 drawn rows: number and size


@pytest.mark.parametrize("spec", SPECS)
def test_shards_are_parts_of_the_whole_wherever_it_is_cut(spec):
    source = open_rows(spec)
    whole = source.block(0, source.n)
    cuts = [0, 7, source.n // 2 + 1, source.n]
    parts = [source.block(lo, hi) for lo, hi in itertools.pairwise(cuts)]
    assert [part.rows for part in parts] == np.diff(cuts).tolist()
    for name in ("values", "labels"):
        together = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(together, getattr(whole, name))
    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    np.testing.assert_array_equal(lengths, np.diff(whole.indptr))
    if not whole.dense:
        together = np.concatenate([part.indices for part in parts])
        np.testing.assert_array_equal(together, whole.indices)


@pytest.mark.parametrize("spec", SPECS)
def test_a_source_travels_light_and_makes_the_same_rows_there(spec):
    source = open_rows(spec, seed=3)
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    there = pickle.loads(sent)  # noqa: S301  # our own
    assert there == source
    assert hash(there) == hash(source)
    np.testing.assert_array_equal(there.block(3, 9).values, source.block(3, 9).values)
    # The name says all that the source is made of.
    assert open_rows(source.name).block(3, 9).values.tolist() == source.block(3, 9).values.tolist()


@pytest.mark.parametrize("spec", SPECS)
def test_nobody_writes_to_a_block(spec):
    block = open_rows(spec).block(0, 5)
    for array in (block.indptr, block.values, block.labels):
        assert not array.flags.writeable


def test_vectors_for_principal_components_are_centred_and_of_norm_one():
    source = open_rows("pca:n=5000,d=20")
    block = source.block(0, 5000)
    assert block.values.dtype == np.float32
    assert source.classes == 0
    matrix = block.matrix().astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, atol=1e-6)
    # Before they are scaled to norm 1 the mean is 0; after it, only about so.
    assert np.abs(matrix.mean(axis=0)).max() < 5e-3


def test_the_mean_that_is_subtracted_is_that_of_all_vectors():
    source = open_rows("pca:n=5000,d=3")
    drawn = np.concatenate([generated_rows._normal(0, block, rows, 3) for block, rows in BLOCKS])
    np.testing.assert_allclose(source.mean, drawn.mean(axis=0, dtype=np.float64), atol=1e-12)
    centred = drawn - np.array(source.mean)
    centred /= np.linalg.norm(centred, axis=1)[:, None]
    np.testing.assert_allclose(source.block(4000, 4200).matrix(), centred[4000:4200], atol=1e-7)


def test_sparse_rows_have_their_density_ascending_columns_and_norm_one():
    source = open_rows("sparse:n=9000,d=500,density=0.02")
    block = source.block(0, 9000)
    assert len(block.values) / (9000 * 500) == pytest.approx(0.02, rel=0.02)
    assert block.indices.dtype == np.int32
    row = np.repeat(np.arange(9000), np.diff(block.indptr))
    ascending = np.diff(block.indices) > 0
    assert ascending[np.diff(row) == 0].all()
    assert block.indices.min() >= 0
    assert block.indices.max() < 500
    norms = np.sqrt(np.bincount(row, block.values**2))
    np.testing.assert_allclose(norms, 1.0, atol=1e-12)
    assert set(np.unique(block.labels)) == {-1.0, 1.0}
    assert 0.2 < np.mean(block.labels > 0) < 0.8
    # The first columns are the more frequent ones.
    counts = np.bincount(block.indices, minlength=500)
    assert counts[:50].sum() > 3 * counts[-50:].sum()


def test_full_density_fills_rows_up_to_all_columns():
    block = open_rows("sparse:n=50,d=4,density=1").block(0, 50)
    assert np.diff(block.indptr).max() == 4


def test_another_seed_draws_other_rows():
    one, other = (open_rows("pca:n=10,d=3", seed=seed).block(0, 10).values for seed in (0, 1))
    assert not np.array_equal(one, other)
    assert open_rows("pca:n=10,d=3,seed=1", seed=0) == open_rows("pca:n=10,d=3", seed=1)


def test_images_are_flat_and_from_0_to_1_with_their_classes(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 4, 5), dtype=np.uint8)
    labels = np.arange(30) % 3
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    source = open_rows(f"npz:{path}")
    assert (source.n, source.dim, source.classes) == (30, 20, 3)
    block = source.block(10, 20)
    order = row_order(30)[10:20]
    np.testing.assert_array_equal(block.labels, labels[order])
    expected = (images.reshape(30, 20)[order] / np.float32(255)).astype(np.float32)
    np.testing.assert_array_equal(block.matrix(), expected)


def test_digits_are_the_training_images():
    source = open_rows("digits")
    assert (source.n, source.dim, source.classes) == (1437, 64, 10)


def test_the_order_of_rows_is_a_permutation_that_never_changes():
    assert row_order(8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert sorted(row_order(1000)) == list(range(1000))


@pytest.mark.parametrize(
    ("labels", "classes", "signed"),
    [
        ([1, 2, 2, 1], 2, [-1, 1, 1, -1]),
        ([0, 1], 2, [-1, 1]),
        ([-1, 1], 2, [-1, 1]),
        ([0.5, 7.25], 2, [-1, 1]),
        ([3, 1, 2], 3, [3, 1, 2]),
        ([0.5, 1.5, 2.5], 0, [0.5, 1.5, 2.5]),
        ([4, 4], 1, [4, 4]),
    ],
)
def test_two_classes_of_any_coding_become_minus_one_and_one(labels, classes, signed):
    array = np.array(labels, dtype=np.float64)
    assert label_classes(array) == classes
    assert signed_labels(array).tolist() == signed


def test_dense_rows_become_a_matrix_without_copying_and_sparse_ones_do_not():
    matrix = np.arange(6.0).reshape(2, 3)
    block = RowBlock.of_matrix(matrix, np.ones(2))
    assert np.shares_memory(block.matrix(), matrix)
    assert matrix.flags.writeable  # the block's view is not, but the caller's array still is
    with pytest.raises(DataError, match=r"these rows must be dense, .* give data such as digits"):
        open_rows("sparse:n=10,d=20,density=0.1").block(0, 10).matrix()


@pytest.mark.parametrize(("lo", "hi"), [(-1, 5), (0, 11), (5, 5), (6, 2)])
def test_rows_that_do_not_exist_are_refused(lo, hi):
    with pytest.raises(DataError, match=rf"got \(lo={lo}, hi={hi}, n=10\)"):
        open_rows("pca:n=10,d=3").block(lo, hi)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("libsmv:x", r"rows must be one of libsvm:PATH.*; did you mean libsvm:PATH"),
        ("libsvm:", r"the path in 'libsvm:' is empty"),
        ("npz:", r"the path in 'npz:' is empty"),
        ("digits:3", r"`digits` takes nothing after its name, but got 'digits:3'"),
        ("pca:n=5", r"`pca:n=N,d=D\[,seed=S\]` is the form, but 'pca:n=5' does not give d"),
        ("sparse:n=5,d=2", r"does not give density"),
        ("pca:n=5,d=2,density=1", r"has the unknown part 'density=1'"),
        ("pca:n=5,d=2,n=6", r"gives n twice"),
        ("pca:n=0,d=2", r"n=a whole number >= 1, but 'pca:n=0,d=2' has 'n=0'"),
        ("sparse:n=5,d=2,density=1.5", r"density=a number in \(0, 1\]"),
        ("sparse:n=5,d=2,density=x", r"density=a number in \(0, 1\]"),
        ("sparse:n=5,d=2,density=1,dtype=int8", r"dtype=float64 or float32"),
    ],
)
def test_a_spec_that_is_none_is_a_config_error(spec, message):
    with pytest.raises(ConfigError, match=message):
        open_rows(spec)


def test_a_seed_out_of_its_range_is_a_config_error():
    with pytest.raises(ConfigError, match=r"`seed` must be a whole number in \[0, 2\*\*32\)"):
        open_rows("digits", seed=-1)
