"""Linear models: gradients, conjugates, sums, curvature and both sequential passes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.sparse import random_array

from raylab.data.rows import RowBlock
from raylab.errors import DataError
from raylab.problems import LinearObjective, kernels, shards
from raylab.problems.linear import LinearModel, Loss
from raylab.problems.objective import Shard

pytestmark = pytest.mark.unit

N, DIM, STRENGTH = 60, 9, 0.05
LOSSES = {
    "ridge": Loss(code=kernels.RIDGE),
    "logistic": Loss(code=kernels.LOGISTIC),
    "hinge": Loss(code=kernels.HINGE, gamma=0.5),
}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
EVERY_KIND = pytest.mark.parametrize("kind", ["sparse", "dense"])


def data(n=N, dim=DIM, density=0.4, seed=0):
    """A dense matrix with zeros in it, a row of them too, and labels ±1."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((n, dim)) * (generator.random((n, dim)) < density)
    matrix[n // 2] = 0.0
    return matrix, generator.choice([-1.0, 1.0], n)


def block_of(kind, matrix, labels):
    if kind == "dense":
        return RowBlock.of_matrix(matrix, labels)
    held = matrix != 0
    return RowBlock(
        indptr=np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int64),
        indices=np.nonzero(held)[1].astype(np.int32),
        values=matrix[held],
        labels=labels.copy(),
        dim=matrix.shape[1],
    )


def model_of(name, kind="sparse", shard=None, strength=STRENGTH, **how):
    matrix, labels = data(**how)
    shard = shard or Shard(lo=0, hi=len(labels), n=len(labels))
    block = block_of(kind, matrix[shard.lo : shard.hi], labels[shard.lo : shard.hi])
    return LinearModel(block, shard, strength=strength, loss=LOSSES[name])


