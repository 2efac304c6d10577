"""From names to objectives: shards, options, and what no problem can be made of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from raylab.data import open_rows
from raylab.errors import ConfigError, DataError
from raylab.problems import PROBLEMS, DualObjective, LinearObjective, build, shards
from raylab.problems.build import check, options_of

pytestmark = pytest.mark.unit

SOURCES = {
    "ridge": "sparse:n=200,d=12,density=0.3",
    "logistic": "sparse:n=200,d=12,density=0.3",
    "smoothed_hinge": "sparse:n=200,d=12,density=0.3",
    "pca": "pca:n=200,d=12",
    "softmax_mlp": "digits",
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_is_built_of_a_shard(problem):
    source = open_rows(SOURCES[problem])
    shard = shards(source.n, 3)[1]
    objective = build(problem, source, shard, strength=0.1)
    assert isinstance(objective, DualObjective)
    linear = problem in ("ridge", "logistic", "smoothed_hinge")
    assert isinstance(objective, LinearObjective) is linear
    assert objective.shard == shard
    assert objective.strength == 0.1
    assert objective.initial().shape == (objective.dim,)
    block = source.block(shard.lo, shard.hi)
    if problem == "ridge":
        matrix = np.zeros((block.rows, block.dim))
        matrix[np.repeat(np.arange(block.rows), np.diff(block.indptr)), block.indices] = (
            block.values
        )
        expected = -matrix.T @ block.labels
        np.testing.assert_allclose(objective.gradients(objective.initial()), expected, rtol=1e-12)


def test_ridge_takes_dense_rows_with_labels_of_many_classes():
    source = open_rows("digits")
    objective = build("ridge", source, shards(source.n, 1)[0], strength=0.1)
    block = source.block(0, source.n)
    expected = -block.matrix().astype(np.float64).T @ block.labels
    np.testing.assert_allclose(objective.gradients(objective.initial()), expected, rtol=1e-10)


@pytest.mark.parametrize(("n", "workers"), [(10, 3), (7, 7), (100, 1), (577, 8)])
def test_shards_are_contiguous_alike_and_all(n, workers):
    parts = shards(n, workers)
    assert [part.n for part in parts] == [n] * workers
    assert parts[0].lo == 0
    assert parts[-1].hi == n
    assert all(one.hi == other.lo for one, other in itertools.pairwise(parts))
    sizes = {part.rows for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@pytest.mark.parametrize(("n", "workers"), [(3, 4), (3, 0)])
def test_every_worker_must_have_a_row(n, workers):
    with pytest.raises(ConfigError, match=rf"got workers={workers}, n={n}; give fewer workers"):
        shards(n, workers)


def test_options_that_are_not_given_have_their_defaults():
    source = open_rows("pca:n=20,d=3")
    assert check("pca", source, strength=0.1) == {"mu": 100.0, "seed": 0}
    assert check("pca", source, strength=0.1, mu=2) == {"mu": 2, "seed": 0}
    assert options_of("ridge") == {}


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        ("rigde", {}, r"`problem` must be one of ridge, logistic, .*, but got 'rigde'"),
        ("ridge", {"gamma": 1.0}, r"the options of ridge are none, but got 'gamma'"),
        ("pca", {"nu": 1.0}, r"the options of pca are mu, seed, but got 'nu'"),
        ("ridge", {"strength": 0.0}, r"`strength` \(λ\) must be above 0 for ridge, .* got 0.0"),
        ("softmax_mlp", {"strength": -0.1}, r"`strength` \(λ\) must not be below 0, but got -0.1"),
        ("ridge", {"strength": "1"}, r"`strength` must be a finite number, but got '1'"),
        ("ridge", {"strength": float("nan")}, r"`strength` must be a finite number, but got nan"),
        ("pca", {"mu": True}, r"`mu` must be a finite number, but got True"),
        ("pca", {"mu": 0.05}, r"`mu > strength` must hold, but got \(mu=0.05, strength=0.1\)"),
        ("smoothed_hinge", {"gamma": 0.0}, r"`gamma` must be above 0, but got 0.0"),
        ("softmax_mlp", {"hidden": 0}, r"`hidden` must be a whole number >= 1, but got 0"),
        ("softmax_mlp", {"hidden": 2.5}, r"`hidden` must be a whole number >= 1, but got 2.5"),
        ("pca", {"seed": -1}, r"`seed` must be a whole number in \[0, 2\*\*32\), but got -1"),
    ],
)
def test_what_no_problem_can_be_is_a_config_error(problem, options, message):
    source = open_rows(SOURCES.get(problem, "digits"))
    with pytest.raises(ConfigError, match=message):
        check(problem, source, **{"strength": 0.1, **options})


@pytest.mark.parametrize(
    ("problem", "spec", "message"),
    [
        ("logistic", "digits", r"logistic needs labels of two classes, .* digits have 10 classes"),
        (
            "smoothed_hinge",
            "pca:n=9,d=2",
            r"needs labels of two classes, .* have no classes; ridge",
        ),
        ("softmax_mlp", "pca:n=9,d=2", r"needs labels of two classes or more, .* have no classes"),
        ("softmax_mlp", SOURCES["ridge"], r"these rows must be dense, but they are sparse"),
        ("pca", SOURCES["ridge"], r"these rows must be dense, but they are sparse"),
    ],
)
def test_data_of_another_kind_is_a_data_error(problem, spec, message):
    source = open_rows(spec)
    with pytest.raises(DataError, match=message):
        build(problem, source, shards(source.n, 1)[0], strength=0.1)
