from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import raylab.models
from raylab._torchvision import import_torchvision
from raylab.errors import ConfigError, ModelError
from raylab.models import build, chain, cnn5, fcn5, mlp, names, resnet_cifar, resnext, vgg
from raylab.models.dpn import DualPathBlock
from raylab.models.resnet_cifar import BasicBlock

pytestmark = pytest.mark.unit

# name: (blocks, parameters), for 3 × 32 × 32 images and 10 classes. The CIFAR ResNets have 0.27 M
# (20 layers), 0.85 M (56), 1.7 M (110) and 19.4 M (1202) in Table 6 of He et al. 2016. ResNeXt-29
# 8×64d has 34.4 M in Table 7 of Xie et al. 2017.
SIZES = {
    "resnet8": (5, 75_290),
    "resnet20": (11, 269_722),
    "resnet56": (29, 853_018),
    "resnet98": (50, 1_533_530),
    "resnet110": (56, 1_727_962),
    "resnet164": (56, 1_704_154),
    "resnet1202": (602, 19_421_274),
    "vgg11_bn": (9, 9_228_362),
    "vgg16_bn": (14, 14_724_042),
    "resnext29": (11, 34_426_698),
    "dpn92": (32, 34_998_602),
    "fcn5": (5, 2_366_474),
    "cnn5": (5, 66_218),
    "mlp": (3, 855_050),
    "resnet18": (10, 11_181_642),
    "resnet50": (18, 23_528_522),
    "resnet101": (35, 42_520_650),
    "resnet152": (52, 58_164_298),
    "densenet121": (63, 6_964_106),
    "mobilenet_v2": (20, 2_236_682),
    "resnet50_32px": (18, 23_520_842),
    "resnet101_32px": (35, 42_512_970),
    "densenet121_32px": (63, 6_956_426),
    "mobilenet_v2_32px": (20, 2_236_682),
    "googlenet": (11, 5_602_474),
}
# Built without storage only: their blocks are those of resnet110 and resnet50, many times over.
TOO_LARGE = {"resnet1202", "resnet101", "resnet152", "resnet101_32px"}
RUN = [name for name in SIZES if name not in TOO_LARGE]

# Small instances of torchvision's families; all kinds of blocks, two or three of each.
TORCHVISION = [
    "resnet_basic",
    "resnet_bottleneck",
    "densenet",
    "densenet_frugal",
    "mobilenet_v2",
    "googlenet",
]

# The networks of DASGD's Table I on 32×32 images: channels, height and width before the last block.
LAST_FEATURES = {
    "googlenet": (1024, 8, 8),
    "vgg16_bn": (512, 1, 1),
    "resnet50_32px": (2048, 4, 4),
    "resnet101_32px": (2048, 4, 4),
    "densenet121_32px": (1024, 4, 4),
    "mobilenet_v2_32px": (1280, 4, 4),
    "resnext29": (1024, 8, 8),
    "dpn92": (2688, 4, 4),
}


def make_torchvision(name: str) -> nn.Module:
    models = import_torchvision().models
    torch.manual_seed(0)
    if name == "resnet_basic":
        return models.ResNet(models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=7)
    if name == "resnet_bottleneck":
        return models.ResNet(models.resnet.Bottleneck, [2, 3, 2, 1], num_classes=7)
    if name == "mobilenet_v2":
        return models.mobilenet_v2(num_classes=7)
    if name == "googlenet":
        return models.googlenet(num_classes=7, aux_logits=False, init_weights=False)
    return models.DenseNet(
        8, (2, 3, 3, 2), 16, num_classes=7, drop_rate=0.1, memory_efficient=name.endswith("frugal")
    )


def images(size: int, *, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, size, size, generator=generator, dtype=dtype)


def run_with_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)  # for dropout
    x = x.clone().requires_grad_()
    out = model(x)
    F.cross_entropy(out, torch.tensor([0, 3])).backward()
    assert x.grad is not None
    return out.detach(), x.grad