def point(dim=DIM, n=N, seed=1):
    """A w, and duals inside the domain of every conjugate for labels of the same seed as `data`."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal(dim), data(n, dim)[1] * generator.random(n)


def dense_sum(vector, dim):
    if not isinstance(vector, tuple):
        return vector
    coordinates, values = vector
    assert (np.diff(coordinates) > 0).all()
    out = np.zeros(dim)
    out[coordinates] = values
    return out


def dual_value(model, duals):
    w = model.dual_sum(duals) / (model.strength * model.shard.n)
    return -model.conjugates(duals) / model.shard.n - 0.5 * model.strength * w @ w


def primal_value(model, w):
    return model.losses(w) / model.shard.n + 0.5 * model.strength * w @ w


@EVERY_LOSS
def test_it_is_an_objective_of_a_linear_model(name):
    model = model_of(name)
    assert isinstance(model, LinearObjective)
    assert model.convex
    assert not model.initial().any()
    assert not model.zero_duals().any()
    assert model.zero_duals().shape == (N,)


@EVERY_LOSS
@EVERY_KIND
def test_gradients_are_the_losses_differences(name, kind):
    model, (w, _) = model_of(name, kind), point()
    length = 1e-6
    differences = [
        (model.losses(w + length * unit) - model.losses(w - length * unit)) / (2 * length)
        for unit in np.eye(DIM)
    ]
    np.testing.assert_allclose(model.gradients(w), differences, rtol=1e-6, atol=1e-6)


@EVERY_LOSS
def test_gradients_of_some_rows_add_up(name):
    model, (w, _) = model_of(name), point()
    order = np.random.default_rng(0).permutation(N)
    parts = [model.gradients(w, rows) for rows in np.split(order, [10, 11, 40])]
    np.testing.assert_allclose(np.sum(parts, axis=0), model.gradients(w), rtol=1e-12, atol=1e-12)
    assert not model.gradients(w, np.zeros(0, dtype=np.int64)).any()


@EVERY_LOSS
def test_losses_that_are_large_do_not_overflow(name):
    model = model_of(name)
    w = np.full(DIM, 1e6)
    assert np.isfinite(model.losses(w))
    assert np.isfinite(model.gradients(w)).all()


@EVERY_LOSS
def test_the_same_w_written_to_is_another_w(name):
    # Products with w are kept from one call to the next.
    model, (w, _) = model_of(name), point()
    model.losses(w)
    w *= -2.0
    fresh = model_of(name)
    assert model.losses(w) == fresh.losses(w)
    assert model.figures(w) == fresh.figures(w)


@EVERY_LOSS
@pytest.mark.parametrize("label", [-1.0, 1.0])
@pytest.mark.parametrize("b", [0.0, 0.03, 0.5, 0.98, 1.0])
def test_conjugates_are_the_supremum(name, label, b):
    loss = LOSSES[name]
    a = np.array([label * b])
    labels = np.array([label])

    def negative(z):
        return kernels.loss_sum(loss.code, loss.gamma, np.array([z]), labels) + a[0] * z

    found = minimize_scalar(negative, bounds=(-60.0, 60.0), options={"xatol": 1e-9})
    conjugate = kernels.conjugate_sum(loss.code, loss.gamma, a, labels)
    assert conjugate == pytest.approx(-found.fun, abs=1e-9)


@pytest.mark.parametrize("name", ["logistic", "hinge"])
@pytest.mark.parametrize("b", [-1e-6, 1.0 + 1e-6])
def test_duals_outside_the_domain_have_an_infinite_conjugate_and_a_feasible_neighbour(name, b):
    model, (w, duals) = model_of(name), point()
    assert model.feasible(duals) is duals
    outside = duals.copy()
    outside[3] = model.labels[3] * b
    assert model.conjugates(outside) == np.inf
    inside = model.feasible(outside)
    assert np.abs(inside - outside).max() == pytest.approx(1e-6, rel=1e-6)
    assert 0.0 < primal_value(model, w) - dual_value(model, inside) < np.inf
    assert outside[3] == model.labels[3] * b


@pytest.mark.parametrize("name", ["logistic", "hinge"])
def test_what_rounding_does_to_duals_costs_no_certificate(name):
    model = model_of(name)
    duals = model.labels * (1.0 + 1e-15)
    assert model.conjugates(duals) == model.conjugates(model.labels.copy())


def test_every_dual_of_ridge_is_feasible():
    model = model_of("ridge")
    duals = np.full(N, 1e9)
    assert model.feasible(duals) is duals
    assert np.isfinite(model.conjugates(duals))


@EVERY_LOSS
def test_fenchel_and_young_agree_at_the_gradient(name):
    # φ_i(w) + φ*_i(∇φ_i(w)) = w·∇φ_i(w), and α_i = -∇φ_i(w)
    model, (w, _) = model_of(name), point()
    every = np.arange(N)
    duals = -model.residuals(w, model.zero_duals(), every)
    left = model.losses(w) + model.conjugates(duals)
    assert left == pytest.approx(-w @ model.dual_sum(duals), rel=1e-12)


@EVERY_LOSS
@pytest.mark.parametrize("seed", range(5))
def test_the_gap_is_never_negative(name, seed):
    model, (w, duals) = model_of(name), point(seed=seed)
    assert primal_value(model, w) >= dual_value(model, duals)


@EVERY_KIND
def test_the_gap_of_ridge_is_zero_at_its_closed_form(kind):
    matrix, labels = data()
    model = model_of("ridge", kind)
    w = np.linalg.solve(matrix.T @ matrix / N + STRENGTH * np.eye(DIM), matrix.T @ labels / N)
    duals = -model.residuals(w, model.zero_duals(), np.arange(N))
    np.testing.assert_allclose(model.dual_sum(duals) / (STRENGTH * N), w, rtol=1e-12)
    assert primal_value(model, w) - dual_value(model, duals) == pytest.approx(0.0, abs=1e-13)
    np.testing.assert_allclose(model.gradients(w) / N, -STRENGTH * w, rtol=1e-11, atol=1e-14)


@EVERY_LOSS
@EVERY_KIND
def test_residuals_and_their_combination_are_those_of_dense_vectors(name, kind):
    matrix, _ = data()
    model, (w, duals) = model_of(name, kind), point()
    rows = np.array([5, 0, 59, 30, 7])
    kappas = model.residuals(w, duals, rows)
    vectors = np.stack([model.gradients(w, rows[k : k + 1]) for k in range(5)])
    vectors += matrix[rows] * duals[rows][:, None]
    np.testing.assert_allclose(kappas[:, None] * matrix[rows], vectors, rtol=1e-12, atol=1e-13)
    total = dense_sum(model.combine(rows, kappas), DIM)
    np.testing.assert_allclose(total, vectors.sum(axis=0), rtol=1e-12, atol=1e-13)
    every = dense_sum(model.dual_sum(duals), DIM)
    np.testing.assert_allclose(every, matrix.T @ duals, rtol=1e-12, atol=1e-13)


def long_model():
    """One of 5,000 columns, of which a row has five."""
    matrix = random_array((80, 5000), density=0.001, rng=np.random.default_rng(0)).toarray()
    labels = np.where(np.arange(80) % 3 == 0, 1.0, -1.0)
    shard = Shard(lo=0, hi=80, n=80)
    block = block_of("sparse", matrix, labels)
    return matrix, LinearModel(block, shard, strength=0.1, loss=LOSSES["ridge"])


def test_a_combination_is_sparse_where_that_is_smaller():
    matrix, model = long_model()
    generator = np.random.default_rng(1)
    for rows in (np.arange(80), np.array([4]), np.array([9, 9, 2])):  # the second time as the first
        kappas = generator.standard_normal(len(rows))
        total = model.combine(rows, kappas)
        assert isinstance(total, tuple)
        np.testing.assert_allclose(dense_sum(total, 5000), kappas @ matrix[rows], atol=1e-13)
        assert len(total[0]) == np.count_nonzero(np.abs(matrix[rows]).sum(axis=0))
    full = RowBlock.of_matrix(matrix, np.ones(80))
    dense = LinearModel(full, model.shard, strength=0.1, loss=LOSSES["ridge"])
    assert not isinstance(dense.combine(rows, kappas), tuple)
    assert not isinstance(model_of("ridge").combine(rows, kappas), tuple)  # a short one


def test_a_combination_with_many_columns_is_dense():
    matrix = np.zeros((3, 3000))
    matrix[0, :2000] = 1.0
    matrix[1:, 0] = 1.0
    model = LinearModel(
        block_of("sparse", matrix, np.ones(3)),
        Shard(lo=0, hi=3, n=3),
        strength=0.1,
        loss=LOSSES["ridge"],
    )
    both = np.array([0, 1])
    np.testing.assert_array_equal(model.combine(both, np.ones(2)), matrix[:2].sum(axis=0))
    coordinates, values = model.combine(np.array([1, 2]), np.ones(2))
    assert (coordinates.tolist(), values.tolist()) == ([0], [2.0])  # nothing is left of the first


def test_threads_combine_at_once():
    _, model = long_model()
    rows, kappas = np.arange(80), np.ones(80)
    expected = model.combine(rows, kappas)[1]
    wrong = []

    def combine():
        for _ in range(200):
            values = model.combine(rows, kappas)[1]
            if not np.array_equal(values, expected):
                wrong.append(values)

    threads = [threading.Thread(target=combine) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@EVERY_LOSS
def test_sums_over_shards_are_those_over_the_whole(name):
    whole, (w, duals) = model_of(name), point()
    parts = [model_of(name, shard=shard) for shard in shards(N, 4)]

    def total(figure):
        return sum(figure(part, duals[part.shard.lo : part.shard.hi]) for part in parts)

    assert total(lambda part, _: part.losses(w)) == pytest.approx(whole.losses(w), rel=1e-12)
    conjugates = total(lambda part, own: part.conjugates(own))
    assert conjugates == pytest.approx(whole.conjugates(duals), rel=1e-12)
    assert total(lambda part, _: part.figures(w)["correct"]) == whole.figures(w)["correct"]
    gradient = total(lambda part, _: part.gradients(w))
    np.testing.assert_allclose(gradient, whole.gradients(w), rtol=1e-12)
    vector = total(lambda part, own: part.dual_sum(own))
    np.testing.assert_allclose(vector, whole.dual_sum(duals), rtol=1e-12)


def test_correct_counts_signs_and_quantities_have_none():
    matrix, labels = data()
    w, _ = point()
    expected = np.count_nonzero((matrix @ w) * labels > 0)
    assert model_of("ridge").figures(w) == {"correct": float(expected)}
    block = block_of("dense", matrix, labels * 3.5)
    shard = Shard(lo=0, hi=N, n=N)
    quantities = LinearModel(block, shard, strength=0.1, loss=LOSSES["ridge"])
    assert quantities.figures(w) == {}


@EVERY_LOSS
@pytest.mark.parametrize("dim", [1, DIM, 70])
def test_curvature_bounds_the_largest_eigenvalue_and_is_near_it(name, dim):
    model = model_of(name, n=150, dim=dim)
    matrix, _ = data(n=150, dim=dim)
    largest = LOSSES[name].curvature * np.linalg.eigvalsh(matrix.T @ matrix)[-1]
    assert largest * (1 - 1e-12) <= model.curvature() <= 1.021 * largest


@EVERY_LOSS
def test_curvature_and_smoothness_bound_the_gradients_changes(name):
    model, (w, _) = model_of(name), point()
    generator = np.random.default_rng(2)
    row_smoothness = model.row_smoothness()
    assert model.smoothness == row_smoothness.max()
    for length in (1e-3, 1.0):
        change = length * generator.standard_normal(DIM)
        size = np.linalg.norm(change)
        moved = np.linalg.norm(model.gradients(w + change) - model.gradients(w))
        assert moved <= model.curvature() * size * (1 + 1e-9)
        for i in range(N):
            row = np.array([i])
            moved = np.linalg.norm(model.gradients(w + change, row) - model.gradients(w, row))
            assert moved <= row_smoothness[i] * size * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [">f8", ">f4", "longdouble", "float16", ">i4", "int64"])
def test_rows_of_any_numbers_are_computed_on(dtype):
    matrix = np.asfortranarray(np.arange(24).reshape(8, 3) % 7)[::2].astype(dtype)
    block = RowBlock.of_matrix(matrix, np.ones(4, dtype=">i2"))
    model = LinearModel(block, Shard(lo=0, hi=4, n=4), strength=0.1, loss=LOSSES["ridge"])
    whole = matrix.astype(float)
    np.testing.assert_allclose(model.gradients(np.zeros(3)), -whole.sum(axis=0))
    assert model.losses(np.ones(3)) == pytest.approx(0.5 * ((whole.sum(1) - 1) ** 2).sum())


@pytest.mark.parametrize("dtype", ["complex128", "bool", "object"])
def test_rows_that_are_no_numbers_are_refused_with_their_dtype(dtype):
    with pytest.raises(DataError, match=rf"values of rows must be numbers, .* but got {dtype}"):
        RowBlock.of_matrix(np.ones((2, 3)).astype(dtype), np.ones(2))


@pytest.mark.parametrize("columns", [[0, 3, 1], [0, -1, 1], [0, 1, 1]])
def test_rows_with_columns_that_cannot_be_are_refused(columns):
    block = RowBlock(
        indptr=np.array([0, 1, 3]),
        indices=np.array(columns, dtype=np.int32),
        values=np.ones(3),
        labels=np.ones(2),
        dim=3,
    )
    with pytest.raises(DataError, match=r"different numbers from 0 to 2, but row 1 of"):
        LinearModel(block, Shard(lo=0, hi=2, n=2), strength=0.1, loss=LOSSES["ridge"])


@EVERY_LOSS
def test_rows_whose_squares_overflow_are_refused(name):
    matrix, labels = data()
    matrix[3] = 1e200
    with pytest.raises(DataError, match="square norms of rows must have a finite sum, but 1 of"):
        LinearModel(
            block_of("dense", matrix, labels),
            Shard(lo=0, hi=N, n=N),
            strength=STRENGTH,
            loss=LOSSES[name],
        )


def test_rows_of_zeros_curve_nothing():
    block = RowBlock.of_matrix(np.zeros((3, 50)), np.ones(3))
    shard = Shard(lo=0, hi=3, n=3)
    model = LinearModel(block, shard, strength=0.1, loss=LOSSES["ridge"])
    assert (model.curvature(), model.smoothness) == (0.0, 0.0)


def local_value(model, w, duals, change, sigma):
    """n times the local problem of CoCoA+, of which (3.4) is the case σ' = 1."""
    moved = model.dual_sum(change)
    quadratic = 0.5 * sigma / (model.strength * model.shard.n) * moved @ moved
    return -model.conjugates(duals + change) - w @ moved - quadratic


