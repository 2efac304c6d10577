"""The page of a search: what its figures say of trials of every kind."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from raylab.cli.main import main
from raylab.config.tuning import TuningConfig, tuning_config
from raylab.drivers.tuning.best import best_yaml, summary
from raylab.drivers.tuning.study import TuningStudy
from raylab.records import RunFolder, Storage
from raylab.report.figure import Figure
from raylab.report.tuning_page import tuning_figures, tuning_page
from raylab.report.tuning_record import Goal, TuningRecord
from tests.tuning_runs import finished, made_up_search, pruned, search_of, trial_of

pytestmark = pytest.mark.unit

ACCURACY = Goal("test_accuracy", "max")
TIME = Goal("time_s_to_test_accuracy_0.9", "min")


def names(record: TuningRecord) -> list[str]:
    return [figure.name for figure in tuning_figures(record)]


def figure(record: TuningRecord, name: str) -> Figure:
    (found,) = (each for each in tuning_figures(record) if each.name == name)
    return found


def points(record: TuningRecord, name: str, kind: str) -> list[tuple[float, float]]:
    (trace,) = (each for each in figure(record, name).plot.data if each.name == kind)
    return list(zip(trace.x, trace.y, strict=True))


def rows(page: str) -> list[str]:
    body = re.search(r'id="trial-table">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body is not None
    return re.findall(r"<tr.*?</tr>", body[1], re.DOTALL)


# --- figures


def test_a_search_with_everything_has_every_figure():
    assert names(made_up_search()) == [
        "history-test-loss",
        "parallel",
        "importances",
        "slice-lr-test-loss",
        "slice-tau-test-loss",
        "slice-optimizer-test-loss",
        "slice-momentum-test-loss",
        "curves",
        "seconds",
    ]


def test_one_finished_trial_is_a_page_that_says_it_is_too_few_for_importances():
    record = search_of([finished([0.5], lr=0.1)])
    assert names(record) == ["history-test-loss", "slice-lr-test-loss", "curves", "seconds"]
    assert "Too few trials to say which keys decide: 1 finished" in tuning_page(record)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial_of(TrialState.FAIL, {"lr": 0.5}, None, ended="failed", error="lost")],
        [pruned(1.0, lr=0.5)],
        [trial_of(TrialState.PRUNED, {"lr": 0.5}, None, ended="budget")],
    ],
    ids=["none", "failed", "ended early", "out of time"],
)
def test_a_search_without_a_finished_trial_is_a_page(trials):
    page = tuning_page(search_of(trials))
    assert "No trial has finished yet" in page
    assert len(rows(page)) == len(trials)


def test_the_best_so_far_never_becomes_worse_and_skips_what_ended_early():
    record = search_of([finished([0.5], lr=0.1), pruned(0.1, lr=0.2), finished([0.3], lr=0.3),
                        finished([0.4], lr=0.4)])  # fmt: skip
    assert points(record, "history-test-loss", "best so far") == [
        (0, 0.5), (2, 0.3), (3, 0.3), (3, 0.3)]  # fmt: skip
    assert points(record, "history-test-loss", "best") == [(2, 0.3)]
    assert points(record, "history-test-loss", "ended early") == [(1, 0.1)]


def test_the_best_so_far_goes_up_where_more_is_better():
    record = search_of([finished([v], lr=0.1) for v in (0.5, 0.4, 0.7)], [ACCURACY])
    ys = [y for _, y in points(record, "history-test-accuracy", "best so far")]
    assert ys == [0.5, 0.5, 0.7, 0.7]


def test_several_objectives_have_a_front_and_a_history_and_slices_each():
    trials = [finished(v, lr=0.1 * (k + 1)) for k, v in enumerate([(0.9, 8.0), (0.8, 2.0),
                                                                   (0.7, 5.0)])]  # fmt: skip
    record = search_of(trials, [ACCURACY, TIME])
    assert names(record)[:3] == [
        "history-test-accuracy",
        "history-time-s-to-test-accuracy-0-9",
        "front-test-accuracy-time-s-to-test-accuracy-0-9",
    ]
    edge = [(0.8, 2.0), (0.9, 8.0)]
    assert points(record, names(record)[2], "edge of the front") == edge
    assert sorted(points(record, names(record)[2], "front")) == edge
    assert points(record, names(record)[2], "finished") == [(0.7, 5.0)]
    assert "slice-lr-time-s-to-test-accuracy-0-9" in names(record)
    assert "curves" not in names(record)


def test_what_never_came_to_its_mark_is_counted_and_not_drawn():
    record = search_of([finished([v], lr=0.1) for v in (5.0, math.inf, 7.0)], [TIME])
    history = figure(record, "history-time-s-to-test-accuracy-0-9")
    assert "Not shown: 1 never came to it." in history.note
    assert all(math.isfinite(y) for trace in history.plot.data for y in trace.y)
    assert "never" in rows(tuning_page(record))[1]


def test_the_key_that_decides_is_the_most_important_one():
    record = search_of([finished([(math.log10(0.001 * 1.3**k) + 2) ** 2], lr=0.001 * 1.3**k,
                                 tau=1 + (7 * k) % 16) for k in range(24)])  # fmt: skip
    bars = figure(record, "importances").plot.data[0]
    assert list(bars.y)[-1] == "lr"
    assert sum(bars.x) == pytest.approx(1)


def test_importances_are_of_what_is_better_also_where_more_is():
    at = [0.001 * 1.3**k for k in range(24)]
    losses = [finished([(math.log10(lr) + 2) ** 2], lr=lr, tau=1 + k % 4)
              for k, lr in enumerate(at)]  # fmt: skip
    scores = [finished([-((math.log10(lr) + 2) ** 2)], lr=lr, tau=1 + k % 4)
              for k, lr in enumerate(at)]  # fmt: skip
    less, more = (
        list(figure(record, "importances").plot.data[0].x)
        for record in (search_of(losses), search_of(scores, [ACCURACY]))
    )
    assert less == pytest.approx(more)


def test_few_trials_make_importances_a_hint():
    assert "a hint, no more" in figure(made_up_search(), "importances").note
    many = search_of([finished([k / 10], lr=0.01 * (k + 1)) for k in range(24)])
    assert "hint" not in figure(many, "importances").note


def test_a_key_that_some_trials_lack_is_passed_below_and_its_slice_says_so():
    record = made_up_search()
    lines = [t for t in figure(record, "parallel").plot.data if (t.name or "").startswith("trial")]
    by_name = {trace.name: list(trace.y) for trace in lines}
    assert len(by_name) == 9  # finished ones
    assert by_name["trial 1"][3] < 0 <= by_name["trial 0"][3]  # momentum
    assert "6 of 12 trials have this key." in figure(record, "slice-momentum-test-loss").note


def test_choices_stand_in_their_order_and_magnitudes_on_a_logarithmic_axis():
    record = made_up_search()
    axis = figure(record, "slice-optimizer-test-loss").plot.layout.xaxis
    assert (axis.type, list(axis.categoryarray)) == ("category", ["sgd", "lars"])
    assert figure(record, "slice-lr-test-loss").plot.layout.xaxis.type == "log"
    assert figure(record, "slice-momentum-test-loss").plot.layout.xaxis.type is None


def test_curves_of_trials_that_ended_early_lie_below_the_others():
    data = figure(made_up_search(), "curves").plot.data
    kinds = [trace.name for trace in data]
    assert kinds == ["ended early"] * 3 + ["finished"] * 8 + ["best"]
    assert len(data[0].x) == 1
    assert len(data[-1].x) == 3


def test_curves_stand_where_the_reports_came():
    trial = finished([0.5], lr=0.1)
    trial.set_user_attr("at", [2.0, 4.0, 6.0])
    plot = figure(search_of([trial]), "curves").plot
    assert list(plot.data[0].x) == [2.0, 4.0, 6.0]
    assert plot.layout.xaxis.title.text == "epoch"


def test_seconds_are_those_of_each_trial_and_the_share_that_of_all():
    plot = figure(made_up_search(), "seconds")
    training, start = plot.plot.data
    assert set(training.y) == {4.0}
    assert set(start.y) == {1.0}
    assert plot.note.endswith("20% of all their seconds.")


# --- page


def test_the_table_has_every_trial_and_marks_the_best():
    found = rows(tuning_page(made_up_search()))
    assert len(found) == 13
    assert [k for k, row in enumerate(found) if 'class="best"' in row] == [8]
    assert "ended early" in found[3]
    assert "a worker was lost &lt;b&gt;twice&lt;/b&gt;" in found[12]


def test_texts_of_a_search_are_escaped():
    foreign = "</script><script>alert(1)</script>"
    record = made_up_search(foreign)
    page = tuning_page(record)
    assert page.count("alert(1)</script>") == 0
    assert page.count("<script") == tuning_page(made_up_search()).count("<script")


# --- files and command


def searching(tmp_path: Path) -> tuple[RunFolder, TuningStudy, TuningConfig]:
    """Return a search with a trial that has finished and one that runs."""
    config = tuning_config(
        {
            "train": {"method": "dasgd", "data": "digits"},
            "space": {"lr": {"uniform": [0.01, 1.0], "log": True}},
            "objectives": [{"metric": "test_loss"}],
            "storage": str(tmp_path),
            "name": "one",
        }
    )
    folder = RunFolder(Storage.at(str(tmp_path)), "one")
    folder.write_config(config.plain())
    objectives = [("test_loss", StudyDirection.MINIMIZE)]
    study = TuningStudy.made(folder.path, "one", objectives, config.plain())
    for number in range(2):
        study.optuna.ask().suggest_float("lr", 0.01, 1.0, log=True)
        study.note(number, {"folder": f"trials/{number}"})
    study.end(0, TrialState.COMPLETE, [0.25], {"ended": "finished"})
    (folder.path / "trials" / "0").mkdir(parents=True)
    (folder.path / "trials" / "0" / "report.html").write_text("", encoding="utf-8")
    return folder, study, config


def test_the_command_writes_the_page_of_a_search_that_goes_on(tmp_path, capsys):
    folder, study, config = searching(tmp_path)
    assert main(["report", str(folder.path)]) == 0
    assert capsys.readouterr().out == f"report: {folder.path / 'report.html'}\n"
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    found = rows(page)
    assert ["finished" in row or "best" in row for row in found] == [True, False]
    assert "running" in found[1]
    best = best_yaml(study, config, "one")
    assert best is not None
    assert best.partition("\n")[2].strip() in page
    assert 'href="trials/0/report.html"' in found[0]
    assert "href" not in found[1]


def test_a_page_elsewhere_has_no_links_and_json_tells_the_summary(tmp_path, capsys):
    folder, study, config = searching(tmp_path)
    out = tmp_path / "else" / "page.html"
    assert main(["report", str(folder.path), "--output", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(out)
    assert answer["tuning"] == {"name": "one", **json.loads(json.dumps(summary(study, config)))}
    assert "trials/0/report.html" not in out.read_text(encoding="utf-8")


def test_a_search_beside_others_is_one_error_that_says_what_to_give(tmp_path, capsys):
    folder, _, _ = searching(tmp_path)
    assert main(["report", str(folder.path), str(tmp_path)]) == 2
    assert f"give {folder.path}, or {folder.path}/trials/N" in capsys.readouterr().err