def closed_form_parameters(depth: int) -> int:
    n = (depth - 2) // 6
    conv = [9 * 16 * 16, 9 * 32 * 32, 9 * 64 * 64]
    first_of_group = conv[1] // 2 + conv[2] // 2  # half the input channels
    convs = 9 * 3 * 16 + 2 * n * sum(conv) - conv[1] - conv[2] + first_of_group
    norms = 2 * 16 + 2 * n * 2 * (16 + 32 + 64)
    return convs + norms + 64 * 10 + 10


# The registry


def test_every_name_builds_with_the_expected_blocks_and_parameters() -> None:
    assert names() == tuple(SIZES)
    for name, size in SIZES.items():
        with torch.device("meta"):
            model = build(name)
        assert type(model) is nn.Sequential
        assert (len(model), sum(p.numel() for p in model.parameters())) == size, name


@pytest.mark.parametrize("name", RUN)
def test_no_block_changes_its_input_and_the_last_one_gives_the_classes(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, in_channels=1, num_classes=7)
    for training in (True, False):
        model.train(training)
        x = images(32, channels=1)
        for label, block in model.named_children():
            before, version = x.clone(), x._version
            out = block(x)
            assert x._version == version, label
            assert torch.equal(x, before), label
            assert out.isfinite().all(), label
            # What the next stage receives is a leaf, as after a transfer.
            x = out.detach().requires_grad_()
        assert x.shape == (2, 7)


def test_every_public_name_can_be_imported() -> None:
    assert all(hasattr(raylab.models, name) for name in raylab.models.__all__)


def test_the_weights_are_drawn_from_the_global_generator() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return next(build("resnet8").parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_an_unknown_name_is_answered_with_the_closest_ones() -> None:
    with pytest.raises(ConfigError, match=r"got 'resnet2O'; did you mean 'resnet20'"):
        build("resnet2O")
    with pytest.raises(ConfigError, match=r"must be one of resnet8, .*, googlenet.*got 'gpt'$"):
        build("gpt")


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    message = r"an option of 'fcn5' must be one of \['width'\], but got 'widht'; did you mean 'w"
    with pytest.raises(ConfigError, match=message):
        build("fcn5", widht=3)


@pytest.mark.parametrize("setting", ["in_channels", "num_classes", "image_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_a_size_that_is_no_positive_integer_is_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"`{setting}` must be an integer >= 1, but got {value}"):
        build("cnn5", **{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "least"), [("densenet121", 29), ("densenet121_32px", 8)])
def test_densenet_refuses_an_image_of_which_nothing_would_be_left(name: str, least: int) -> None:
    with pytest.raises(ConfigError, match=f"`image_size >= {least}` must hold for {name!r}"):
        build(name, image_size=least - 1)
    with torch.device("meta"):
        assert build(name, image_size=least)(torch.empty(2, 3, least, least)).shape == (2, 10)


def test_options_reach_the_network() -> None:
    assert [p.shape[0] for p in build("mlp", hidden=[5, 4]).parameters()] == [5, 5, 4, 4, 10, 10]
    assert build("fcn5", width=6)[1][0].out_features == 6
    assert build("cnn5", width=6)[3][0].out_channels == 12
    assert len(build("resnet164", block="basic")) == 83
    with torch.device("meta"):
        assert build("mobilenet_v2", dropout=0.5)[-1][-1][0].p == 0.5
        assert build("densenet121", drop_rate=0.5)[1].layer.drop_rate == 0.5
        assert build("densenet121_32px", drop_rate=0.5)[1].layer.drop_rate == 0.5
        assert build("mobilenet_v2_32px", dropout=0.5)[-1][-1][0].p == 0.5
        assert build("googlenet", dropout=0.5)[-1][2].p == 0.5
        assert build("resnext29", cardinality=32, width=4)[1].conv2.groups == 32
    assert not build("resnet18", zero_init_residual=True)[1][0].bn2.weight.any()
    assert not build("resnet50_32px", zero_init_residual=True)[1][0].bn3.weight.any()


def test_depths_of_torchvision_are_reached_by_the_longer_name() -> None:
    assert len(build("resnet50")) == 18
    assert len(build("resnet_cifar50")) == 26
    assert len(build("resnet_cifar20")) == len(build("resnet20"))


# CIFAR ResNets


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 98, 110])
def test_basic_resnets_have_the_parameters_of_the_closed_form(depth: int) -> None:
    model = resnet_cifar(depth, block="basic")
    assert sum(p.numel() for p in model.parameters()) == closed_form_parameters(depth)
    assert len(model) == (depth - 2) // 2 + 2


@pytest.mark.parametrize("depth", [1, 2, 7, 18, 21, 34, 100])
def test_a_depth_that_no_number_of_blocks_gives_is_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"depth = 6n \+ 2.*9n \+ 2.*\(depth={depth}, "):
        resnet_cifar(depth)