@EVERY_LOSS
@EVERY_KIND
@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_coordinate_ascent_sets_each_dual_to_its_best(name, kind, sigma):
    model, (w, duals) = model_of(name, kind), point()
    duals[:5] = 0.0  # at an end of the domain
    duals[5:9] = model.labels[5:9]  # at the other
    rows = np.random.default_rng(3).permutation(N)[:20]
    sofar = np.zeros(N)
    for i in rows:
        touched, change, _ = model.coordinate_ascent(
            w + sigma * model.dual_sum(sofar) / (STRENGTH * N), duals + sofar, np.array([i]), sigma
        )
        assert touched.tolist() == [i]
        before = local_value(model, w, duals, sofar, sigma)
        sofar[i] += change[0]
        best = local_value(model, w, duals, sofar, sigma)
        assert best >= before - 1e-13
        for nudge in (-1e-4, 1e-4):
            other = sofar.copy()
            other[i] += nudge
            assert local_value(model, w, duals, other, sigma) <= best + 1e-12
    # All of them in one pass, which moves w along, come to the same.
    touched, change, vector = model.coordinate_ascent(w, duals, rows, sigma)
    np.testing.assert_array_equal(touched, rows)
    np.testing.assert_allclose(change, sofar[rows], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dense_sum(vector, DIM), model.dual_sum(sofar), atol=1e-11)


