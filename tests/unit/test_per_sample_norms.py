"""Norms of the samples' gradients from one backward pass, against a loop over samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raylab.errors import ModelError
from raylab.models import build
from raylab.optimizers import PerSampleNorms, convolution_samples, sample_gradients
from raylab.optimizers.convolution_samples import ConvUse
from raylab.optimizers.layer_identities import padded
from raylab.optimizers.sample_gradients import FactorUse
from tests.reference.large_batch import own_copies
from tests.reference.networks import batches, conv_bn64

pytestmark = pytest.mark.unit


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().double()


def any_loss(outputs: Tensor) -> Tensor:
    """A mean over samples that treats them all differently."""
    weights = torch.linspace(0.5, 2, len(outputs), dtype=outputs.dtype)
    return (outputs.flatten(1).sin().sum(1) * weights).mean()


def one_by_one(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    weights = torch.linspace(0.5, 2, len(x), dtype=torch.float64)
    for one, weight in zip(x.split(1), weights, strict=True):
        named = dict(model.named_parameters())
        loss = model(one).flatten().sin().sum() * weight
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                found.setdefault(name, []).append(gradient.norm())
    return {name: torch.stack(norms) for name, norms in found.items()}


def assert_norms_equal_a_loop(model: nn.Module, x: Tensor) -> None:
    expected = one_by_one(model, x)
    plain = torch.autograd.grad(any_loss(model(x)), list(model.parameters()), allow_unused=True)
    norms = PerSampleNorms(dict(model.named_parameters()), model)
    any_loss(model(x)).backward()
    found = norms.norms()
    assert set(found) == set(expected)
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=1e-10, atol=1e-13, msg=name)
        torch.testing.assert_close(norms.mean()[name], float(each.mean()), rtol=1e-10, atol=0)
    assert norms.samples == len(x)
    # The gradient itself is what it would have been.
    for p, gradient in zip(model.parameters(), plain, strict=True):
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-13)
    norms.close()


# ----------------------------------------------------------------- whole networks


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        *(nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10)),
    )


def without_batch_norm(model: nn.Module) -> nn.Module:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return model


class Texts(nn.Module):
    """Tokens through a table, a recurrence by hand, and a table's own weights at the end."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=2)
        self.inside = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 11, bias=False)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        state = self.norm(torch.tanh(self.inside(self.table(tokens))))
        return self.out(torch.tanh(self.inside(state)))


TOKENS = torch.randint(11, (5, 9), generator=torch.Generator().manual_seed(3))


def test_lenet():
    assert_norms_equal_a_loop(made(lenet), normal(4, 1, 28, 28))


def test_resnet20_without_batch_norm():
    model = made(
        lambda: without_batch_norm(build("resnet20", in_channels=3, num_classes=10, image_size=16))
    )
    assert_norms_equal_a_loop(model, normal(3, 3, 16, 16))


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_model_whose_layers_are_used_twice(tied):
    assert_norms_equal_a_loop(made(lambda: Texts(tied=tied)), TOKENS)