def test_the_kind_of_block_follows_the_depth_unless_given() -> None:
    def kind(depth: int, block: str = "auto") -> str:
        return type(resnet_cifar(depth, block=block)[1]).__name__  # type: ignore[arg-type]

    assert [kind(20), kind(110), kind(98)] == ["BasicBlock"] * 3
    assert [kind(164), kind(11), kind(29), kind(20, "bottleneck")] == ["Bottleneck"] * 4
    assert kind(164, "basic") == "BasicBlock"
    with pytest.raises(ConfigError, match=r"`depth = 6n \+ 2, n >= 1` must hold.*depth=11"):
        kind(11, "basic")
    with pytest.raises(ConfigError, match=r"`depth = 9n \+ 2, n >= 1` must hold.*depth=98"):
        kind(98, "bottleneck")
    with pytest.raises(ConfigError, match=r"`block` must be one of .* but got 'wide'"):
        kind(20, "wide")


def test_the_basic_shortcut_takes_every_second_pixel_and_adds_zero_channels() -> None:
    block = BasicBlock(2, 4, stride=2)
    nn.init.zeros_(block.bn2.weight)  # nothing is left but the shortcut
    x = images(8, channels=2)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2].relu())
    assert not out[:, 2:].any()


@pytest.mark.parametrize("depth", [8, 11])
@pytest.mark.parametrize("size", [8, 9, 28])
def test_a_resnet_takes_images_of_any_size(depth: int, size: int) -> None:
    model = resnet_cifar(depth, in_channels=1, num_classes=5)
    assert model(images(size, channels=1)).shape == (2, 5)
    assert model[:-1](images(size, channels=1)).shape[2:] == (-(-size // 4),) * 2


def test_convolutions_start_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    weight = resnet_cifar(8)[3].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


# The networks of DASGD's Table I


@pytest.mark.parametrize("name", LAST_FEATURES)
def test_a_small_image_is_not_shrunk_by_the_stem(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
        x = torch.empty(2, 3, 32, 32)
        assert model[0](x).shape[2:] == (32, 32)
        assert model[:-1](x).shape == (2, *LAST_FEATURES[name])


@pytest.mark.parametrize("name", LAST_FEATURES)
def test_stages_of_a_network_put_together_are_the_network(name: str) -> None:
    torch.manual_seed(0)
    model = build(name).eval()
    cuts = [0, 1, len(model) // 2, len(model) - 1, len(model)]
    stages = [model[a:b] for a, b in itertools.pairwise(cuts)]
    together = {key: value for stage in stages for key, value in stage.state_dict().items()}
    assert list(together) == list(model.state_dict())
    with torch.no_grad():
        x = whole = images(32)
        for stage in stages:
            x = stage(x)
        assert torch.equal(x, model(whole))


def test_dpn92_has_the_parameters_published_for_large_images_but_for_stem_and_head() -> None:
    smaller_stem, fewer_classes = 3 * 64 * (7 * 7 - 3 * 3), (2688 + 1) * (1000 - 10)
    assert SIZES["dpn92"][1] == 37_668_392 - smaller_stem - fewer_classes


def test_a_dual_path_block_adds_to_the_first_channels_and_appends_to_the_others() -> None:
    block = DualPathBlock(64 + 6, 32, 64, 6).eval()
    x = images(8, channels=70)
    out, made = block(x), block.layers(x)
    assert out.shape[1] == block.out_channels == 76
    assert torch.equal(out[:, :64], x[:, :64] + made[:, :64])
    assert torch.equal(out[:, 64:70], x[:, 64:])
    assert torch.equal(out[:, 70:], made[:, 64:])
    first = DualPathBlock(64, 32, 96, 6, first=True, stride=2)
    assert first(images(9, channels=64)).shape == (2, 96 + 3 * 6, 5, 5)


@pytest.mark.parametrize("depth", [2, 28, 30])
def test_a_depth_of_no_resnext_is_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"`depth = 9n \+ 2, n >= 1` must hold.*got {depth}"):
        resnext(depth)


# VGG and the small networks


@pytest.mark.parametrize("size", [8, 28, 32, 33])
def test_vgg_takes_images_of_any_size(size: int) -> None:
    assert vgg(11, 1, 5)(images(size, channels=1)).shape == (2, 5)


def test_a_vgg_of_another_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one of \(11, 13, 16, 19\), but got 12"):
        vgg(12)


def test_a_depth_of_vgg_counts_the_convolutions_and_three_linear_layers() -> None:
    with torch.device("meta"):
        for depth in (11, 13, 16, 19):
            model = vgg(depth)
            convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
            pools = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]
            assert (len(convolutions) + 3, len(pools)) == (depth, 5)


def test_the_small_networks_have_five_layers_with_weights() -> None:
    for model in (fcn5(12), cnn5()):
        assert len(model) == 5
        assert len(list(model.parameters())) == 10


def test_an_mlp_keeps_the_scale_of_its_input() -> None:
    torch.manual_seed(0)
    out = mlp([500, 1000, 1000, 1000])(torch.randn(64, 500))
    assert out.std().item() == pytest.approx(1, rel=0.1)


def test_an_mlp_without_an_output_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`len\(widths\) >= 2` must hold.*widths=\(4,\)"):
        mlp([4])
    with pytest.raises(ConfigError, match=r"`widths\[1\]` must be an integer >= 1, but got 0"):
        mlp([4, 0])


# Chains of torchvision's models


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_chain_computes_what_the_original_does(name: str, training: bool) -> None:
    original = make_torchvision(name).double().train(training)
    other = copy.deepcopy(original)
    blocks = chain(other)
    assert type(blocks) is nn.Sequential
    x = images(64, dtype=torch.float64)

    out, grad = run_with_gradients(original, x)
    out_chain, grad_chain = run_with_gradients(blocks, x)

    assert torch.equal(out_chain, out)
    torch.testing.assert_close(grad_chain, grad, rtol=1e-9, atol=1e-12)
    ours = dict(other.named_parameters())
    assert set(map(id, blocks.parameters())) == set(map(id, ours.values()))
    for key, parameter in original.named_parameters():
        torch.testing.assert_close(ours[key].grad, parameter.grad, rtol=1e-9, atol=1e-12, msg=key)
    for key, buffer in other.named_buffers():  # the running statistics of batch norm
        assert torch.equal(buffer, original.get_buffer(key)), key


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "densenet121"])
def test_a_published_network_computes_the_same_as_a_chain(name: str) -> None:
    original = getattr(import_torchvision().models, name)(num_classes=7).eval()
    with torch.no_grad():
        assert torch.equal(chain(original)(images(64)), original(images(64)))