@EVERY_LOSS
def test_passes_of_coordinate_ascent_close_the_gap(name):
    model = model_of(name)
    generator = np.random.default_rng(4)
    w, duals = model.initial(), model.zero_duals()
    for _ in range(100):
        touched, change, vector = model.coordinate_ascent(w, duals, generator.permutation(N))
        duals[touched] += change
        w += vector / (STRENGTH * N)
    assert -1e-12 < primal_value(model, w) - dual_value(model, duals) < 1e-11
    np.testing.assert_allclose(w, model.dual_sum(duals) / (STRENGTH * N), rtol=1e-9)


@EVERY_LOSS
def test_each_step_of_coordinate_ascent_raises_the_dual_however_long_the_rows_are(name):
    matrix, labels = data()
    matrix *= np.random.default_rng(5).choice([1.0, 1e2, 1e4], (N, 1))
    block = block_of("dense", matrix, labels)
    model = LinearModel(block, Shard(lo=0, hi=N, n=N), strength=STRENGTH, loss=LOSSES[name])
    w, duals = model.initial(), model.zero_duals()
    value = dual_value(model, duals)
    for i in np.random.default_rng(6).integers(0, N, 400):
        touched, change, vector = model.coordinate_ascent(w, duals, np.array([i]))
        duals[touched] += change
        w += vector / (STRENGTH * N)
        before, value = value, dual_value(model, duals)
        assert value >= before - 1e-9 * abs(before) - 1e-12


