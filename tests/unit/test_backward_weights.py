"""Forwards that run again in a backward, and forwards that write into their weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from actors.units import Unit
from raylab import PipelineTrainer
from raylab.algorithms.pipeline import PIPELINE_METHODS
from raylab.errors import ModelError
from tests.helpers import run_pipeline
from tests.reference.pipeline import Optimiser
from tests.stages import assert_close, fixed, make, normal, seeded

pytestmark = [
    pytest.mark.unit,
    # torch says so of each re-entrant checkpoint that runs where no graph is kept.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]

FAST = Optimiser(kind="sgd", lr=0.2, momentum=0.9)
PLAIN = Optimiser(kind="sgd", lr=0.2)


class Block(nn.Module):
    """A residual block that may be checkpointed."""

    def __init__(self, reentrant: bool | None, *extra: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), *extra, nn.Tanh(), nn.Linear(6, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return x + self.body(x)
        return x + checkpoint(self.body, x, use_reentrant=self.reentrant)


def chain(reentrant: bool | None, make_extra: Any = tuple) -> nn.Sequential:
    # The first block is not checkpointed: re-entrant checkpoints train nothing on a bare input.
    blocks = [Block(reentrant, *make_extra()) for _ in range(3)]
    return fixed(nn.Linear(4, 4), *blocks, nn.Linear(4, 3))


def batches(count: int = 6, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    labels = torch.randint(3, (count, size), generator=seeded(9))
    return [(normal(size, 4, seed=n), labels[n]) for n in range(count)]


def trained(model: nn.Sequential, method: str, **options: Any) -> dict[str, Tensor]:
    options = {"cuts": [2], "epochs": [batches()] * 2, "optimiser": FAST, **options}
    return run_pipeline(model, method=method, **options).model.state_dict()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", sorted(PIPELINE_METHODS))
def test_checkpointing_a_block_changes_no_number(method, reentrant):
    dropout = [lambda: (nn.Dropout(0.3),), tuple][method in ("dni", "dgl")]
    # A stage of dgl that begins with a re-entrant checkpoint is refused.
    cuts = [[4]] * 2 if method == "dgl" else [[2], [1, 3]]
    for options in ({"cuts": cuts[0]}, {"cuts": cuts[1], "accumulate": 2}):
        expected = trained(chain(None, dropout), method, **options)
        assert_close(trained(chain(reentrant, dropout), method, **options), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_number_where_inputs_are_kept_instead_of_graphs(reentrant):
    expected = trained(chain(None), "adl", recompute=True)
    assert_close(trained(chain(reentrant), "adl", recompute=True), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_sigma_of_checkpointed_blocks_is_that_of_plain_ones(reentrant):
    def sigmas(model: nn.Sequential) -> list[Any]:
        options = {"cuts": [2], "epochs": [batches()] * 3, "optimiser": PLAIN, "sigma_every": 1}
        rows = run_pipeline(model, method="ddg", **options).rows
        return [row["sigma_sums"] for row in rows if "sigma_sums" in row]

    found = sigmas(chain(reentrant))
    assert found
    assert_close(found, sigmas(chain(None)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_statistics_of_bp_move_as_torch_moves_them(reentrant):
    model = chain(reentrant, lambda: (nn.BatchNorm1d(6).double(),))
    found = trained(model, "bp", optimiser=PLAIN)
    own = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.2)
    for x, y in batches() * 2:
        optimizer.zero_grad()
        F.cross_entropy(own(x), y).backward()
        optimizer.step()
    assert int(found["1.body.1.num_batches_tracked"]) == 2 * 12
    assert_close(found, own.state_dict())


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_checkpointed_statistics_of_micro_batches_move_once_a_batch(method):
    def statistics(reentrant: bool | None) -> dict[str, Tensor]:
        model = chain(reentrant, lambda: (nn.BatchNorm1d(6).double(),))
        return trained(model, method, micro_batches=2)

    assert_close(statistics(False), statistics(None))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_restored_stage_goes_back_through_checkpoints_as_if_it_had_not_stopped(reentrant):
    def stage() -> Any:
        return make(fixed(nn.Linear(4, 4), Block(reentrant)), delay=2, resumable=True)

    whole, left = stage(), stage()
    for each in (whole, left):
        for n in range(2):
            each.forward(Unit(n), (normal(5, 4, seed=n),), ())
            each.update()
    resumed = stage()
    resumed.restore(left.save())
    for n in range(2):
        found = [each.backward(Unit(n), (normal(5, 4, seed=9),)) for each in (whole, resumed)]
        assert_close(*found)
    for each in (whole, resumed):
        each.update()
    assert_close(resumed.state(), whole.state())


class ReadsItsWeightLate(nn.Linear):
    """A linear layer whose own backward takes the weight from the module."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return x @ weight.T

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Any:
                (x,) = ctx.saved_tensors
                return gradients[0] @ layer.weight, gradients[0].T @ x

        return Product.apply(x, self.weight) + self.bias


@pytest.mark.parametrize("method", ["ddg", "adl"])
def test_a_backward_that_looks_into_its_module_finds_the_weights_of_its_forward(method):
    def model(kind: type[nn.Linear]) -> nn.Sequential:
        return fixed(kind(4, 4), nn.Tanh(), kind(4, 4), nn.Tanh(), nn.Linear(4, 3))

    expected = trained(model(nn.Linear), method, cuts=[3])
    assert_close(trained(model(ReadsItsWeightLate), method, cuts=[3]), expected)


