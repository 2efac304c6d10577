"""Tensors carried beside the wire by torch.distributed, here gloo between two processes."""

from __future__ import annotations

import pytest
import torch
from ray.train import RunConfig
from torch.nn import functional as F

from raylab import PipelineTrainer, Result
from tests.helpers import torch_optimiser
from tests.reference.networks import batches, conv_bn64
from tests.reference.pipeline import Optimiser

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

SGD = Optimiser(kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-2)


def fit(path, **options) -> Result:
    model, data = conv_bn64(1), batches("conv", 6, ragged=True, seed=3)
    trainer = PipelineTrainer(
        model,
        F.cross_entropy,
        optimizer=torch_optimiser(SGD),
        run_config=RunConfig(storage_path=str(path)),
        resources_per_stage={"CPU": 0.1},
        stages=3,
        **options,
    )
    return trainer.fit(data, epochs=2, test=data[:2], report_every=2, progress=False)


@pytest.mark.parametrize("method", ["adl", "1f1b"])
def test_a_run_whose_tensors_are_carried_beside_the_wire_is_bit_identical(method, tmp_path):
    carried = fit(tmp_path / "carried", method=method, carrier="distributed")
    inline = fit(tmp_path / "inline", method=method, carrier="inline")
    for name, tensor in inline.model.state_dict().items():
        assert torch.equal(carried.model.state_dict()[name], tensor)
    figures = ["loss", "test_loss", "accuracy", "stage_features_out_bytes"]
    for there, here in zip(carried.table.to_pylist(), inline.table.to_pylist(), strict=True):
        assert [there.get(key) for key in figures] == [here.get(key) for key in figures]