@pytest.mark.parametrize("b", [0.0, 1e-12, 0.3, 1.0])
@pytest.mark.parametrize("margin", [-1e6, -5.0, -0.1, 0.0, 5.0, 1e3])
@pytest.mark.parametrize("q", [1e-3, 1.0, 7.7e3, 1e9])
def test_the_best_dual_of_the_logistic_loss_has_no_slope_left(b, margin, q):
    model = LinearModel(
        RowBlock.of_matrix(np.array([[np.sqrt(q * STRENGTH)]]), np.ones(1)),
        Shard(lo=0, hi=1, n=1),
        strength=STRENGTH,
        loss=LOSSES["logistic"],
    )
    w = np.array([margin]) / np.sqrt(q * STRENGTH)
    best = b + model.coordinate_ascent(w, np.array([b]), np.array([0]))[1][0]
    # -ℓ*' - margin - q(b' - b) changes its sign at b'.
    slopes = []
    for other in (best * (1 - 1e-6) - 1e-15, best + (1 - best) * 1e-6 + 1e-15):
        if 0.0 < other < 1.0:
            slopes.append(np.log1p(-other) - np.log(other) - margin - q * (other - b))
        else:
            slopes.append(np.inf if other <= 0.0 else -np.inf)
    assert slopes[0] >= 0.0 >= slopes[1]