@pytest.mark.parametrize("name", TORCHVISION)
def test_loading_the_state_of_a_chain_changes_the_original(name: str) -> None:
    source, target = make_torchvision(name), make_torchvision(name)
    with torch.no_grad():
        for value in (*source.parameters(), *source.buffers()):
            value.add_(1)
    chain(target).load_state_dict(chain(source).state_dict())
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("name", TORCHVISION)
def test_chaining_leaves_the_original_as_it_was(name: str) -> None:
    original = make_torchvision(name)
    before = repr(original), list(original.state_dict())
    chain(original)
    assert (repr(original), list(original.state_dict())) == before


def test_a_chain_keeps_the_mode_and_the_frozen_modules_of_the_original() -> None:
    original = make_torchvision("densenet")
    frozen = original.get_submodule("features.norm0").eval()
    assert [m for m in chain(original).modules() if not m.training] == [frozen]
    assert not any(m.training for m in chain(original.eval()).modules())
    chain(original).train()
    assert frozen.training


def test_a_replaced_part_of_the_original_is_part_of_the_chain() -> None:
    original = make_torchvision("resnet_basic")
    original.maxpool = nn.Identity()
    original.fc = nn.Linear(512, 3)
    assert torch.equal(chain(original.eval())(images(32)), original(images(32)))