class Shared(nn.Module):
    """One convolution at two scales; two linear layers with one weight, one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.relu(self.conv(x)), 2)
        x = F.avg_pool2d(self.conv(x), 2).flatten(1)
        return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))


def test_shared_weights():
    assert_norms_equal_a_loop(made(Shared), normal(4, 3, 8, 8))


class Twins(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return self.inner(left) * self.inner(right)


def test_a_model_that_is_called_twice_before_one_backward_pass():
    model = made(lambda: Twins(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4))))
    expected = one_by_one(model, normal(4, 4, 5, 5))
    inner = model.inner
    norms = PerSampleNorms(dict(model.named_parameters()), inner)
    left, right = normal(4, 4, 5, 5).chunk(2, dim=1)
    any_loss(inner(left) * inner(right)).backward()
    for name, each in norms.norms().items():
        torch.testing.assert_close(each, expected[name], rtol=1e-10, atol=1e-13)


# ----------------------------------------------------------------- layers


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=1),
    nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding="same", padding_mode="circular"),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 4, 2, groups=4, padding="same", dilation=2, bias=False),
    nn.Conv2d(4, 6, 3, padding="valid", padding_mode="replicate"),
    nn.Conv2d(4, 6, 1, bias=False),
    nn.Conv3d(4, 2, 2, padding=1),
    # Many channels and few places: by Gram matrices.
    nn.Conv2d(4, 60, 6, bias=False),
    nn.Conv2d(4, 60, 6, groups=2),
    nn.Conv1d(4, 40, 6),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_convolutions_of_every_geometry(layer, chunk, monkeypatch):
    monkeypatch.setattr(sample_gradients, "_CHUNK", chunk)
    monkeypatch.setattr(convolution_samples, "_CACHED", chunk)
    space = {nn.Conv1d: (9,), nn.Conv2d: (7, 6), nn.Conv3d: (4, 3, 3)}[type(layer)]
    assert_norms_equal_a_loop(copy.deepcopy(layer).double(), normal(3, 4, *space))


@pytest.mark.parametrize(
    "layer", [c for c in CONVOLUTIONS if not isinstance(c, nn.Conv3d)], ids=str
)
def test_an_unfolded_image_gives_the_gradients_of_the_kernel(layer):
    layer = copy.deepcopy(layer).double()
    x, geometry = padded(layer, normal(3, 4, *((9,) if isinstance(layer, nn.Conv1d) else (7, 6))))
    out = layer(normal(3, 4, *((9,) if isinstance(layer, nn.Conv1d) else (7, 6))))
    use = ConvUse(x, normal(*out.shape, seed=2), geometry)
    everything = slice(0, 3)
    unfolded = use._factors(everything)
    torch.testing.assert_close(unfolded.explicit(everything), use.explicit(everything))
    torch.testing.assert_close(unfolded._by_gram(everything), use.squares())
    squares, total = use.squares_and_sum()
    torch.testing.assert_close(squares, use.squares())
    torch.testing.assert_close(total, use.explicit(everything).sum(0))


@pytest.mark.parametrize("positions", [(), (3,), (40,), (2, 3)])
def test_linear_layers_at_any_number_of_positions(positions):
    assert_norms_equal_a_loop(made(lambda: nn.Linear(6, 5)), normal(4, *positions, 6))


def test_both_ways_to_a_linear_layers_norms_are_one():
    use = FactorUse(normal(3, 2, 7, 4), normal(3, 2, 7, 5, seed=1))
    everything = slice(0, 3)
    expected = use.explicit(everything).square().sum(1)
    torch.testing.assert_close(use._by_gram(everything), expected)
    torch.testing.assert_close(use.squares(), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (4, 6)),
        (nn.LayerNorm((5, 6)), (4, 3, 5, 6)),
        (nn.RMSNorm(6), (4, 3, 6)),
        (nn.GroupNorm(2, 4), (4, 4, 5, 3)),
        (nn.GroupNorm(2, 4), (4, 4)),
        (nn.BatchNorm2d(4).eval(), (4, 4, 5, 3)),
        (nn.BatchNorm1d(4).eval(), (4, 4)),
    ],
    ids=str,
)
def test_normalisations(layer, shape):
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for tensor in (*layer.parameters(), *(b for b in layer.buffers() if b.ndim)):
            tensor.copy_(1 + 0.3 * normal(*tensor.shape).abs())
    assert_norms_equal_a_loop(layer, normal(*shape))


# ----------------------------------------------------------------- batch normalisation


def test_under_batch_normalisation_a_samples_gradient_is_that_of_its_own_weights():
    model = conv_bn64(3).train()
    ((x, y),) = batches("conv", 1, seed=4)
    twin = copy.deepcopy(model)
    copies = own_copies(twin, len(x))
    F.cross_entropy(twin(x), y).backward()
    weights = {n: p for n, p in model.named_parameters() if n in copies}
    norms = PerSampleNorms(weights, model)
    F.cross_entropy(model(x), y).backward()
    found = norms.norms()
    assert set(found) == set(copies)
    for name, own in copies.items():
        expected = len(x) * own.grad.flatten(1).norm(dim=1)
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-13)
        # They add up to the gradient: its norm is never above the mean of theirs.
        torch.testing.assert_close(own.grad.sum(0), weights[name].grad, rtol=1e-9, atol=1e-13)
        assert weights[name].grad.norm() <= found[name].mean()


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (5, 3)), (nn.BatchNorm2d, (5, 3, 2, 4))]
)
def test_the_own_weights_of_a_batch_normalisation(kind, shape):
    layer, x = kind(3).double(), normal(*shape)
    weight = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    across = weight.reshape(5, 3, *[1] * (len(shape) - 2))
    any_loss(F.batch_norm(x, None, None, training=True) * across).backward()
    norms = PerSampleNorms({"weight": layer.weight}, layer)
    any_loss(layer(x)).backward()
    expected = 5 * weight.grad.norm(dim=1)
    torch.testing.assert_close(norms.norms()["weight"], expected, rtol=1e-10, atol=1e-13)


# ----------------------------------------------------------------- when, and of which samples


def test_accumulated_micro_batches_average_over_all_their_samples():
    model, x = made(lenet), normal(6, 1, 28, 28)
    whole = PerSampleNorms(dict(model.named_parameters()), model)
    F.mse_loss(model(x), torch.zeros(6, 10).double()).backward()
    other = made(lenet)
    parts = PerSampleNorms(dict(other.named_parameters()), other)
    for part in x.split(2):
        (F.mse_loss(other(part), torch.zeros(2, 10).double()) / 3).backward()
    torch.testing.assert_close(parts.moments(), whole.moments(), rtol=1e-10, atol=0)
    assert parts.samples == whole.samples == 6


def test_a_summed_loss_is_not_multiplied():
    model, x = made(lambda: nn.Linear(6, 5)), normal(4, 6)
    mean, total = (
        PerSampleNorms(dict(model.named_parameters()), model, reduction=each)
        for each in ("mean", "sum")
    )
    model(x).square().sum().backward()
    for name, each in total.norms().items():
        torch.testing.assert_close(4 * each, mean.norms()[name])


def test_what_is_not_differentiated_leaves_nothing():
    model, x = made(lenet), normal(3, 1, 28, 28)
    norms = PerSampleNorms(dict(model.named_parameters()), model)
    with torch.no_grad():
        model(x)
    assert norms.norms() == {}
    model(normal(7, 1, 28, 28))  # a forward that nobody goes back through
    any_loss(model(x)).backward()
    expected = one_by_one(copy.deepcopy(model), x)
    for name, each in norms.norms().items():
        torch.testing.assert_close(each, expected[name], rtol=1e-10, atol=1e-13)


def test_recorded_by_hand_nothing_else_is_seen_and_passes_may_overlap():
    model = made(lenet)
    norms = PerSampleNorms(dict(model.named_parameters()), model, by_hand=True)
    any_loss(model(normal(3, 1, 28, 28))).backward()
    assert norms.norms() == {}
    xs = [normal(n, 1, 28, 28, seed=n) for n in (2, 3)]
    losses, passes = [], []
    for x in xs:
        with norms.recording() as recorded:
            losses.append(any_loss(model(x)))
        passes.append(recorded)
    for x, loss, recorded in list(zip(xs, losses, passes, strict=True))[::-1]:
        loss.backward()
        norms.collect(recorded)
        expected = one_by_one(copy.deepcopy(model), x)
        for name, each in norms.norms().items():
            torch.testing.assert_close(each, expected[name], rtol=1e-10, atol=1e-13)
    assert norms.samples == 5


@pytest.mark.parametrize("biases", [True, False])
def test_activation_checkpoints_are_seen_once(biases):
    model, x = made(lenet), normal(3, 1, 28, 28)
    expected = one_by_one(model, x)
    named = {n: p for n, p in model.named_parameters() if biases or p.ndim > 1}
    norms = PerSampleNorms(named, model)
    any_loss(checkpoint(model, x, use_reentrant=False)).backward()
    found = norms.norms()
    assert set(found) == set(named)
    for name, each in found.items():
        torch.testing.assert_close(each, expected[name], rtol=1e-10, atol=1e-13)


def test_what_follows_a_convolution_may_write_into_its_output():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(inplace=True), nn.Flatten())
    assert_norms_equal_a_loop(made(lambda: model), normal(3, 2, 5, 5))


def test_under_autocast_the_norms_are_those_of_half_precision():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Flatten(), nn.Linear(27, 4))
    x = normal(3, 2, 5, 5).float()
    expected = one_by_one(copy.deepcopy(model).double(), x.double())
    norms = PerSampleNorms(dict(model.named_parameters()), model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = any_loss(model(x).float())
    loss.backward()
    for name, each in norms.norms().items():
        torch.testing.assert_close(each.double(), expected[name], rtol=0.05, atol=0)


def test_closed_it_leaves_the_model_as_it_was():
    model = made(lenet)
    norms = PerSampleNorms({"0.weight": model[0].weight, "7.weight": model[7].weight}, model)
    assert "_conv_forward" in vars(model[0])
    norms.close()
    assert "_conv_forward" not in vars(model[0])
    assert not model[7]._forward_hooks
    any_loss(model(normal(2, 1, 28, 28))).backward()
    assert norms.norms() == {}


# ----------------------------------------------------------------- errors, and the way out


def test_a_module_without_an_identity_is_named_with_the_way_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LSTM(4, 4)))
    with pytest.raises(ModelError, match=r"1\.0, a LSTM, owns weight_ih_l0.*sampled.*exclude"):
        PerSampleNorms(dict(model.named_parameters()), model)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module",
    [
        Doubled(3, 3),
        nn.Embedding(3, 3, scale_grad_by_freq=True),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    ],
    ids=["own forward", "frequencies", "parametrized"],
)
def test_what_only_looks_like_a_known_layer_is_refused(module):
    with pytest.raises(ModelError, match="are exact for Linear, Conv1d"):
        PerSampleNorms(dict(module.named_parameters()), module)


def test_a_second_backward_pass_through_one_forward_is_refused():
    layer = nn.Linear(3, 2)
    PerSampleNorms(dict(layer.named_parameters()), layer)
    loss = any_loss(layer(torch.ones(4, 3)))
    loss.backward(retain_graph=True)
    with pytest.raises(ModelError, match="add the losses and call backward once"):
        loss.backward()


def test_layers_that_see_different_numbers_of_samples_are_refused():
    model = nn.Sequential(
        nn.Linear(6, 6), nn.Unflatten(1, (3, 2)), nn.Flatten(0, 1), nn.Linear(2, 2)
    )
    PerSampleNorms(dict(model.named_parameters()), model)
    with pytest.raises(ModelError, match=r"dimension 0 .* 0 saw 4 of them and another layer 12"):
        any_loss(model(torch.ones(4, 6))).backward()


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1, bias=False)], ids=str)
def test_a_single_sample_without_a_batch_is_refused(layer):
    PerSampleNorms(dict(layer.named_parameters()), layer)
    with pytest.raises(ModelError, match="batch of samples"):
        layer(torch.ones(3) if isinstance(layer, nn.Linear) else torch.ones(3, 4, 4))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrence = nn.GRU(8, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.recurrence(x)[0]


@pytest.mark.parametrize("limit", [3, 100])
def test_sampled_norms_are_those_of_the_first_samples_of_any_module(limit):
    model, x = made(Attention), normal(5, 6, 4)
    expected = one_by_one(model, x)
    named = dict(model.named_parameters())
    norms = PerSampleNorms(named, model, limit=limit)
    any_loss(model(x)).backward()
    found = norms.norms()
    assert set(found) == set(named)
    for name, each in found.items():
        torch.testing.assert_close(each, expected[name][:limit], rtol=1e-10, atol=1e-13)
        mean = float(expected[name][:limit].mean())
        torch.testing.assert_close(norms.mean()[name], mean, rtol=1e-10, atol=0)


def test_samples_are_taken_once_from_accumulated_batches():
    model = made(lenet)
    norms = PerSampleNorms(dict(model.named_parameters()), model, limit=3)
    for n in (2, 4, 5):
        (any_loss(model(normal(n, 1, 28, 28, seed=n))) * n / 11).backward()
    norms.collect()
    assert (norms.samples, norms._taken) == (11, 3)
    expected: Any = [one_by_one(copy.deepcopy(model), normal(n, 1, 28, 28, seed=n)) for n in (2, 4)]
    for name, mean in norms.mean().items():
        known = torch.cat([expected[0][name], expected[1][name][:1]]).mean()
        torch.testing.assert_close(mean, float(known), rtol=1e-10, atol=0)


@pytest.mark.parametrize("limit", [3, 100])
def test_sampled_norms_of_convolutions_leave_their_gradients_as_they_are(limit):
    model = made(lenet)
    plain = copy.deepcopy(model)
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    norms = PerSampleNorms(weights, model, limit=limit)
    batches = [normal(n, 1, 28, 28, seed=n) for n in (2, 4, 5)]
    for each in (model, plain):
        for x in batches:
            (any_loss(each(x)) * len(x) / 11).backward()
    for p, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-10, atol=1e-13)
    loops = [one_by_one(plain, x) for x in batches]
    for name, mean in norms.mean().items():
        known = torch.cat([loop[name] for loop in loops])[:limit].mean()
        torch.testing.assert_close(mean, float(known), rtol=1e-10, atol=0)