@EVERY_LOSS
@EVERY_KIND
def test_a_dual_free_pass_is_the_loop_of_algorithm_5(name, kind):
    matrix, _ = data()
    model, (w, duals) = model_of(name, kind), point()
    rows = np.random.default_rng(5).integers(0, N, 40)  # some come again
    assert len(set(rows.tolist())) < 40
    eta = 0.01
    moved, own = w.copy(), duals.copy()
    for i in rows:
        kappa = model.gradients(moved, np.array([i])) + matrix[i] * own[i]
        scalar = model.residuals(moved, own, np.array([i]))[0]
        own[i] -= eta * STRENGTH * N * scalar
        moved -= eta * kappa
    kept_w, kept_duals = w.copy(), duals.copy()
    for _ in range(2):  # the second time as the first
        touched, change, vector = model.dual_free_pass(w, duals, rows, eta)
        assert sorted(touched) == sorted(set(rows.tolist()))
        np.testing.assert_allclose(duals[touched] + change, own[touched], rtol=1e-11)
        after = w + dense_sum(vector, DIM) / (STRENGTH * N)
        np.testing.assert_allclose(after, moved, rtol=1e-11)
    np.testing.assert_array_equal(w, kept_w)
    np.testing.assert_array_equal(duals, kept_duals)


def test_a_pass_over_long_sparse_rows_gives_a_sparse_change():
    matrix, model = long_model()
    rows = np.array([3, 8, 3])
    touched, change, vector = model.coordinate_ascent(model.initial(), model.zero_duals(), rows)
    assert isinstance(vector, tuple)
    np.testing.assert_allclose(dense_sum(vector, 5000), change @ matrix[touched], atol=1e-14)


@pytest.mark.parametrize("row", [-1, N])
def test_rows_of_other_shards_are_refused(row):
    model, (w, duals) = model_of("ridge"), point()
    rows = np.array([0, row])
    for call in (
        lambda: model.residuals(w, duals, rows),
        lambda: model.combine(rows, np.ones(2)),
        lambda: model.gradients(w, rows),
        lambda: model.coordinate_ascent(w, duals, rows),
    ):
        with pytest.raises(IndexError, match="row numbers must be those of the shard"):
            call()


def test_float32_rows_give_float64_sums():
    matrix, labels = data()
    narrow = matrix.astype(np.float32)
    shard = Shard(lo=0, hi=N, n=N)
    w, _ = point()
    model = LinearModel(
        RowBlock.of_matrix(narrow, labels), shard, strength=0.1, loss=LOSSES["ridge"]
    )
    exact = narrow.astype(np.float64)
    np.testing.assert_allclose(model.gradients(w), exact.T @ (exact @ w - labels), rtol=1e-12)


def test_where_nothing_can_be_kept_a_function_is_compiled_by_each_process(monkeypatch):
    asked = []

    def no_place(**options):
        asked.append(options.pop("cache", False))
        if asked[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels, "njit", no_place)
    assert kernels.compiled(abs) is abs
    assert asked == [True, False]
