"""What is known of the features at a cut, what is refused there, and the boxes that follow."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.pipeline.program import Feedback, StageProgram
from actors.pipeline.wiring import links
from actors.wires.link import Link
from raylab.algorithms.pipeline import PIPELINE_METHODS
from raylab.algorithms.pipeline.dgl import AuxiliaryClassifier
from raylab.algorithms.pipeline.dni import Synthesizer
from raylab.algorithms.stage.cut_features import CutFeatures, companion
from raylab.errors import DataError, ModelError
from raylab.planner import cut_features, trace_blocks
from tests.reference.networks import batches, conv_bn64

pytestmark = pytest.mark.unit

IMAGE = CutFeatures(channels=3, image=True, classes=4, dtype=torch.float64)
FLAT = CutFeatures(channels=5, image=False, classes=4, dtype=torch.float32)


def found(method, blocks, cuts, x, y, loss_fn=F.cross_entropy):
    names = [f"block{i}" for i in range(len(blocks))]
    traces = trace_blocks(blocks, names, (x,), (y,), loss_fn)
    return cut_features(PIPELINE_METHODS[method], traces, cuts, names, (y,))


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Join(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] + pair[1]


# ------------------------------------------------------------------ features


@pytest.mark.parametrize("method", ["dni", "dgl"])
def test_the_features_at_a_cut_are_those_of_the_block_before_it(method):
    x, y = batches("conv", 1)[0]
    first, second, last = found(method, list(conv_bn64()), [3, 7], x, y)
    assert first == CutFeatures(channels=5, image=True, classes=4, dtype=torch.float64)
    assert second == CutFeatures(channels=24, image=False, classes=4, dtype=torch.float64)
    assert last is None
    assert pickle.loads(pickle.dumps(first)) == first  # noqa: S301


@pytest.mark.parametrize("method", ["bp", "adl"])
def test_other_methods_need_to_know_nothing_of_their_cuts(method):
    blocks = [Twice(), Join(), nn.Linear(3, 4)]
    labels = torch.zeros(2, dtype=torch.long)
    assert found(method, blocks, [1, 2], torch.ones(2, 3), labels) == [None] * 3


@pytest.mark.parametrize("method", ["dni", "dgl"])
@pytest.mark.parametrize(
    ("blocks", "cut", "said"),
    [
        ([Twice(), Join(), nn.Linear(3, 4)], 1, "'block0' and 'block1' there is .*2, 3.*2, 3"),
        ([nn.Unflatten(1, (3, 1)), nn.Flatten(), nn.Linear(3, 4)], 1, r"there is \(2, 3, 1\)"),
    ],
)
def test_other_features_than_vectors_and_images_are_refused_at_their_cut(method, blocks, cut, said):
    labels = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ModelError, match=f"{method} takes features .*{said}"):
        found(method, blocks, [cut], torch.ones(2, 3), labels)


@pytest.mark.parametrize("method", ["dni", "dgl"])
def test_outputs_that_are_no_class_scores_are_refused(method):
    blocks = [nn.Linear(3, 4), nn.Unflatten(1, (4, 1))]
    labels = torch.zeros(2, 4, 1)
    with pytest.raises(ModelError, match=r"\(N, classes\).*'block1' has \(2, 4, 1\)"):
        found(method, blocks, [1], torch.ones(2, 3), labels, F.mse_loss)


def test_labels_that_are_no_classes_are_refused_by_dni_alone():
    blocks, x, labels = [nn.Linear(3, 4), nn.Linear(4, 4)], torch.ones(2, 3), torch.ones(2, 4)
    with pytest.raises(DataError, match=r"cut before block 'block1' .* \(2, 4\) float32"):
        found("dni", blocks, [1], x, labels, F.mse_loss)
    assert found("dgl", blocks, [1], x, labels, F.mse_loss)[0] is not None
    assert found("dni", blocks, [], x, labels, F.mse_loss) == [None]


# ------------------------------------------------------------------ the networks there


@pytest.mark.parametrize("make", [Synthesizer, AuxiliaryClassifier])
@pytest.mark.parametrize("cut", [IMAGE, FLAT])
def test_a_companion_is_drawn_from_its_key_alone(make, cut):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = companion(make, cut, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other, third = companion(make, cut, 5).state_dict(), companion(make, cut, 6).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], third[name]) for name in one)
    assert {t.dtype for t in one.values() if t.is_floating_point()} == {cut.dtype}


@pytest.mark.parametrize(("cut", "shape"), [(IMAGE, (6, 3, 4, 4)), (FLAT, (6, 5))])
def test_a_synthesizer_begins_with_zero_and_sees_features_and_labels(cut, shape):
    features = torch.randn(shape, dtype=cut.dtype, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    net = companion(Synthesizer, cut, 3)
    assert torch.equal(net(features, labels), torch.zeros(shape, dtype=cut.dtype))
    nn.init.normal_(net.layers[-1].weight, generator=torch.Generator().manual_seed(2))
    made = net(features, labels)
    assert made.shape == shape
    assert not torch.allclose(net(features, labels.flip(0)), made)
    assert not torch.allclose(net(features.flip(0), labels), made)
    # An ignored index is no class: not an error, and not class 0.
    assert not torch.allclose(net(features, torch.where(labels == 0, -100, labels)), made)


# ------------------------------------------------------------------ boxes


def programs(feedback: Feedback, stages: int = 4, late: int = 1) -> list[StageProgram]:
    return [
        StageProgram(
            stage=k,
            stages=stages,
            delay=0,
            feedback=feedback,
            labelled=True,
            link_delay=late if k < stages - 1 else 0,
        )
        for k in range(stages)
    ]


def by_name(found: list[Link]) -> dict[str, int]:
    return {link.name: link.capacity for link in found}


def test_a_stage_with_a_loss_of_its_own_has_labels_and_no_gradients():
    names = by_name(links(programs("none")))
    assert not any(name.startswith("gradients") for name in names)
    assert [name for name in names if name.startswith("labels")] == [
        f"labels 0->{k}" for k in range(4)
    ]


def test_corrections_that_come_later_have_more_room():
    names = by_name(links(programs("target", late=3)))
    assert [names[f"gradients {k + 1}->{k}"] for k in range(3)] == [4, 4, 4]
    assert [names[f"features {k}->{k + 1}"] for k in range(3)] == [4, 4, 4]


@pytest.mark.parametrize(("feedback", "late"), [("none", 0), ("target", 0), ("target", 3)])
def test_labels_have_room_for_all_that_may_be_on_the_way_to_their_stage(feedback, late):
    names = by_name(links(programs(feedback, late=late)))
    room = [names[f"labels 0->{k}"] for k in range(4)]
    features = [names[f"features {k}->{k + 1}"] for k in range(3)]
    # One in the hands of every stage up to k, and the boxes between them.
    assert room == [k + 1 + sum(features[:k]) for k in range(4)]
    assert all(later > earlier for earlier, later in itertools.pairwise(room))


def test_methods_that_wait_for_gradients_have_one_box_of_labels():
    plan = [StageProgram(stage=k, stages=3, delay=2 - k) for k in range(3)]
    names = by_name(links(plan))
    assert [name for name in names if name.startswith("labels")] == ["labels 0->2"]
    assert names["labels 0->2"] == 4
