"""Features from an .npz file: float rows that something else has computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from actors.server.ends import Ends
from raylab.algorithms.server.rule_factory import figure
from raylab.data import open_rows
from raylab.data.rows import row_order
from raylab.errors import DataError
from raylab.problems import build, shards
from raylab.simulator import simulate
from tests.server_problems import settings_for

pytestmark = pytest.mark.unit


def written(folder: Path, **arrays: Any) -> str:
    path = folder / "features.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        *(("float64", "float64"), ("float32", "float32"), ("float16", "float32")),
        *((">f8", "float64"), (">f4", "float32"), (">f2", "float32"), ("longdouble", "float64")),
    ],
)
def test_features_are_rows_as_they_are_in_a_fixed_order(tmp_path, given, kept):
    x = np.random.default_rng(0).standard_normal((30, 4)).astype(given)
    y = np.arange(30) % 3
    spec = written(tmp_path, x_train=x, y_train=y[:, None])
    source = open_rows(spec)
    assert (source.name, source.n, source.dim, source.classes) == (spec, 30, 4, 3)
    block = source.block(10, 20)
    order = row_order(30)[10:20]
    assert block.values.dtype == kept
    np.testing.assert_array_equal(block.matrix(), x[order].astype(kept))
    np.testing.assert_array_equal(block.labels, y[order])
    model = build("ridge", source, shards(30, 1)[0], strength=0.1)
    expected = 0.5 * float(((x.astype(kept).astype(float).sum(axis=1) - y) ** 2).sum())
    assert model.losses(np.ones(4)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("given", [">i8", ">i2", "uint8", "<u4", ">f4", "float16", "longdouble"])
def test_labels_are_the_same_numbers_in_any_dtype(tmp_path, given):
    y = np.arange(30) % 3
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((30, 8)))[:, ::2]
    block = open_rows(written(tmp_path, x_train=x, y_train=y.astype(given))).block(0, 30)
    np.testing.assert_array_equal(block.labels, y[row_order(30)])
    np.testing.assert_array_equal(block.matrix(), x[row_order(30)])


@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [([2, 7, 7], 2, {-1.0, 1.0}), ([0.5, 1.25, 3.0], 0, {0.5, 1.25, 3.0})],
)
def test_their_labels_are_classes_or_quantities(tmp_path, labels, classes, found):
    source = open_rows(written(tmp_path, x_train=np.ones((3, 2)), y_train=np.array(labels)))
    assert source.classes == classes
    assert set(source.block(0, 3).labels) == found


def test_a_network_of_384_50_10_is_trained_on_features(tmp_path):
    digits, y = load_digits(return_X_y=True)
    wide = np.random.default_rng(0).standard_normal((64, 384)) / 64
    x = np.maximum(digits[:400] @ wide, 0.0)
    source = open_rows(written(tmp_path, x_train=x.astype(np.float32), y_train=y[:400]))
    objectives = [
        build("softmax_mlp", source, shard, strength=1e-3, hidden=50) for shard in shards(400, 2)
    ]
    settings = settings_for("asysvrg", objectives)
    assert settings.dim == 384 * 50 + 50 + 50 * 10 + 10
    ends = Ends(samples=12 * 400, figure=figure(settings), certify_samples=400)
    found = simulate(settings, objectives, straggler="paper", ends=ends)
    assert found.rows[0]["accuracy"] < 0.3
    assert found.rows[-1]["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((5, 2), int)}, r"x_train .* is int64 of shape \(5, 2\): save x\.res"),
        ({"x_train": np.zeros((5, 2, 2))}, r"x_train .* float64 of shape \(5, 2, 2\): save x\.res"),
        ({"x_train": np.zeros((0, 2)), "y_train": np.zeros(0)}, r"float64 of shape \(0, 2\)"),
        ({"y_train": np.zeros(4)}, r"one for each of 5 rows, but y_train .* shape \(4,\)"),
        ({"y_train": np.eye(5)}, r"of shape \(5, 5\); of one-hot labels save their argmax"),
        ({"y_train": np.array(list("abcde"))}, "labels must be numbers, .* but y_train .* <U1"),
        ({"x_train": np.array([[1.0], [np.nan], [2], [np.inf], [3]])}, "x_train .* row 1 and 1 mo"),
        ({"y_train": np.array([0, 1, np.inf, 1, 1])}, "y_train .* is not in row 2 and 0 more"),
        ({"x_train": np.full((5, 2), "1e400").astype("longdouble")}, "finite, but x_train"),
        ({"x_train": np.zeros((5, 2), object)}, "x_train has the dtype object"),
        ({"x_train": np.zeros((5, 2), bool)}, "x_train .* is bool"),
        ({"x_train": np.zeros((5, 2), complex)}, "x_train .* is complex128"),
        ({"y_train": np.ones(5, bool)}, "labels must be numbers, .* y_train .* is bool"),
        ({"y_train": np.arange(5) + 2**60}, r"at most 2\*\*53, .* y_train .* is int64 from 1152"),
        ({"y_train": None}, "plain arrays, but numpy could not read it"),
    ],
)
def test_unfit_features_are_refused_with_the_way_out(tmp_path, changes, message):
    arrays = {"x_train": np.zeros((5, 2)), "y_train": np.zeros(5)} | changes
    with pytest.raises(DataError, match=message) as caught:
        open_rows(written(tmp_path, **arrays))
    assert str(tmp_path / "features.npz") in str(caught.value)


def test_a_file_of_features_without_labels_says_what_it_has(tmp_path):
    with pytest.raises(DataError, match="x_train, y_train, but y_train is missing; it has x_train"):
        open_rows(written(tmp_path, x_train=np.zeros((5, 2))))


def test_a_file_that_another_run_has_written_over_is_noticed(tmp_path):
    source = open_rows(written(tmp_path, x_train=np.zeros((5, 2)), y_train=np.zeros(5)))
    written(tmp_path, x_train=np.zeros((6, 2)), y_train=np.zeros(6))
    with pytest.raises(DataError, match=r"\(5, 2\) and has \(6, 2\): give the new file another"):
        source.block(0, 5)


def test_labels_that_are_no_numbers_of_classes_are_refused_by_the_network(tmp_path):
    spec = written(tmp_path, x_train=np.ones((6, 2)), y_train=np.arange(1, 7))
    (shard,) = shards(6, 1)
    with pytest.raises(DataError, match=r"must be 0 to 5, .* from 1 to 6: save numpy\.unique"):
        build("softmax_mlp", open_rows(spec), shard, strength=0.1)
