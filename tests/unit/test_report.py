"""The page of runs: what is in it, what is not, and what it says of bad input."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from raylab.cli.main import main
from raylab.errors import ConfigError
from raylab.report import RunRecord, read_runs
from raylab.report.figure import Figure
from raylab.report.html_tables import _final
from raylab.report.page import report_figures, report_page
from raylab.report.png import write_pngs
from tests.report_runs import made_up_run, write_run

pytestmark = pytest.mark.unit

FOREIGN = "</script><script>alert(1)</script><b a=\"'>&<!--"


class _Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.replace(get_plotlyjs(), ""))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def without(run: RunRecord, *columns: str) -> RunRecord:
    rows = [{k: v for k, v in row.items() if k not in columns} for row in run.rows]
    return dataclasses.replace(run, rows=rows)


def figure(runs: list[RunRecord], name: str) -> Figure:
    (found,) = (each for each in report_figures(runs) if each.name == name)
    return found


def names(*runs: RunRecord) -> list[str]:
    return [each.name for each in report_figures(list(runs))]


# --- figures


def test_a_run_with_everything_has_every_figure():
    assert names(made_up_run()) == [
        "loss-by-epoch",
        "loss-by-time",
        "accuracy-by-epoch",
        "accuracy-by-time",
        "throughput",
        "blocked",
        "timeline-first",
        "staleness",
        "staleness-histogram",
        "memory",
        "kept",
    ]


def test_there_is_no_figure_for_what_is_not_there():
    poor = RunRecord(name="poor", config={}, rows=[{"step": 1, "time_s": 1.0, "loss": 0.5}])
    assert names(poor) == ["loss-by-epoch", "loss-by-time"]
    assert "staleness-histogram" not in names(without(made_up_run(), "staleness_counts"))
    assert "accuracy-by-epoch" not in names(without(made_up_run(), "accuracy", "test_accuracy"))


def test_runs_lie_over_one_another_in_one_figure_and_have_a_timeline_each():
    runs = [made_up_run("a"), made_up_run("b", stages=3)]
    loss = figure(runs, "loss-by-epoch").plot
    assert [(t.name, t.meta["run"]) for t in loss.data] == [
        ("a", 0),
        ("b", 1),
        ("a, test", 0),
        ("b, test", 1),
    ]
    assert len({t.line.color for t in loss.data}) == 2
    assert names(*runs).count("timeline-a") == names(*runs).count("timeline-b") == 1


def test_curves_stand_at_epochs_and_at_times():
    run = made_up_run()
    rows = [{**run.rows[0], "epoch": None, "step": 10, "time_s": 1.0}, *run.rows]
    run = dataclasses.replace(run, rows=rows)
    assert list(figure([run], "loss-by-epoch").plot.data[0].x) == [0.5, 1.0, 2.0, 3.0, 4.0]
    assert list(figure([run], "loss-by-time").plot.data[0].x) == [1.0, 2.5, 5.0, 7.5, 10.0]


def test_a_loss_that_is_not_finite_is_a_gap():
    run = made_up_run()
    rows = [*run.rows[:-1], {**run.rows[-1], "loss": math.nan}]
    broken = dataclasses.replace(run, rows=rows)
    assert list(figure([broken], "loss-by-epoch").plot.data[0].y)[-1] is None
    report_page([broken])


def test_a_loss_over_decades_is_logarithmic():
    run = made_up_run()
    assert figure([run], "loss-by-epoch").plot.layout.yaxis.type is None
    rows = [{**row, "loss": 10.0 ** -row["epoch"]} for row in run.rows]
    run = dataclasses.replace(run, rows=rows)
    assert figure([run], "loss-by-epoch").plot.layout.yaxis.type == "log"


def test_a_figure_of_zero_is_a_figure():
    run = made_up_run()
    rows = [
        {**row, "duality_gap": gap} for row, gap in zip(run.rows, (0.5, 0.2, 0.1, 0.0), strict=True)
    ]
    gone = dataclasses.replace(run, rows=rows, result={"staleness_mean": 0.0})
    assert gone.last("duality_gap") == 0.0
    assert gone.last("staleness_mean") == 0.5
    assert _final(gone, "staleness_mean") == 0.0
    missing = dataclasses.replace(run, rows=[*rows[:-1], {**rows[-1], "duality_gap": None}])
    assert missing.last("duality_gap") == 0.1


def test_the_slowest_stage_is_the_plan_and_replay_costs_a_forward_more():
    times = {"stage_forward_s": [0.01, 0.04], "stage_backward_s": [0.02, 0.06]}
    assert made_up_run(measured=times).predicted_samples_per_s() == pytest.approx(640)
    # The last stage's gradients are never late, so it replays nothing; the first stage does.
    below = {name: each[::-1] for name, each in times.items()}
    for method, more in (("fr", {}), ("dsp", {}), ("adl", {"recompute": True})):
        run = made_up_run(method=method, measured=times, **more)
        assert run.predicted_samples_per_s() == pytest.approx(640)
        slower = made_up_run(method=method, measured=below, **more)
        assert slower.predicted_samples_per_s() == pytest.approx(64 / 0.14)
        at_once = made_up_run(method=method, measured=below, delay=[0], **more)
        assert at_once.predicted_samples_per_s() == pytest.approx(640)
    assert made_up_run(method="adl", measured=below).predicted_samples_per_s() == pytest.approx(640)
    assert made_up_run(measured=None).predicted_samples_per_s() is None
    assert made_up_run(plan={"samples_per_s": 7.0}).predicted_samples_per_s() == 7.0
    told = {**times, "predicted_samples_per_s": 9.0}
    assert made_up_run(measured=told).predicted_samples_per_s() == 9.0
    planned = figure([made_up_run(measured=times)], "throughput").plot.data[-1]
    assert list(planned.y) == pytest.approx([640, 640])


def test_the_blocked_share_is_of_the_whole_run():
    bars = figure([made_up_run(epochs=4)], "blocked").plot.data[0]
    assert list(bars.y) == pytest.approx([4 * 0.5 / 10, 4 * 0.6 / 10])


def test_staleness_is_weighted_by_gradients_and_its_histogram_adds_up():
    run = made_up_run(epochs=2)
    rows = [
        {**run.rows[0], "stage_staleness_mean": [1.0, 0.0], "stage_gradients": [30, 10]},
        {**run.rows[1], "stage_staleness_mean": [2.0, 0.0], "stage_gradients": [10, 10]},
    ]
    rows[1]["staleness_counts"] = [1, 2, 3, 4]
    run = dataclasses.replace(run, rows=rows)
    mean, most = figure([run], "staleness").plot.data
    assert list(mean.y) == pytest.approx([1.25, 0.0])
    assert list(most.y) == [2, 1]
    histogram = figure([run], "staleness-histogram").plot.data[0]
    assert list(histogram.customdata) == [21, 17, 8, 4]
    assert sum(histogram.y) == pytest.approx(1)


def test_memory_is_in_mebibytes_and_stacks_its_parts():
    plot = figure([made_up_run()], "memory").plot
    assert {t.name: list(t.y) for t in plot.data} == {
        "activations": [3.0, 4.0],
        "weight versions": [1.0, 1.0],
        "mailboxes": [0.5, 0.5],
    }
    assert plot.layout.barmode == "stack"


def test_a_timeline_begins_with_the_first_work_and_has_a_row_per_stage():
    plot = figure([made_up_run(stages=3)], "timeline-first").plot
    bars = {trace.name: trace for trace in plot.data}
    assert set(bars) == {"waiting", "forward", "backward", "update", "evaluate"}
    assert min(bars["forward"].base) == 0.0
    assert min(bars["waiting"].base) >= 0.0
    assert set(bars["forward"].y) == {"stage 0", "stage 1", "stage 2"}
    assert bars["forward"].x[0] == pytest.approx(10.0, abs=1e-2)
    assert list(plot.layout.yaxis.categoryarray) == ["stage 0", "stage 1", "stage 2"]


def test_a_timeline_of_waiting_alone_is_none():
    run = made_up_run()
    waits = [span for span in run.timeline if span["kind"] == "waiting"]
    assert "timeline-first" not in names(dataclasses.replace(run, timeline=waits))


def test_axes_have_titles_and_units():
    for each in report_figures([made_up_run()]):
        layout = each.plot.layout
        assert each.title
        assert layout.yaxis.title.text or each.name.startswith("timeline")
        on_stages = each.name in ("blocked", "staleness", "memory", "kept")
        assert layout.xaxis.title.text or on_stages


def test_a_legend_shows_each_run_in_its_own_colour_up_to_seven():
    runs = [made_up_run(f"r{i}") for i in range(8)]
    lines = figure(runs, "throughput").plot.data[:8]
    assert len({line.line.color for line in lines[:7]}) == 7
    assert (lines[7].line.color, lines[7].line.dash) != (lines[0].line.color, lines[0].line.dash)


# --- averaging workers


def averaging_run(blocked_s: float = 0.5, **config: Any) -> RunRecord:
    """Return a run of two workers, the second of which waits twice as long."""
    rows = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "time_s": 3.0 * epoch,
            "loss": 1.0 / epoch,
            "samples": 640,
            "samples_per_s": 320.0,
            "trained_s": 2.0,
            "blocked_s": blocked_s,
            "blocked_share": blocked_s / 2,
            "worker_blocked_s": [2 * blocked_s / 3, 4 * blocked_s / 3],
            "consensus_distance": 0.1,
            "workers": 2,
        }
        for epoch in (1, 2)
    ]
    return RunRecord(
        name="averages",
        config={"method": "dasgd", "workers": 2, "tau": 4, "delay": 1, "xi": 0.25,
                "batch_size": 32, "model": "mlp", "data": "digits", **config},
        rows=rows,
        result={"blocked_share": blocked_s / 2, "bytes": 3 << 20, "average_s": 0.05},
    )  # fmt: skip


def test_workers_that_average_have_their_waits_and_their_distance():
    run = averaging_run()
    assert names(run)[-4:] == [
        "throughput", "blocked-share", "consensus-distance", "worker-blocked"]  # fmt: skip
    assert list(figure([run], "worker-blocked").plot.data[0].y) == pytest.approx([1 / 6, 1 / 3])
    page = report_page([run])
    for text in ("DaSGD", "tau = 4 steps, delay = 1 of them late, xi = 0.25", "25.00%", "3.0"):
        assert text in page, text


def test_throughput_without_waiting_is_drawn_where_workers_waited():
    traces = figure([averaging_run()], "throughput").plot.data
    assert list(traces[-1].y) == pytest.approx([640 / 1.5] * 2)
    assert len(figure([averaging_run(blocked_s=0.001)], "throughput").plot.data) == 1


@pytest.mark.parametrize(
    ("method", "seconds"),
    [("dasgd", 0.01 + 0.04 / 4), ("local_sgd", 0.01 + 0.05 / 4), ("minibatch_sgd", 0.06)],
)
def test_the_plan_of_averages_is_a_step_and_what_of_an_average_it_does_not_hide(method, seconds):
    predicted = averaging_run(method=method, step_s=0.01).predicted_samples_per_s()
    assert predicted == pytest.approx(64 / seconds)
    assert averaging_run(method=method).predicted_samples_per_s() is None


# --- page


def test_a_page_needs_nothing_from_outside():
    page = report_page([made_up_run("a"), made_up_run("b")])
    elements = _Elements(page)
    for tag, attributes in elements.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in page
    assert page.count("plotly.js v") == 1


def test_the_head_says_what_was_run_and_on_what():
    page = report_page([made_up_run()])
    for text in ("K = 2", "M = 2", "torch 2.13.0", "0123456789ab", "Linux x86_64, 2 cores"):
        assert text in page, text
    assert "<title>raylab report: first</title>" in page


def test_texts_of_runs_are_escaped():
    run = made_up_run("other", model=FOREIGN, **{FOREIGN: FOREIGN})
    run = dataclasses.replace(run, name=FOREIGN)
    page = report_page([run, made_up_run()])
    plain = _Elements(report_page([made_up_run("a"), made_up_run()])).tags
    assert [tag for tag, _ in _Elements(page).tags].count("script") == 3
    assert len(_Elements(page).tags) - len(plain) <= 8  # the rows of one more key
    assert "alert(1)</script>" not in page
    content = re.search(r'id="content">(.*?)</script>', page, re.DOTALL)
    assert content is not None
    traces = json.loads(content[1])["figures"][0]["plot"]["data"]
    assert "<" not in traces[0]["name"]
    assert "&lt;/script&gt;" in traces[0]["name"]


def test_keys_that_differ_are_marked_and_names_are_not():
    page = report_page([made_up_run("a", lr=0.1), made_up_run("b", lr=0.2)])
    rows = re.findall(r'<tr class="(different|same)"><th scope="row">(\w+)', page)
    assert ("different", "lr") in rows
    assert [key for state, key in rows if state == "different"] == ["lr"]
    assert ("same", "name") in rows


def test_numbers_have_thousands_separators():
    run = dataclasses.replace(made_up_run(), result={"samples_per_s": 1234567.8})
    assert "1,234,567.8" in report_page([run])


# --- files and command


def test_a_report_from_the_folder_is_that_from_memory(tmp_path):
    run = made_up_run()
    (read,) = read_runs([write_run(tmp_path, run)])
    assert list(read.rows) == list(run.rows)
    assert list(read.timeline) == list(run.timeline)
    assert names(read) == names(run)


def test_the_command_writes_the_page_beside_the_run(tmp_path, capsys):
    folder = write_run(tmp_path, made_up_run())
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_folder_of_runs_is_a_report_of_all_and_json_tells_them(tmp_path, capsys):
    for name in ("a", "b"):
        write_run(tmp_path, made_up_run(name))
    page = tmp_path / "new" / "all.html"
    assert main(["report", str(tmp_path), "--output", str(page), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(page)
    assert [run["name"] for run in answer["runs"]] == ["a", "b"]
    assert [path.name for path in page.parent.iterdir()] == ["all.html"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [write_run(tmp_path / place, made_up_run("same")) for place in ("x", "y")]
    assert [run.name for run in read_runs([*paths, paths[0]])] == ["x/same", "y/same"]


def _break_metrics(folder: Path) -> None:
    (folder / "metrics.parquet").write_bytes(b"PAR1 but not really")


def _break_config(folder: Path) -> None:
    (folder / "config.yaml").write_text("a: [", encoding="utf-8")


def _break_result(folder: Path) -> None:
    (folder / "result.json").write_text("{", encoding="utf-8")


def _lose_metrics(folder: Path) -> None:
    (folder / "metrics.parquet").unlink()


def _lose_everything(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_break_metrics, "metrics.parquet must be a Parquet file, but it is broken"),
        (_break_config, "config.yaml cannot be read"),
        (_break_result, "result.json cannot be read"),
        (_lose_metrics, "has no metrics.parquet: it has not ended, or it has failed"),
        (_lose_everything, "there is no run in "),
    ],
)
def test_a_run_that_is_broken_is_one_error_that_names_it(tmp_path, capsys, damage, complaint):
    folder = write_run(tmp_path, made_up_run())
    damage(folder)
    assert main(["report", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err
    assert str(folder) in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_not_there_is_one_error(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert f"there is no run in {tmp_path / 'none'}" in capsys.readouterr().err


def test_a_table_of_something_else_is_no_run(tmp_path, capsys):
    run = dataclasses.replace(made_up_run(), rows=[{"x": 1}])
    assert main(["report", str(write_run(tmp_path, run))]) == 2
    assert "has no column step and no time_s" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_one_error(tmp_path, capsys):
    folder = write_run(tmp_path, made_up_run())
    (tmp_path / "file").write_text("")
    assert main(["report", str(folder), "--output", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot write " in capsys.readouterr().err


def test_without_a_browser_the_error_says_how_to_get_one(tmp_path, monkeypatch):
    import kaleido
    from choreographer.errors import ChromeNotFoundError

    def no_browser(*_: Any, **__: Any) -> None:
        raise ChromeNotFoundError

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", no_browser)
    with pytest.raises(ConfigError, match="apt-get install chromium"):
        write_pngs(report_figures([made_up_run()])[:1], tmp_path)
