"""The user's model as a chain: copied, cut, and put together again."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from raylab._torchvision import import_torchvision
from raylab.drivers.pipeline.network import Network
from raylab.errors import ModelError

pytestmark = pytest.mark.unit


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            entry=nn.Linear(4, 5),
            norm=nn.BatchNorm1d(5),
            squash=nn.Tanh(),
            exit=nn.Linear(5, 3),
        )
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def moved(stages: list[nn.Sequential]) -> list[dict[str, Tensor]]:
    """States of other processes: as the stages', with every number moved."""
    return [
        {name: tensor + 1 for name, tensor in copy.deepcopy(stage).state_dict().items()}
        for stage in stages
    ]


def test_the_model_passed_in_is_left_as_it_is():
    model = perceptron().eval()
    before = copy.deepcopy(model.state_dict())
    network = Network(model)
    for stage in network.stages([1, 3]):
        stage.train()
        for tensor in stage.state_dict().values():
            tensor.zero_()
    network.trained(moved(network.stages([1, 3])))
    assert_same(model.state_dict(), before)
    assert not any(module.training for module in model.modules())


def test_two_networks_of_one_model_share_nothing():
    model = perceptron()
    first, second = Network(model), Network(model)
    first.blocks[0].weight.data.zero_()
    assert torch.equal(second.blocks[0].weight, model.entry.weight)


def test_blocks_have_the_names_of_the_chain():
    network = Network(perceptron())
    assert network.names == ["entry", "norm", "squash", "exit"]
    assert [type(b).__name__ for b in network.blocks] == ["Linear", "BatchNorm1d", "Tanh", "Linear"]
    stages = network.stages([2])
    assert list(stages[0].state_dict()) == [
        "entry.weight",
        "entry.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert list(stages[1].state_dict()) == ["exit.weight", "exit.bias"]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_blocks_is_a_chain(kind):
    blocks = kind([nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)])
    network = Network(blocks)
    assert network.names == ["0", "1", "2"]
    assert network.blocks[0] is not blocks[0]
    trained = network.trained(moved(network.stages([1])))
    assert isinstance(trained, nn.Sequential)
    assert_same(
        trained.state_dict(), {n: t + 1 for n, t in nn.Sequential(*blocks).state_dict().items()}
    )


@pytest.mark.parametrize("cuts", [[], [1], [2], [1, 2, 3], [1, 3]])
def test_stages_compute_one_after_another_what_the_model_computes(cuts):
    model = perceptron().eval()
    network = Network(model)
    stages = network.stages(cuts)
    assert len(stages) == len(cuts) + 1
    x = torch.randn(6, 4)
    y = x
    for stage in stages:
        y = stage.eval()(y)
    assert torch.equal(y, model(x))


@pytest.mark.parametrize("cuts", [[], [1], [1, 3]])
def test_the_states_of_the_stages_become_the_trained_model(cuts):
    model = perceptron()
    network = Network(model)
    states = moved(network.stages(cuts))
    trained = network.trained(states)
    assert type(trained) is type(model)
    assert_same(trained.state_dict(), {n: t + 1 for n, t in model.state_dict().items()})


def test_a_state_that_lacks_a_stage_is_not_taken_for_the_whole():
    network = Network(perceptron())
    states = moved(network.stages([2]))
    with pytest.raises(RuntimeError, match=r"Missing key.*exit\.weight"):
        network.trained(states[:1])


@pytest.mark.parametrize(
    "cuts", [[0], [4], [-1], [2, 1], [1, 1], [1, 9]], ids=lambda cuts: ",".join(map(str, cuts))
)
def test_cuts_must_ascend_within_the_chain(cuts):
    with pytest.raises(ModelError, match=r"ascend within 1\.\.3"):
        Network(perceptron()).check_cuts(cuts)


@pytest.mark.parametrize("cuts", [[], [1], [3], [1, 2, 3]])
def test_cuts_within_the_chain_are_accepted(cuts):
    Network(perceptron()).check_cuts(cuts)


def test_a_module_that_stands_in_two_places_keeps_both():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    network = Network(model)
    assert network.names == ["0", "1", "2", "3"]
    network.check_cuts([2])
    stages = network.stages([2])
    assert [len(stage) for stage in stages] == [2, 2]
    x = torch.randn(3, 4)
    assert torch.equal(stages[1](stages[0](x)), model(x))
    assert_same(
        network.trained(moved(stages)).state_dict(),
        {n: t + 1 for n, t in model.state_dict().items()},
    )


def tied() -> nn.Sequential:
    model = nn.Sequential(
        OrderedDict(
            low=nn.Linear(4, 4), between=nn.Tanh(), high=nn.Linear(4, 4), top=nn.Linear(4, 2)
        )
    )
    model.high.weight = model.low.weight
    return model


@pytest.mark.parametrize("cuts", [[1], [2], [1, 2], [2, 3]])
def test_weights_shared_across_a_cut_are_an_error_that_names_the_blocks(cuts):
    with pytest.raises(ModelError, match="blocks 'low' and 'high' share weights"):
        Network(tied()).check_cuts(cuts)


def test_weights_shared_within_a_stage_stay_shared():
    network = Network(tied())
    network.check_cuts([3])
    states = moved(network.stages([3]))
    trained = network.trained(states)
    assert trained.low.weight is trained.high.weight
    assert torch.equal(trained.low.weight, states[0]["low.weight"])


def test_statistics_shared_across_a_cut_are_an_error_too():
    norm = nn.BatchNorm1d(4, affine=False)
    network = Network(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm))
    with pytest.raises(ModelError, match="blocks '1' and '3' share weights"):
        network.check_cuts([2])
    network.check_cuts([1])


class Skipping(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Renamed(nn.Sequential):
    """A chain under another name, with the forward of a chain."""


def test_a_sequential_with_a_forward_of_its_own_is_refused():
    with pytest.raises(ModelError, match="Skipping"):
        Network(Skipping(nn.Linear(4, 4), nn.Tanh()))


def test_a_subclass_of_sequential_stays_what_it_is():
    network = Network(Renamed(nn.Linear(4, 4), nn.Tanh()))
    assert type(network.trained(moved(network.stages([1])))) is Renamed


@pytest.mark.parametrize(
    "model", [nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)]), "resnet", None, [nn.Tanh(), 3]]
)
def test_what_is_not_a_chain_is_refused(model):
    with pytest.raises(ModelError, match=r"must be an nn\.Sequential"):
        Network(model)


@pytest.mark.parametrize("model", [nn.Sequential(), []])
def test_a_chain_needs_a_block(model):
    with pytest.raises(ModelError, match="at least one block"):
        Network(model)


def test_a_torchvision_network_is_cut_as_it_is_and_comes_back_as_it_was():
    models = import_torchvision().models
    torch.manual_seed(0)
    # ResNet-18 in all but the width of its last layer.
    model = models.resnet18(weights=None, num_classes=5)
    network = Network(model)
    assert network.names[0] == "stem"
    assert network.names[-1] == "head"
    assert len(network.blocks) == 10
    network.check_cuts([3, 7])
    stages = network.stages([3, 7])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = stages[2].eval()(stages[1].eval()(stages[0].eval()(x)))
        assert torch.equal(found, model.eval()(x))
    states = [{n: t + 1 for n, t in stage.state_dict().items()} for stage in stages]
    trained = network.trained(states)
    assert type(trained) is models.ResNet
    assert_same(trained.state_dict(), {n: t + 1 for n, t in model.state_dict().items()})
