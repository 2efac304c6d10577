"""Rows out of the stages' reports, and the files that a run leaves."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from raylab.errors import ConfigError, DataError
from raylab.records import RowMerger, RunFolder, Storage, new_run_name

pytestmark = pytest.mark.unit

# ----------------------------------------------------------------- rows


def report(stage: int, step: int = 10, epoch: int | None = 0, **figures: Any) -> dict[str, Any]:
    row = {
        "stage": stage,
        "step": step,
        "epoch": epoch,
        "time_s": 5.0,
        "trained_s": 2.0,
        "blocked_s": 0.5,
        "updates": 4,
        "gradients": 8,
        "staleness_sum": 0,
        "staleness_max": 0,
        "staleness_counts": [8],
        "graphs_peak": 1,
        "inputs_peak": 1,
        "activation_bytes_peak": 100,
        "version_bytes_peak": 10,
        "mailbox_bytes_peak": 1,
        "features_in_messages": 10,
        "features_in_bytes": 1000,
        "features_in_peak_depth": 1,
    }
    return {**row, **figures}


def test_a_row_is_made_only_when_every_stage_has_reported():
    merger = RowMerger(3)
    assert merger.add([report(2)]) == []
    assert merger.add([report(0)]) == []
    (row,) = merger.add([report(1)])
    assert row["step"] == 10
    assert merger.add([]) == []


def test_reports_of_different_moments_do_not_make_a_row():
    merger = RowMerger(2)
    assert merger.add([report(0, step=10), report(1, step=20)]) == []
    assert merger.add([report(0, step=20, epoch=None)]) == []
    assert [row["step"] for row in merger.add([report(1, step=10)])] == [10]


def test_rows_come_in_the_order_of_their_steps_with_an_epochs_own_row_last():
    merger = RowMerger(2)
    moments = [(20, 1), (10, 0), (10, None), (5, None)]
    merger.add([report(0, step=step, epoch=epoch) for step, epoch in moments])
    rows = merger.add([report(1, step=step, epoch=epoch) for step, epoch in moments])
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (5, None),
        (10, None),
        (10, 1),
        (20, 2),
    ]


def test_rows_do_not_depend_on_the_order_of_reports():
    reports = [report(k, step=s, staleness_sum=k * s) for k in range(3) for s in (1, 2)]
    forwards, backwards = RowMerger(3).add(reports), RowMerger(3).add(reports[::-1])
    assert forwards == backwards


def test_staleness_is_a_mean_over_gradients_and_not_over_stages():
    stages = [
        report(0, gradients=2, staleness_sum=12, staleness_max=7),
        report(1, gradients=6, staleness_sum=0),
    ]
    (row,) = RowMerger(2).add(stages)
    assert row["staleness_mean"] == 12 / 8
    assert row["staleness_max"] == 7
    assert row["stage_staleness_mean"] == [6.0, 0.0]
    assert row["stage_gradients"] == [2, 6]


def test_the_histogram_of_staleness_adds_up_over_stages_of_different_ages():
    stages = [report(k, staleness_counts=c) for k, c in enumerate([[1, 0, 7], [2, 6], [8], []])]
    (row,) = RowMerger(4).add(stages)
    assert row["staleness_counts"] == [11, 6, 7]
    assert row["stage_staleness_counts"] == [[1, 0, 7], [2, 6], [8], []]


def test_a_row_without_gradients_has_no_staleness():
    (row,) = RowMerger(1).add([report(0, gradients=0, trained_s=0.0)])
    assert row["staleness_mean"] == 0.0
    assert row["stage_staleness_mean"] == [0.0]
    assert row["samples_per_s"] == 0.0


def test_loss_accuracy_and_speed_are_those_of_the_last_stage():
    figures = {"loss": 0.7, "accuracy": 0.6, "test_loss": 0.8, "test_accuracy": 0.5}
    last = report(1, samples=64, trained_s=4.0, learning_rate=0.1, updates=9, **figures)
    (row,) = RowMerger(2).add([last, report(0, learning_rate=0.2)])
    assert {name: row[name] for name in figures} == figures
    assert row["samples"] == 64
    assert row["samples_per_s"] == 16.0
    assert (row["learning_rate"], row["updates"]) == (0.1, 9)
    assert row["stage_updates"] == [4, 9]


def test_a_row_without_training_or_a_test_has_empty_places():
    (row,) = RowMerger(1).add([report(0)])
    assert [row[name] for name in ("loss", "accuracy", "test_loss", "samples")] == [None] * 4
    assert row["learning_rate"] is None


def test_messages_and_bytes_add_up_over_boxes_and_stages():
    above = report(
        1,
        blocked_s=1.5,
        labels_in_messages=10,
        labels_in_bytes=80,
        labels_in_peak_depth=3,
        gradients_out_messages=99,
        gradients_out_bytes=9999,
    )
    (row,) = RowMerger(2).add([report(0), above])
    assert (row["messages"], row["bytes"]) == (30, 2080)
    assert row["blocked_s"] == 1.0
    assert row["stage_blocked_s"] == [0.5, 1.5]
    assert row["stage_mailbox_peak_depth"] == [1, 3]


# ----------------------------------------------------------------- files


def test_a_run_gets_a_folder_of_its_own_with_the_storage_made(tmp_path):
    folder = RunFolder(Storage.at(tmp_path / "deep" / "runs"), "one")
    assert folder.path == tmp_path / "deep" / "runs" / "one"
    assert folder.path.is_dir()


def test_a_storage_with_a_tilde_is_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder(Storage.at("~/runs"), "one").path == tmp_path / "runs" / "one"


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    RunFolder(Storage.at(tmp_path), "one").write_config({"method": "adl"})
    with pytest.raises(ConfigError, match="holds a run: choose another name"):
        RunFolder(Storage.at(tmp_path), "one")
    assert (tmp_path / "one" / "config.yaml").read_text() == "method: adl\n"


def test_a_folder_without_a_run_may_be_used(tmp_path):
    (tmp_path / "one").mkdir()
    assert RunFolder(Storage.at(tmp_path), "one").path.is_dir()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/", "../a"])
def test_a_name_must_be_one_plain_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="one plain folder name"):
        RunFolder(Storage.at(tmp_path), name)
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        RunFolder(Storage.at(tmp_path / "file"), "one")


def test_a_name_that_the_file_system_refuses_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError):
        RunFolder(Storage.at(tmp_path), "x" * 300)


def test_the_configuration_reads_back_in_its_order(tmp_path):
    config = {"method": "adl", "delay": [2, 1], "name": "ñ", "lr": 0.1, "a": {"deep": None}}
    folder = RunFolder(Storage.at(tmp_path), "one")
    folder.write_config(config)
    read = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    assert read == config
    assert list(read) == list(config)


def test_rows_read_back_from_parquet_with_the_columns_of_all_rows(tmp_path):
    folder = RunFolder(Storage.at(tmp_path), "one")
    rows = [
        {"step": 1, "loss": 0.5, "stage_updates": [1, 2], "test_loss": None},
        {"step": 2, "loss": math.nan, "stage_updates": [3, 4], "late": 7},
    ]
    table = folder.write_metrics(rows)
    read = pq.read_table(folder.path / "metrics.parquet")
    assert read.schema == table.schema
    assert read.num_rows == table.num_rows == 2
    assert read.column_names == ["step", "loss", "stage_updates", "test_loss", "late"]
    assert read["late"].to_pylist() == [None, 7]
    assert read["stage_updates"].to_pylist() == [[1, 2], [3, 4]]
    assert math.isnan(read["loss"].to_pylist()[1])


def test_a_run_without_rows_has_an_empty_table(tmp_path):
    folder = RunFolder(Storage.at(tmp_path), "one")
    assert folder.write_metrics([]).num_rows == 0
    assert pq.read_table(folder.path / "metrics.parquet").num_rows == 0


def test_the_result_reads_back_with_versions_and_commit(tmp_path):
    folder = RunFolder(Storage.at(tmp_path), "one")
    content = folder.write_result({"kind": "pipeline", "loss": 0.25})
    read = json.loads((folder.path / "result.json").read_text())
    assert read == content
    assert (read["kind"], read["loss"]) == ("pipeline", 0.25)
    assert read["versions"]["torch"] == torch.__version__
    assert {"python", "ray", "pyarrow"} <= set(read["versions"])
    assert read["commit"] is None or len(read["commit"]) == 40
    assert read["machine"]


def test_a_result_without_a_finite_loss_is_still_json(tmp_path):
    folder = RunFolder(Storage.at(tmp_path), "one")
    folder.write_result({"loss": math.nan, "metrics": {"most": [math.inf, (-math.inf, 1.5)]}})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((folder.path / "result.json").read_text(), parse_constant=refuse)
    assert read["loss"] == "nan"
    assert read["metrics"] == {"most": ["inf", ["-inf", 1.5]]}


def test_weights_read_back_from_the_final_checkpoint(tmp_path):
    state = {"0.weight": torch.randn(2, 3), "0.steps": torch.tensor(3)}
    folder = RunFolder(Storage.at(tmp_path), "one").write_weights(state)
    assert folder.local == tmp_path / "one" / "checkpoints" / "final"
    read = torch.load(folder.local / "model.pt", weights_only=True)
    assert list(read) == list(state)
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_writing_again_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    with RunFolder(Storage.at(tmp_path), "one") as folder:
        folder.write_config({"method": "ddg"})
        folder.write_config({"method": "adl"})
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {"method": "adl"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_is_said_by_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        RunFolder(Storage.at(tmp_path), "one").write_config({"method": "ddg"})
    finally:
        os.umask(before)
    assert (tmp_path / "one" / "config.yaml").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError("the disk is full"), DataError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_write_that_fails_midway_leaves_the_old_file_and_no_half_one(
    tmp_path, monkeypatch, error, told, first
):
    folder = RunFolder(Storage.at(tmp_path), "one")
    if not first:
        folder.write_weights({"w": torch.ones(2)})

    def save(state, file):
        file.write(b"half of")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(told):
        folder.write_weights({"w": torch.zeros(2)})
    final = folder.path / "checkpoints" / "final"
    assert [path.name for path in final.iterdir()] == ([] if first else ["model.pt"])
    if not first:
        assert torch.equal(torch.load(final / "model.pt", weights_only=True)["w"], torch.ones(2))


def test_a_runs_folder_is_opened_again_with_what_it_holds(tmp_path):
    folder = RunFolder(Storage.at(tmp_path), "one")
    folder.write_config({"method": "adl", "clip_norm": math.inf})
    again = RunFolder.existing(Storage.at(tmp_path / "one"))
    assert again.path == folder.path
    assert again.read_config() == {"method": "adl", "clip_norm": math.inf}
    assert again.read_metrics() == []
    for count in (1, 2):
        rows = [{"step": step, "loss": 0.5, "stage_updates": [step]} for step in range(count)]
        folder.write_metrics(rows)
        assert again.read_metrics() == rows


@pytest.mark.parametrize(("files", "held"), [([], "nothing"), (["notes"], "notes")])
def test_a_folder_that_is_not_a_runs_is_not_opened(tmp_path, files, held):
    for name in files:
        (tmp_path / name).write_text("")
    rule = f"must hold config.yaml, .* but {tmp_path} holds {held}: check the path"
    with pytest.raises(ConfigError, match=rule):
        RunFolder.existing(Storage.at(tmp_path))


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "", "\udcff"])
def test_a_damaged_configuration_is_told(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.yaml must"):
        RunFolder.existing(Storage.at(tmp_path)).read_config()


def test_damaged_rows_are_told(tmp_path):
    folder = RunFolder(Storage.at(tmp_path), "one")
    folder.write_config({})
    folder.write_metrics([{"step": 1}])
    whole = (folder.path / "metrics.parquet").read_bytes()
    (folder.path / "metrics.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"metrics\.parquet must be a parquet file"):
        folder.read_metrics()


def test_new_names_have_the_prefix_and_sort_by_their_time(monkeypatch):
    import raylab.records.folder as module

    moments = [
        module.datetime(2024, 1, 31, 23, 59, 59, 7_999),
        module.datetime(2024, 1, 31, 23, 59, 59, 10_000),
        module.datetime(2024, 2, 1, 0, 0, 0),
        module.datetime(2024, 10, 1, 0, 0, 0),
    ]

    class Clock:
        now = staticmethod(iter(moments).__next__)

    monkeypatch.setattr(module, "datetime", Clock)
    names = [new_run_name("adl") for _ in moments]
    assert names[0] == "adl-20240131-235959-007"
    assert names == sorted(set(names))


def test_a_new_name_is_a_plain_folder_name(tmp_path):
    name = new_run_name("1f1b")
    assert name.startswith("1f1b-")
    assert RunFolder(Storage.at(tmp_path), name).path.name == name
