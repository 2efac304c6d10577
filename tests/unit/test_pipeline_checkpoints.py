"""Where the stages of a pipeline go on."""

from __future__ import annotations

from typing import Any

import pytest

from raylab.drivers.pipeline import checkpointing
from raylab.drivers.pipeline.checkpointing import RunCheckpoints
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.records import CheckpointStore, RunFolder, Storage

pytestmark = pytest.mark.unit

LOOP = {"batches": 8, "applied": 8, "window": 8, "in_window": 0, "open": [], "uncorrected": []}


def part(stage: int) -> dict[str, Any]:
    own = {"source": {"position": 8}} if stage == 0 else {}
    return {"rule": {"stage": stage}, "loop": LOOP, "figures": {"of": stage}, **own}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_stages_cut_in_another_way_share_the_model_in_whatever_order_its_parts_came(
    order, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        checkpointing, "merged_state", lambda rules: {"of": [rule["stage"] for rule in rules]}
    )
    storage = Storage.at(tmp_path)
    store = CheckpointStore(storage.child("checkpoints"))
    settings = PipelineSettings(method="ddg", stages=2)
    checkpoints = RunCheckpoints(store, RunFolder(storage, "run"), settings)
    checkpoints.begin([2], [None], None)
    written = [(8, store.write_part(8, f"stage-{k}", part(k))) for k in order]
    checkpoints.took(written, [])
    first, *others = checkpoints.begin([1, 2], [None, None], checkpoints.newest())
    assert first.resume is not None
    found = first.resume()
    assert found["rule"]["of"] == [0, 1]
    assert found["source"] == {"position": 8}
    for each in others:
        assert each.resume is not None
        assert "source" not in each.resume()
