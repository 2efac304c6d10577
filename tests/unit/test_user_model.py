"""A user's modules of unusual kinds: they train as they would alone, or are told before."""

from __future__ import annotations

import copy
import functools
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ray import cloudpickle
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from actors.checkpoint_plan import CheckpointPlan
from raylab import AveragingTrainer, PipelineTrainer
from raylab.algorithms.averaging.states import mean_state
from raylab.algorithms.stage.module_copy import copied_module
from raylab.algorithms.stage.state import merged_state
from raylab.drivers.averaging.check import check_fits
from raylab.drivers.averaging.course import Course
from raylab.drivers.averaging.settings import AveragingSettings
from raylab.drivers.averaging.simulated import Replicas
from raylab.drivers.pipeline.network import Network
from raylab.drivers.user_model import own_model
from raylab.errors import ModelError
from raylab.records import RunFolder, Storage
from tests.helpers import run_pipeline
from tests.reference.pipeline import Optimiser

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
]

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9)


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=draws), torch.randint(3, (8,), generator=draws))
        for _ in range(count)
    ]


class Counting(nn.Module):
    """Counts its training batches in an extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.count = 0
        self.sums = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type != "meta":
            self.count += 1
            self.sums = self.sums + 1.0
        out: Tensor = self.linear(x)
        return out

    def get_extra_state(self) -> dict[str, Any]:
        return {"count": self.count, "sums": self.sums}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.count, self.sums = state["count"], state["sums"]


def chain(first: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 3))


def alone(model: nn.Sequential, data: list[tuple[Tensor, Tensor]]) -> nn.Sequential:
    model = copied_module(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def used(model: nn.Sequential) -> nn.Sequential:
    model(torch.ones(2, 6))
    return model


KINDS = {
    "weight_norm": lambda: chain(parametrizations.weight_norm(nn.Linear(6, 8))),
    "spectral_norm": lambda: chain(parametrizations.spectral_norm(nn.Linear(6, 8))),
    "orthogonal": lambda: chain(parametrizations.orthogonal(nn.Linear(6, 8))),
    "older weight_norm": lambda: chain(nn.utils.weight_norm(nn.Linear(6, 8))),
    "older spectral_norm, used": lambda: used(chain(nn.utils.spectral_norm(nn.Linear(6, 8)))),
    "pruned": lambda: used(chain(prune.l1_unstructured(nn.Linear(6, 8), "weight", amount=0.5))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_made_from_others_train_as_they_do_alone(kind):
    torch.manual_seed(0)
    model = KINDS[kind]().double()
    data = [(x.double(), y) for x, y in batches()]
    # As a stage travels: pickled by the driver, read by an actor.
    travelled = cloudpickle.loads(cloudpickle.dumps(Network(model).stages([])[0]))
    expected = alone(model, data)
    found = run_pipeline(travelled, method="bp", cuts=[2], epochs=[data], optimiser=SGD).model
    assert list(found.state_dict()) == list(model.state_dict())
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["bp", "adl", "fr"])
def test_an_extra_state_comes_back_with_the_trained_model(method, tmp_path):
    model = chain(Counting())
    run = run_pipeline(model, method=method, cuts=[2], epochs=[batches()] * 2, optimiser=SGD)
    assert run.model[0].count == 12
    assert model[0].count == 0
    folder = RunFolder(Storage.at(tmp_path), "run")
    written = folder.write_weights(run.model.state_dict())
    saved = torch.load(str(written.local / "model.pt"), weights_only=True)
    assert saved["0._extra_state"]["count"] == 12


def test_a_stage_goes_on_with_its_extra_state_also_as_part_of_another():
    saved: dict[int, list[Any]] = {}
    plan = CheckpointPlan(every_batches=4)

    def save(step: int, part: dict[str, Any]) -> None:
        saved.setdefault(step, []).append(copy.deepcopy(part))

    model = chain(Counting())
    run = functools.partial(run_pipeline, method="adl", epochs=[batches()], optimiser=SGD)
    run(model, cuts=[2], checkpoints=plan, save=save)
    parts = sorted(saved[4], key=lambda part: part["stage"])
    again = run(chain(Counting()), cuts=[2], checkpoints=plan, parts_saved=parts)
    assert again.model[0].count == 6
    assert float(again.model[0].sums) == 6.0
    whole = merged_state([part["rule"] for part in parts])
    assert whole["extra"]["0._extra_state"]["count"] == 4


def test_averaging_keeps_the_first_replicas_extra_state():
    plan = Course(
        settings=AveragingSettings(method="local_sgd", least=2, most=2, tau=2),
        model=chain(Counting()),
        loss_fn=F.cross_entropy,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        schedule=None,
        batches=batches(),
        test=None,
        epochs=2,
    )
    replicas = Replicas(plan, 2)
    replicas.loop.run()
    assert replicas.loop.model[0].count == 6
    states = [{"0._extra_state": torch.tensor(1.0)}, {"0._extra_state": torch.tensor(3.0)}]
    assert mean_state(states) == states[0]


class Unsafe(Counting):
    def get_extra_state(self) -> Any:
        return {"lock": self.linear}


class Locked(nn.Linear):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__(6, 8)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (lambda: torch.jit.script(nn.Linear(6, 8)), r"'0' is a scripted one.*torch\.jit\.script"),
        (lambda: nn.LazyLinear(8), r"'weight' of '0' \(LazyLinear\).*call the model once"),
        (Unsafe, r"extra state.*'0' \(Unsafe\).*lock"),
        (Locked, r"copied and pickled, but '0' \(Locked\) is not.*__getstate__"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("trainer", [PipelineTrainer, AveragingTrainer])
def test_a_module_that_cannot_be_sent_or_saved_is_named_before_ray_starts(first, message, trainer):
    with pytest.raises(ModelError, match=message):
        trainer(chain(first()), nn.CrossEntropyLoss()).fit(batches(), progress=False)


def test_an_extra_state_that_becomes_unsafe_is_left_out_and_told(tmp_path):
    folder = RunFolder(Storage.at(tmp_path), "run")
    with pytest.warns(UserWarning, match=r"model\.pt is without 'a\._extra_state'"):
        written = folder.write_weights({"w": torch.ones(2), "a._extra_state": object()})
    saved = torch.load(str(written.local / "model.pt"), weights_only=True)
    assert list(saved) == ["w"]


class Masked(nn.Module):
    """Reads values, and a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.scale = torch.full((3,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) * self.scale
        return out if out.sum().item() == out.sum().item() else out.exp()


def test_losses_and_models_that_hold_tensors_or_read_values_fit():
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3))
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    check_fits(Masked(), weighted, optimizer, batches(1), None)
    several = [(torch.randn(4, 6), torch.ones(4, 3))]
    positive = nn.BCEWithLogitsLoss(pos_weight=torch.ones(3))
    check_fits(Masked(), positive, optimizer, several, None)


def test_attention_with_a_mask_of_the_host_fits():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
            out: Tensor = self.layer(x, src_mask=mask)
            return out.mean(dim=1)

    data = [(torch.randn(3, 5, 4), torch.tensor([0, 1, 2]))]
    check_fits(Attention(), F.cross_entropy, functools.partial(torch.optim.SGD, lr=0.1), data, None)


def test_a_copy_of_a_model_shares_nothing_with_it():
    model = KINDS["older weight_norm"]()
    copied = own_model(used(model))
    assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()
