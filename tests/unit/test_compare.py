"""`raylab compare` without a run: what is planned, skipped and told of failures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import raylab.drivers.compare as module
from raylab.cli.main import main
from raylab.config import PipelineConfig
from raylab.drivers.compare import compare, plan_comparison
from raylab.errors import ConfigError, NonFiniteLossError
from raylab.records import RunFolder, Storage
from raylab.report import compare_table

pytestmark = pytest.mark.unit


def config(storage: Path, **keys: Any) -> PipelineConfig:
    return PipelineConfig(model="mlp", storage=str(storage), name="c", **keys)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[PipelineConfig]:
    """Replace the runs by files; ddg becomes NaN. Return the configurations that ran."""
    configs: list[PipelineConfig] = []

    def run(config: PipelineConfig, *, progress: bool) -> Any:
        configs.append(config)
        folder = RunFolder(Storage.at(config.storage), str(config.name))
        folder.write_config({**config.model_dump(), "stages": [1], "delay": [1]})
        if config.method == "ddg":
            raise NonFiniteLossError("the loss must be finite, but got nan")
        rows = [{"step": 10, "time_s": 1.0, "loss": 0.5, "test_accuracy": 0.9}]
        folder.write_metrics(rows)
        summary = {"samples_per_s": 100.0, "staleness_mean": 0.5, "time_s": 1.0}
        folder.write_result({"metrics": rows[-1], **summary})
        return folder

    monkeypatch.setattr(module, "train", run)
    return configs


def carry_out(storage: Path, methods: list[str], seeds: list[int], **keys: Any) -> list[Any]:
    planned = plan_comparison(config(storage, **keys), methods, seeds)
    return list(compare(planned, progress=False, say=lambda _: None))


def test_every_method_runs_with_every_seed_in_a_folder_of_its_own(tmp_path, ran):
    carry_out(tmp_path, ["bp", "adl"], [0, 1])
    assert [(c.method, c.seed, c.name) for c in ran] == [
        ("bp", 0, "bp-seed0"),
        ("bp", 1, "bp-seed1"),
        ("adl", 0, "adl-seed0"),
        ("adl", 1, "adl-seed1"),
    ]
    assert {c.storage for c in ran} == {str(tmp_path / "c")}
    assert len({(c.model, c.data, c.epochs, c.lr) for c in ran}) == 1


def test_a_method_that_fails_is_told_and_the_next_one_runs(tmp_path, ran):
    outcomes = carry_out(tmp_path, ["bp", "ddg", "adl"], [0])
    assert [each["error"] for each in outcomes] == [
        None,
        "the loss must be finite, but got nan",
        None,
    ]
    assert outcomes[2]["test_accuracy"] == 0.9


def test_finished_runs_are_not_run_again_and_failed_ones_leave_their_folder(tmp_path, ran):
    carry_out(tmp_path, ["bp", "ddg"], [0])
    outcomes = carry_out(tmp_path, ["bp", "ddg", "adl"], [0])
    assert [c.name for c in ran] == ["bp", "ddg", "ddg-2", "adl"]
    assert outcomes[0]["samples_per_s"] == 100.0
    assert (tmp_path / "c" / "ddg" / "config.yaml").exists()


def test_a_finished_run_with_other_settings_is_refused(tmp_path, ran):
    carry_out(tmp_path, ["bp"], [0])
    with pytest.raises(ConfigError, match=r"with epochs=1, but this one has epochs=2: choose"):
        carry_out(tmp_path, ["bp"], [0], epochs=2)
    with pytest.raises(ConfigError, match=r"with stages=\[1\], but this one has stages=3"):
        carry_out(tmp_path, ["bp"], [0], stages=3)
    assert len(ran) == 1


def printed(runs: list[dict[str, Any]]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(compare_table("mlp on digits", runs))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def outcome(method: str, seed: int = 0, error: str | None = None, **more: Any) -> dict[str, Any]:
    return {"method": method, "seed": seed, "error": error, **more}


def test_the_table_has_means_spreads_and_speeds_against_the_first():
    text = printed(
        [
            outcome("bp", 0, samples_per_s=100.0, test_accuracy=0.8),
            outcome("bp", 1, samples_per_s=200.0, test_accuracy=0.9),
            outcome("adl", 0, samples_per_s=300.0, test_accuracy=0.9),
        ]
    )
    assert "85.00% ± 7.07%" in text
    assert "2.00" in text.splitlines()[-2]
    assert "failed" not in text


def test_the_table_says_why_a_method_failed():
    text = printed([outcome("bp", error="the loss is [red]nan[/red]"), outcome("adl", loss="nan")])
    assert "the loss is [red]nan[/red]" in text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "methods must be given"),
        (["methods=bp,nothing"], "methods must be of bp, gpipe, 1f1b, ddg, fr, adl"),
        (["methods=bp,bp"], "a list without repetition"),
        (["methods=bp", "seeds=0,x"], "seeds must be whole numbers"),
        (["methods=bp", "demo", "adl"], "one NAME or FILE.yaml at most"),
        (["methods=bp", "epoch=3"], "did you mean epochs?"),
    ],
)
def test_bad_words_are_one_error(capsys, words, complaint):
    assert main(["compare", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def test_the_command_prints_the_table_and_the_path_of_one_page(tmp_path, ran, capsys, monkeypatch):
    monkeypatch.setattr("raylab.cli.compare.ray_session", _no_ray)
    words = ["methods=bp,ddg,adl", "model=mlp", f"storage={tmp_path}", "name=c", "--quiet"]
    assert main(["compare", *words]) == 0
    out = capsys.readouterr().out
    page = tmp_path / "c" / "report.html"
    assert out.endswith(f"report: {page}\n")
    assert page.exists()
    assert main(["compare", *words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(page)
    assert [bool(run["error"]) for run in answer["runs"]] == [False, True, False]


class _no_ray:  # noqa: N801 - stands for a function
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