@pytest.mark.parametrize(("method", "first"), [("bp", 1), ("dgl", 0)])
def test_a_reentrant_checkpoint_on_a_bare_input_is_refused(method, first):
    model = chain(True)[first:]
    trainer = PipelineTrainer(model, F.cross_entropy, method=method, stages=[1])
    with pytest.raises(ModelError, match=r"use_reentrant=False"):
        trainer.plan(batches(), measure=False)


@pytest.mark.parametrize("method", ["ddg", "dgl"])
def test_a_reentrant_checkpoint_behind_weights_is_taken(method):
    trainer = PipelineTrainer(chain(True), F.cross_entropy, method=method, stages=[4])
    assert trainer.plan(batches(), measure=False)["cuts"] == [4]


# ----------------------------------------------------------------- forwards that write


class Words(nn.Module):
    """Rows of a bounded norm, told by the signs of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(16, 4, max_norm=0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows((x > 0).long() @ torch.tensor([1, 2, 4, 8]))


class UnitNorm(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.div_(self.weight.norm(dim=1, keepdim=True))
        return super().forward(x)


class Clamped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(-0.3, 0.3)  # unseen by the weight's version counter
        return super().forward(x)


WRITERS = {
    "max_norm": Words,
    "renormalised": lambda: UnitNorm(4, 4),
    "clamped": lambda: Clamped(4, 4),
}


def writer(kind: str) -> nn.Sequential:
    return fixed(WRITERS[kind](), nn.Tanh(), Clamped(4, 4), nn.Linear(4, 3))


def one_late(model: nn.Sequential, cut: int, accumulate: int) -> dict[str, Tensor]:
    """Train two stages, the lower one batch late, with a copy of it for each graph."""
    model = copy.deepcopy(model)
    lower, upper = model[:cut], model[cut:]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.2) for part in (lower, upper)]
    waiting: Any = None
    feed = batches() * 2
    for n in range(len(feed) + 1):
        came = None
        if n < len(feed):
            x, y = feed[n]
            twin = copy.deepcopy(lower)
            features = twin(x)
            for p, own in zip(lower.parameters(), twin.parameters(), strict=True):
                p.data.copy_(own.data)
            inputs = features.detach().requires_grad_()
            F.cross_entropy(upper(inputs), y).backward()
            came = (twin, features, inputs.grad)
        if waiting is not None:
            old, ends, gradient = waiting
            grads = torch.autograd.grad(ends, list(old.parameters()), gradient)
            for p, grad in zip(lower.parameters(), grads, strict=True):
                p.grad = grad.clone() if p.grad is None else p.grad + grad
        waiting = came
        if (n + 1) % accumulate == 0 or n == len(feed):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    for p in group["params"]:
                        p.grad = None if p.grad is None else p.grad / accumulate
                optimizer.step()
                optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("kind", sorted(WRITERS))
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_what_a_forward_writes_into_a_weight_is_kept_by_a_late_method(kind, accumulate, recompute):
    options = {"optimiser": PLAIN, "accumulate": accumulate, "recompute": recompute}
    found = trained(writer(kind), "ddg", writes_weights=kind != "clamped", **options)
    assert_close(found, one_late(writer(kind), 2, accumulate))


@pytest.mark.parametrize("kind", sorted(WRITERS))
@pytest.mark.parametrize("method", ["bp", "gpipe", "1f1b", "fr", "dsp"])
def test_what_a_forward_writes_into_a_weight_is_kept_by_the_other_methods(kind, method):
    """With one stage each of them is back-propagation."""
    found = trained(writer(kind), method, cuts=[], optimiser=PLAIN, writes_weights=True)
    own = copy.deepcopy(writer(kind))
    optimizer = torch.optim.SGD(own.parameters(), lr=0.2)
    for x, y in batches() * 2:
        optimizer.zero_grad()
        F.cross_entropy(own(x), y).backward()
        optimizer.step()
    assert_close(found, own.state_dict())


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_micro_batches_that_write_into_their_weights_give_the_batchs_gradient(method):
    options = {"cuts": [2, 3], "optimiser": PLAIN, "micro_batches": 4}
    found = trained(writer("renormalised"), method, writes_weights=True, **options)
    expected = trained(writer("renormalised"), "bp", cuts=[2, 3], optimiser=PLAIN)
    assert_close(found, expected)


def test_a_measurement_of_sigma_writes_into_no_weight():
    expected = trained(writer("max_norm"), "ddg", optimiser=PLAIN)
    assert_close(trained(writer("max_norm"), "ddg", optimiser=PLAIN, sigma_every=1), expected)


class Decays(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(0.9)
        return super().forward(x)


@pytest.mark.parametrize("method", ["ddg", "adl", "fr", "dsp"])
def test_a_late_method_refuses_a_block_that_changes_its_weights_in_each_forward(method, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), Decays(4, 4), nn.Linear(4, 3)).double()
    trainer = PipelineTrainer(model, F.cross_entropy, method=method, stages=[1])
    with pytest.raises(ModelError, match=r"block '1' changes them each time.*method=bp"):
        trainer.plan(batches(), measure=False)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_late_method_takes_a_block_that_writes_the_same_again(kind):
    trainer = PipelineTrainer(writer(kind), F.cross_entropy, method="ddg", stages=[2])
    assert trainer.plan(batches(), measure=False)["cuts"] == [2]
