"""Labels are signs for losses of two classes only: a regression is of the numbers as they are."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import dump_svmlight_file

from raylab.algorithms.server.rule_factory import figure
from raylab.data import open_rows
from raylab.data.rows import RowBlock, label_coding
from raylab.drivers.server.numbers import ends, limits
from raylab.drivers.server.workload import workload
from raylab.errors import DataError
from raylab.problems import build, shards
from raylab.problems.objective import Shard
from raylab.problems.softmax_mlp import SoftmaxMlp
from raylab.simulator import simulate
from tests.server_problems import settings_for

pytestmark = pytest.mark.unit

N, DIM = 60, 5
EVERY_KIND = pytest.mark.parametrize("kind", ["libsvm", "features", "images"])
EVERY_CODING = pytest.mark.parametrize("coding", [(0, 100), (1, 2), (-3, 1), (-1, 1), (0, 1)])


def rows_of(kind, folder, coding):
    """Rows of two labels, and what stands in them, in the file's order."""
    draws = np.random.default_rng(0)
    if kind == "images":
        images = draws.integers(0, 256, (N, 1, 1, DIM), dtype=np.uint8)
        x = images.reshape(N, DIM).astype(np.float32) / np.float32(255)
    else:
        x = draws.standard_normal((N, DIM)).round(4)
    y = np.where(x[:, 0] > np.median(x[:, 0]), coding[1], coding[0])
    path = folder / f"{kind}.npz"
    if kind == "libsvm":
        path = folder / "rows.txt"
        dump_svmlight_file(x, y, str(path), zero_based=False)
    elif kind == "features":
        np.savez(path, x_train=x, y_train=y)
    else:
        np.savez(path, x_train=images, y_train=y, x_test=images[:2], y_test=y[:2])
    spec = f"libsvm:{path}" if kind == "libsvm" else f"npz:{path}"
    return open_rows(spec, folder=folder / "kept"), x.astype(np.float64), y


@EVERY_KIND
@EVERY_CODING
def test_ridge_regresses_two_labels_as_they_stand_in_the_data(tmp_path, kind, coding):
    if kind == "images":  # whose labels are numbers of classes
        coding = tuple(abs(label) for label in coding) if coding != (-1, 1) else (2, 3)
    source, x, y = rows_of(kind, tmp_path, coding)
    assert source.classes == 2
    objectives = [build("ridge", source, shard, strength=0.1) for shard in shards(N, 3)]
    gradient = sum(each.gradients(np.zeros(DIM)) for each in objectives)
    np.testing.assert_allclose(gradient, -x.T @ y, rtol=1e-10)
    signs = [build("ridge", source, shard, strength=0.1, signs=True) for shard in shards(N, 3)]
    gradient = sum(each.gradients(np.zeros(DIM)) for each in signs)
    np.testing.assert_allclose(gradient, -x.T @ np.where(y == max(coding), 1, -1), rtol=1e-10)


@EVERY_KIND
@pytest.mark.parametrize("problem", ["logistic", "smoothed_hinge"])
def test_a_loss_of_two_classes_takes_the_smaller_label_as_minus_one(tmp_path, kind, problem):
    source, x, y = rows_of(kind, tmp_path, (1, 2))
    (shard,) = shards(N, 1)
    slope = -0.5 if problem == "logistic" else -1.0
    gradient = build(problem, source, shard, strength=0.1).gradients(np.zeros(DIM))
    np.testing.assert_allclose(gradient, slope * x.T @ np.where(y == 2, 1, -1), rtol=1e-10)


@pytest.mark.parametrize("method", ["dis_dfsdca", "cocoa_plus", "asysvrg"])
def test_every_method_comes_to_the_closed_form_of_two_quantities(tmp_path, method):
    source, x, y = rows_of("libsvm", tmp_path, (0, 100))
    objectives = [build("ridge", source, shard, strength=0.1) for shard in shards(N, 3)]
    settings = settings_for(method, objectives)
    found = simulate(
        settings, objectives, ends=ends(limits(400.0, None, 1e-7, 1.0), N, figure(settings))
    )
    expected = np.linalg.solve(x.T @ x / N + 0.1 * np.eye(DIM), x.T @ y / N)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-3, atol=1e-3)
    # 0 and 100 have no signs to be counted.
    assert not any("accuracy" in row for row in found.rows)


