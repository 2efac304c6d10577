"""Scalars for TensorBoard, read back from the event file."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from raylab.records import EventWriter

pytestmark = pytest.mark.unit


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read TFRecords: length (8 bytes), its checksum (4), an event, its checksum (4)."""
    (file,) = folder.glob("events.out.tfevents.*")
    data = file.read_bytes()
    found: dict[str, list[tuple[int, float]]] = {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        data = data[16 + length :]
    return found


def test_numbers_of_rows_are_scalars_at_their_steps(tmp_path):
    rows = [
        {"step": 10, "epoch": 1, "loss": 0.5, "test_accuracy": None, "stage_updates": [3, 4]},
        {"step": 20, "epoch": 2, "loss": 0.25, "test_accuracy": 0.75, "stage_updates": [5, 6]},
    ]
    with EventWriter(tmp_path / "tensorboard") as events:
        events.add(rows[:1])
        events.add(rows[1:])
    found = scalars(tmp_path / "tensorboard")
    assert found == {
        "epoch": [(10, 1.0), (20, 2.0)],
        "train/loss": [(10, 0.5), (20, 0.25)],
        "test/accuracy": [(20, 0.75)],
        "updates/stage0": [(10, 3.0), (20, 5.0)],
        "updates/stage1": [(10, 4.0), (20, 6.0)],
    }


def test_nothing_is_written_where_nobody_asked(tmp_path):
    with EventWriter(None) as events:
        events.add([{"step": 1, "loss": 0.5}])
    assert list(tmp_path.iterdir()) == []