def test_a_backward_pass_block_by_block_gives_the_gradients_of_the_whole() -> None:
    for model in (chain(make_torchvision("densenet")), resnet_cifar(8), cnn5()):
        model.double().eval()
        x = images(32, dtype=torch.float64)
        out, grad = run_with_gradients(model, x)
        whole = [p.grad for p in model.parameters()]
        model.zero_grad()

        inputs = [x.clone().requires_grad_()]
        for block in model:
            inputs.append(block(inputs[-1]).detach().requires_grad_())
        assert torch.equal(inputs[-1], out)
        F.cross_entropy(inputs[-1], torch.tensor([0, 3])).backward()
        for index in reversed(range(len(model))):
            # Stage `index` computes its forward pass again, from the input that it kept.
            model[index](inputs[index]).backward(inputs[index + 1].grad)
        torch.testing.assert_close(inputs[0].grad, grad)
        torch.testing.assert_close([p.grad for p in model.parameters()], whole)


def test_every_block_of_a_chain_is_of_a_class_of_our_own_and_survives_pickling() -> None:
    for name in TORCHVISION:
        for block in chain(make_torchvision(name)):
            assert type(block).__module__ == "raylab.models.torchvision_chains"
            assert str(pickle.loads(pickle.dumps(block))) == str(block)  # noqa: S301


UNPICKLE = """
import pickle, sys
import raylab.models
assert "torchvision" not in sys.modules
block = pickle.load(sys.stdin.buffer)
assert "torchvision" in sys.modules
"""


def test_a_process_imports_torchvision_with_the_first_block_that_it_receives() -> None:
    block = pickle.dumps(chain(make_torchvision("resnet_basic"))[1])
    command = [sys.executable, "-W", "error", "-c", UNPICKLE]
    result = subprocess.run(command, input=block, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()


def test_a_sequential_is_a_chain_already() -> None:
    model = cnn5()
    assert chain(model) is model


def test_a_model_of_unknown_type_is_refused_with_the_way_out() -> None:
    class Doubled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class OwnForward(import_torchvision().models.ResNet):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return x

    own = OwnForward(import_torchvision().models.resnet.BasicBlock, [1, 1, 1, 1])
    models = import_torchvision().models
    auxiliary = models.googlenet(aux_logits=True, init_weights=False)
    for model in (nn.Linear(1, 1), Doubled(), own, models.SqueezeNet(), auxiliary):
        message = rf"got .*\.{type(model).__name__}; give an nn.Sequential or a list of blocks"
        with pytest.raises(ModelError, match=message):
            chain(model)


# The import of torchvision


def test_torchvision_is_imported_whole_and_once() -> None:
    torchvision = import_torchvision()
    assert torchvision is import_torchvision() is sys.modules["torchvision"]
    assert hasattr(torchvision.models, "resnet18")
    assert hasattr(torchvision.datasets, "CIFAR10")


MISSING_OPERATORS = """
import importlib, warnings
import torch
real = importlib.import_module
attempts = []
def import_module(name):
    attempts.append(name)
    if len(attempts) == 1:
        import sys, types
        sys.modules["torchvision.half"] = types.ModuleType("torchvision.half")
        raise RuntimeError("operator torchvision::nms does not exist")
    assert "torchvision.half" not in __import__("sys").modules
    assert hasattr(torch.ops.torchvision, "nms") and hasattr(torch.ops.torchvision, "qnms")
    warnings.warn("Failed to load image Python extension: no such file", UserWarning)
    return torch
from raylab._torchvision import import_torchvision
importlib.import_module = import_module
assert import_torchvision() is torch
assert attempts == ["torchvision"] * 2
def broken(name):
    raise RuntimeError("something else")
importlib.import_module = broken
try:
    import_torchvision()
except RuntimeError as error:
    assert str(error) == "something else"
else:
    raise AssertionError
"""


def test_missing_operators_are_declared_and_the_import_is_tried_again() -> None:
    # In a process of its own: a half-imported torchvision cannot be undone.
    command = [sys.executable, "-W", "error", "-c", MISSING_OPERATORS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