def test_a_worker_whose_targets_are_all_one_makes_no_accuracy(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"{1 if i < 5 else 1 + i} 1:{i}\n" for i in range(10)))
    source = open_rows(f"libsvm:{path},shuffle=no", folder=tmp_path)
    objectives = [build("ridge", source, shard, strength=0.1) for shard in shards(10, 2)]
    assert objectives[0].figures(np.ones(1)) == {"correct": 4.0}
    settings = settings_for("dis_dfsdca", objectives)
    found = simulate(
        settings, objectives, ends=ends(limits(3.0, None, 0.0, 1.0), 10, figure(settings))
    )
    assert not any("accuracy" in row for row in found.rows)


def test_a_source_of_ones_own_without_signs_is_refused_by_a_loss_of_two_classes():
    class Source:
        name, n, dim, classes = "mine", 4, 2, 2

        def block(self, lo, hi):
            return RowBlock.of_matrix(np.ones((4, 2))[lo:hi], np.array([0, 1, 1, 0])[lo:hi])

    with pytest.raises(DataError, match=r"needs labels that are -1 or 1, but .* go from 0 to 1"):
        build("logistic", Source(), Shard(lo=0, hi=4, n=4), strength=0.1)
    ridge = build("ridge", Source(), Shard(lo=0, hi=4, n=4), strength=0.1)
    assert ridge.gradients(np.zeros(2)).tolist() == [-2.0, -2.0]


def test_minus_one_is_no_class_of_three():
    block = RowBlock.of_matrix(np.eye(3), np.array([-1, 0, 1]))
    with pytest.raises(DataError, match=r"must be 0 to 2, .* from -1 to 1"):
        SoftmaxMlp(block, Shard(lo=0, hi=3, n=3), strength=0.1, hidden=2, classes=3, seed=0)


@pytest.mark.parametrize(
    ("labels", "coding"),
    [([1, 2, 2], (1.0, 2.0)), ([-1, 1, 1], None), ([3, 3], None), ([1, 2, 3], None)],
)
def test_the_coding_is_of_two_labels_that_are_not_signs(labels, coding):
    assert label_coding(np.array(labels, dtype=np.float64)) == coding


# ------------------------------------------------------------------ a run that goes on


def test_a_run_that_an_earlier_version_began_goes_on_with_the_signs_it_had(tmp_path):
    source, x, y = rows_of("features", tmp_path, (0, 100))
    (shard,) = shards(N, 1)
    work = workload("ridge", source, strength=0.1, seed=0)

    def gradient(each):
        return each.make(shard).gradients(np.zeros(DIM))

    old = work.since({"workers": 2})
    np.testing.assert_allclose(gradient(old), -x.T @ np.where(y > 0, 1, -1), rtol=1e-10)
    assert old.kept() == {}
    (note,) = old.notes()
    assert "in the place of the labels 0 and 100" in note
    np.testing.assert_array_equal(gradient(old.since({"workers": 2})), gradient(old))
    for about in (None, {"workers": 2, **work.kept()}):
        new = work.since(about)
        np.testing.assert_allclose(gradient(new), -x.T @ y, rtol=1e-10)
        assert new.notes() == []


@pytest.mark.parametrize(("problem", "coding"), [("ridge", (-1, 1)), ("logistic", (0, 1))])
def test_other_runs_of_earlier_versions_go_on_without_a_word(tmp_path, problem, coding):
    work = workload(problem, rows_of("features", tmp_path, coding)[0], strength=0.1, seed=0)
    assert work.since({}) is work
    assert work.kept() == {}
    assert work.notes() == []
