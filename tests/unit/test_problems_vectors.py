"""Problems whose duals are vectors: principal components, a network, a user's own function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raylab.data import open_rows
from raylab.data.rows import RowBlock
from raylab.errors import ConfigError, ResourceError
from raylab.problems import DualObjective, LinearObjective, build, custom, shards
from raylab.problems.objective import Shard
from raylab.problems.pca import Pca
from raylab.problems.softmax_mlp import SoftmaxMlp
from raylab.problems.spectrum import power_iteration

pytestmark = pytest.mark.unit

DIM = 6


def pca_of(shard=None, mu=0.6, strength=0.01, n=50):
    source = open_rows(f"pca:n={n},d={DIM}")
    return build("pca", source, shard or Shard(lo=0, hi=n, n=n), strength=strength, mu=mu)


def mlp_of(shard=None, **options):
    source = open_rows("digits")
    shard = shard or Shard(lo=0, hi=40, n=source.n)
    return build("softmax_mlp", source, shard, strength=1e-3, **{"hidden": 5, **options})


def ridge_batch(w, rows):
    matrix, labels = ridge_data()
    errors = matrix[rows] @ w - labels[rows]
    return 0.5 * errors @ errors, errors @ matrix[rows]


def ridge_data():
    generator = np.random.default_rng(0)
    return generator.standard_normal((50, DIM)), generator.standard_normal(50)


def custom_of(shard=None, **options):
    shard = shard or Shard(lo=0, hi=50, n=50)
    return custom(ridge_batch, shard, **{"dim": DIM, "strength": 0.1, "convex": True, **options})


MAKERS = pytest.mark.parametrize("make", [pca_of, mlp_of, custom_of])


def away(objective):
    return objective.initial() + 0.1 * np.random.default_rng(1).standard_normal(objective.dim)


@MAKERS
def test_it_is_a_dual_objective_without_a_gap(make):
    objective = make()
    assert isinstance(objective, DualObjective)
    assert not isinstance(objective, LinearObjective)
    duals = objective.zero_duals()
    assert duals.shape == (objective.shard.rows, objective.dim)
    assert not duals.any()
    assert objective.conjugates(duals) is None
    assert objective.feasible(duals) is duals
    assert objective.row_smoothness().tolist() == [objective.smoothness] * objective.shard.rows


@MAKERS
def test_residuals_are_gradients_of_single_rows_plus_duals(make):
    objective = make()
    w = away(objective)
    duals = np.random.default_rng(2).standard_normal((objective.shard.rows, objective.dim))
    rows = np.array([3, 0, 17])
    kappas = objective.residuals(w, duals, rows)
    for k, row in enumerate(rows):
        expected = objective.gradients(w, rows[k : k + 1]) + duals[row]
        np.testing.assert_allclose(kappas[k], expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(objective.combine(rows, kappas), kappas.sum(axis=0))
    np.testing.assert_allclose(objective.dual_sum(duals), duals.sum(axis=0))


@MAKERS
def test_gradients_of_some_rows_add_up(make):
    objective = make()
    w = away(objective)
    order = np.random.default_rng(0).permutation(objective.shard.rows)
    parts = [objective.gradients(w, rows) for rows in np.split(order, [1, 20])]
    np.testing.assert_allclose(np.sum(parts, axis=0), objective.gradients(w), atol=1e-12)


@MAKERS
def test_gradients_are_the_losses_differences(make):
    objective = make()
    w, length = away(objective), 1e-6
    some = np.random.default_rng(3).choice(objective.dim, min(20, objective.dim), replace=False)
    for unit in np.eye(objective.dim)[some]:
        difference = objective.losses(w + length * unit) - objective.losses(w - length * unit)
        slope = objective.gradients(w) @ unit
        assert difference / (2 * length) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@MAKERS
def test_sums_over_shards_are_those_over_the_whole(make):
    whole = make()
    n = whole.shard.rows
    parts = [make(Shard(lo=lo, hi=hi, n=whole.shard.n)) for lo, hi in ((0, 7), (7, n))]
    w = away(whole)
    assert sum(part.losses(w) for part in parts) == pytest.approx(whole.losses(w), rel=1e-12)
    gradient = sum(part.gradients(w) for part in parts)
    np.testing.assert_allclose(gradient, whole.gradients(w), rtol=1e-10, atol=1e-12)
    assert all(np.array_equal(part.initial(), whole.initial()) for part in parts)
    counted = sum(part.figures(w).get("correct", 0.0) for part in parts)
    assert counted == whole.figures(w).get("correct", 0.0)


@MAKERS
def test_curvature_is_that_of_the_shards_hessian(make):
    objective = make()
    found = power_iteration(objective.gradients, objective.initial(), steps=200)
    assert 0.5 * found <= objective.curvature() <= 1.2 * found


@MAKERS
def test_single_losses_are_as_smooth_as_they_say(make):
    objective = make()
    w = away(objective)
    rows = np.arange(0, objective.shard.rows, 7)
    length = 1e-3
    for row in rows:
        change = length * np.random.default_rng(row).standard_normal(objective.dim)
        moved = objective.gradients(w + change, row[None]) - objective.gradients(w, row[None])
        bound = objective.smoothness * np.linalg.norm(change)
        assert np.linalg.norm(moved) <= bound * (1 + 1e-6)


def test_the_components_objective_is_that_of_its_matrix():
    # P(w) = ½ wᵀ(μI - C)w - bᵀw, losses and λ/2 ‖w‖² together
    mu, strength = 0.6, 0.01
    objective = pca_of(mu=mu, strength=strength)
    matrix = open_rows(f"pca:n=50,d={DIM}").block(0, 50).matrix().astype(np.float64)
    shifted = mu * np.eye(DIM) - matrix.T @ matrix / 50
    w = away(objective)
    primal = objective.losses(w) / 50 + strength / 2 * w @ w
    assert primal == pytest.approx(0.5 * w @ shifted @ w - objective.b @ w, rel=1e-12)
    best = np.linalg.solve(shifted, objective.b)
    np.testing.assert_allclose(objective.gradients(best) / 50, -strength * best, rtol=1e-10)
    assert np.linalg.norm(objective.b) == pytest.approx(1.0)


def test_all_workers_have_one_b_and_another_seed_has_another():
    parts = [pca_of(shard) for shard in shards(50, 2)]
    np.testing.assert_array_equal(parts[0].b, parts[1].b)
    source = open_rows(f"pca:n=50,d={DIM}")
    other = build("pca", source, parts[0].shard, strength=0.01, seed=1)
    assert not np.array_equal(other.b, parts[0].b)


@pytest.mark.parametrize(
    ("mu", "convex", "smoothness"), [(100.0, True, 99.99), (0.6, False, 0.59), (0.3, False, 0.71)]
)
def test_each_loss_of_components_is_convex_only_where_mu_is_large(mu, convex, smoothness):
    objective = pca_of(mu=mu)
    assert objective.convex is convex
    assert objective.smoothness == pytest.approx(smoothness, abs=1e-6)


def torch_losses(objective, w, rows):
    block = open_rows("digits").block(objective.shard.lo, objective.shard.hi)
    x = torch.from_numpy(block.matrix()[rows].astype(np.float64))
    labels = torch.from_numpy(block.labels[rows].astype(np.int64))
    below, below_bias, above, above_bias = (
        part.reshape(shape)
        for part, shape in zip(
            w.split([5 * 64, 5, 10 * 5, 10]), [(5, 64), (5,), (10, 5), (10,)], strict=True
        )
    )
    scores = F.linear(F.relu(F.linear(x, below, below_bias)), above, above_bias)
    return F.cross_entropy(scores, labels, reduction="sum"), scores, labels


def test_the_network_is_the_one_that_torch_differentiates():
    objective = mlp_of(Shard(lo=5, hi=45, n=1437))
    w = torch.from_numpy(away(objective)).requires_grad_()
    loss, scores, labels = torch_losses(objective, w, np.arange(40))
    (gradient,) = torch.autograd.grad(loss, w)
    ours = w.detach().numpy()
    assert objective.losses(ours) == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(objective.gradients(ours), gradient, rtol=1e-10, atol=1e-13)
    correct = (scores.argmax(dim=1) == labels).sum().item()
    assert objective.figures(ours) == {"correct": correct}


def test_rows_in_several_chunks_are_all_looked_at():
    objective = mlp_of(Shard(lo=0, hi=1437, n=1437))
    w = objective.initial()
    halves = [np.arange(0, 700), np.arange(700, 1437)]
    parts = [objective.gradients(w, rows) for rows in halves]
    np.testing.assert_allclose(objective.gradients(w), np.sum(parts, axis=0), rtol=1e-10)


@pytest.mark.parametrize("hidden", [50, 100])
def test_the_network_has_the_papers_sizes(hidden):
    inputs = {50: 384, 100: 784}[hidden]
    block = RowBlock.of_matrix(np.ones((10, inputs), dtype=np.float32), np.arange(10))
    shard = Shard(lo=0, hi=10, n=10)
    network = SoftmaxMlp(block, shard, strength=1e-4, hidden=hidden, classes=10, seed=0)
    assert network.dim == inputs * hidden + hidden + hidden * 10 + 10
    assert not network.convex
    assert network.losses(np.zeros(network.dim)) == pytest.approx(10 * np.log(10))


def test_scores_that_are_large_do_not_overflow():
    objective = mlp_of()
    w = 1e4 * objective.initial()
    assert np.isfinite(objective.losses(w))
    assert np.isfinite(objective.gradients(w)).all()


def test_two_signed_classes_are_the_networks_first_and_second():
    matrix = np.eye(4)
    shard = Shard(lo=0, hi=4, n=4)
    options = {"strength": 0.1, "hidden": 3, "classes": 2, "seed": 0}
    signed = SoftmaxMlp(RowBlock.of_matrix(matrix, np.array([-1, 1, 1, -1])), shard, **options)
    counted = SoftmaxMlp(RowBlock.of_matrix(matrix, np.array([0, 1, 1, 0])), shard, **options)
    w = away(signed)
    assert signed.losses(w) == counted.losses(w)


def test_duals_that_no_machine_holds_are_refused_before_they_are_made():
    block = RowBlock.of_matrix(np.zeros((2, 3)), np.zeros(2))
    objective = Pca(block, Shard(lo=0, hi=2, n=2), strength=0.1, mu=1.0, seed=0)
    objective.shard = Shard(lo=0, hi=10**10, n=10**10)
    with pytest.raises(
        ResourceError, match=r"10000000000 rows of 3 numbers are 224 GiB .* asysvrg"
    ):
        objective.zero_duals()


def test_a_users_function_gets_rows_of_the_whole_data():
    asked = []

    def batch(w, rows):
        asked.append(rows.tolist())
        return ridge_batch(w, rows)

    objective = custom(batch, Shard(lo=20, hi=23, n=50), dim=DIM, strength=0.1, smoothness=1.0)
    w = away(objective)
    objective.losses(w)
    objective.gradients(w, np.array([2, 0]))
    objective.residuals(w, objective.zero_duals(), np.array([1]))
    assert asked == [[20, 21, 22], [22, 20], [21]]


def test_a_users_function_of_ridge_is_ridge():
    matrix, labels = ridge_data()
    objective = custom_of()
    w = away(objective)
    errors = matrix @ w - labels
    assert objective.losses(w) == pytest.approx(0.5 * errors @ errors)
    np.testing.assert_allclose(objective.gradients(w), errors @ matrix)
    assert objective.curvature() == pytest.approx(np.linalg.norm(matrix, 2) ** 2, rel=0.05)
    assert custom_of(smoothness=3.5).smoothness == 3.5
    assert custom_of(initial=np.ones(DIM)).initial().tolist() == [1.0] * DIM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, r"`dim` must be at least 1, but got 0"),
        ({"strength": -1.0}, r"`strength` \(λ\) must be a finite number >= 0, but got -1.0"),
        ({"smoothness": 0.0}, r"`smoothness` must be .* above 0, but got 0.0; None estimates it"),
        ({"initial": np.ones(2)}, r"`initial` must have the shape \(6,\), but has \(2,\)"),
    ],
)
def test_what_no_objective_can_be_is_a_config_error(options, message):
    with pytest.raises(ConfigError, match=message):
        custom_of(**options)


def test_a_gradient_of_another_shape_is_a_config_error():
    def each(w, rows):
        return 0.0, np.zeros((len(rows), DIM))

    with pytest.raises(ConfigError, match=r"must have the shape \(6,\).* gave \(1, 6\); sum it"):
        custom(each, Shard(lo=0, hi=9, n=9), dim=DIM, strength=0.1)


def test_a_function_without_curvature_has_none():
    assert power_iteration(np.zeros_like, np.ones(3)) == 0.0
