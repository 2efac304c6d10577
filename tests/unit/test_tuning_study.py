"""A search's memory, without processes of Ray: points, reports, ends, what a kill leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raylab.config.objectives import Objective
from raylab.config.tuning import TuningConfig, tuning_config
from raylab.drivers.tuning.best import best_yaml, front, summary
from raylab.drivers.tuning.figures import Figures
from raylab.drivers.tuning.orders import Orders, absolute
from raylab.drivers.tuning.run import alone, study_of
from raylab.drivers.tuning.schedulers import remind, scheduler_of
from raylab.drivers.tuning.searcher import StudySearch
from raylab.drivers.tuning.space import run_keys
from raylab.drivers.tuning.study import TuningStudy
from raylab.errors import ConfigError

pytestmark = pytest.mark.unit

SPACE = {
    "delay": {"int": [0, 15], "below": "tau"},
    "lr": {"uniform": [0.001, 1.0], "log": True},
    "tau": {"int": [1, 16], "log": True},
    "optimizer": {"choice": ["sgd", "adam"]},
    "momentum": {"uniform": [0.0, 0.9], "when": {"optimizer": "sgd"}},
}
SEVERAL = [{"metric": "test_accuracy"}, {"metric": "time_s", "until": {"test_accuracy": 0.9}}]


def config(**keys: Any) -> TuningConfig:
    return tuning_config(
        {
            "train": {"method": "dasgd", "model": "mlp", "epochs": 9, "workers": 2},
            "space": SPACE,
            "objectives": [{"metric": "test_loss"}],
            "budget": {"trials": 4},
            **keys,
        }
    )


def order(number: int, labels: Mapping[str, Any]) -> Any:
    return {"number": number, "params": dict(labels)}


def search(folder: Path, asked: TuningConfig, ends: float = math.inf) -> StudySearch:
    return StudySearch(study_of(folder, "s", asked), asked, order, ends)


def report(k: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"training_iteration": k, "epoch": k, "step": 10 * k, "test_loss": loss, **more}


def finished(k: int, loss: float) -> dict[str, Any]:
    return report(k, loss, ended="finished", values=[loss], start_s=1.0, train_s=3.0)


def all_points(found: StudySearch) -> list[dict[str, Any]]:
    points = []
    while (given := found.suggest(f"t{len(points)}")) != Searcher.FINISHED:
        loss = abs(math.log(given["params"]["lr"] / 0.1))
        found.on_trial_complete(f"t{len(points)}", finished(1, loss))
        points.append(given["params"])
    return points


@pytest.mark.parametrize("algorithm", ["tpe", "cmaes", "nsga2", "random"])
def test_every_point_meets_the_conditions_and_the_budget_is_kept(tmp_path, algorithm):
    asked = config(search={"algorithm": algorithm, "start_from": [{"lr": 0.1}]})
    points = all_points(search(tmp_path, asked))
    assert len(points) == 4
    assert points[0]["lr"] == 0.1
    for point in points:
        assert point["delay"] < point["tau"]
        assert ("momentum" in point) == (point["optimizer"] == "sgd")


def test_a_search_that_is_resumed_draws_what_it_would_have_drawn(tmp_path):
    asked = config()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = all_points(search(tmp_path / "a", asked))
    first = search(tmp_path / "b", config(budget={"trials": 2}))
    points = all_points(first)
    points += all_points(search(tmp_path / "b", asked))
    assert points == whole
    assert len({point["lr"] for point in points}) == 4


def test_a_trial_that_ran_when_its_driver_died_is_taken_up_with_its_point(tmp_path):
    asked = config()
    before = search(tmp_path, asked)
    point = before.suggest("a")["params"]
    before.on_trial_result("a", report(1, 0.5))
    after = search(tmp_path, asked)
    taken = after.suggest("b")
    assert (taken["number"], taken["params"]) == (0, point)
    after.on_trial_result("b", report(1, 0.7))
    after.on_trial_complete("b", finished(2, 0.4))
    (trial,) = TuningStudy.open(tmp_path).trials()
    assert trial.intermediate_values == {1: 0.5, 2: 0.4}
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)


def test_a_trial_whose_choosing_was_cut_off_is_completed(tmp_path):
    asked = config()
    study = study_of(tmp_path, "s", asked)
    cut = study.optuna.ask()
    lr = cut.suggest_float("lr", 0.001, 1.0, log=True)
    taken = search(tmp_path, asked).suggest("a")
    assert taken["params"]["lr"] == lr
    assert {"tau", "delay", "optimizer"} <= set(taken["params"])


def test_trials_count_for_the_budget_whatever_became_of_them(tmp_path):
    asked = config(budget={"trials": 3})
    found = search(tmp_path, asked)
    found.suggest("a")
    found.suggest("b")
    found.fail(0, "broken")
    found.on_trial_complete("b", report(1, 0.5))
    again = search(tmp_path, asked)
    assert again.suggest("c")["number"] == 2
    assert again.suggest("d") == Searcher.FINISHED


def test_how_a_trial_has_ended_stands_in_the_study(tmp_path):
    asked = config(budget={"trials": 5})
    found = search(tmp_path, asked)
    for name in "abcd":
        found.suggest(name)
    found.on_trial_result("a", report(1, 0.5))
    found.on_trial_complete("a", finished(2, 0.3))
    found.on_trial_complete("b", report(1, 0.9, start_s=2.0, train_s=1.0))
    found.on_trial_complete("c", {"training_iteration": 0, "ended": "diverged", "error": "NaN"})
    found.on_trial_complete("d", report(1, math.nan, ended="finished", values=None))
    a, b, c, d = TuningStudy.open(tmp_path).trials()
    assert (a.state, a.values, a.user_attrs["at"]) == (TrialState.COMPLETE, [0.3], [1, 2])
    assert (b.state, b.value, b.user_attrs["ended"]) == (TrialState.PRUNED, 0.9, "scheduler")
    assert (c.state, c.user_attrs["ended"], c.user_attrs["error"]) == (
        TrialState.PRUNED, "diverged", "NaN",
    )  # fmt: skip
    assert (d.state, d.user_attrs["ended"]) == (TrialState.FAIL, "failed")
    told = summary(TuningStudy.open(tmp_path), asked)
    assert told["trials"] == {"complete": 1, "ended early": 2, "failed": 1, "running": 0}
    assert told["best"]["number"] == 0
    assert told["start_share"] == pytest.approx(3 / 7)


def test_an_end_that_is_told_twice_stays_as_it_was(tmp_path):
    found = search(tmp_path, config())
    found.suggest("a")
    found.on_trial_complete("a", finished(1, 0.5))
    found.fail(0, "too late")
    (trial,) = TuningStudy.open(tmp_path).trials()
    assert trial.value == 0.5


def test_when_the_time_is_over_nothing_more_is_begun(tmp_path):
    assert search(tmp_path, config(), ends=0.0).suggest("a") == Searcher.FINISHED


def test_a_point_that_cannot_be_run_fails_and_the_next_is_taken(tmp_path):
    asked = config()

    def picky(number: int, labels: Mapping[str, Any]) -> Any:
        if number == 0:
            raise ConfigError("not this one")
        return order(number, labels)

    found = StudySearch(study_of(tmp_path, "s", asked), asked, picky, math.inf)
    assert found.suggest("a")["number"] == 1
    assert TuningStudy.open(tmp_path).trial(0).user_attrs["error"] == "not this one"


def test_several_objectives_make_a_front_and_never_counts_as_the_worst(tmp_path):
    asked = config(objectives=SEVERAL, budget={"trials": 12})
    found = search(tmp_path, asked)
    for k, values in enumerate([[0.9, 5.0], [0.95, 9.0], [0.8, 4.0], [0.7, math.inf]] * 3):
        found.suggest(f"t{k}")
        found.on_trial_complete(
            f"t{k}", {"training_iteration": 1, "ended": "finished", "values": values}
        )
    best = front(TuningStudy.open(tmp_path), asked.objectives)
    assert {each["values"]["test_accuracy"] for each in best} == {0.95, 0.9, 0.8}
    assert best[0]["values"] == {"test_accuracy": 0.95, "time_s_to_test_accuracy_0.9": 9.0}


def test_the_best_is_written_with_the_keys_of_train_and_those_of_its_point(tmp_path):
    asked = config(train={"method": "dasgd", "optimizer_options": {"dampening": 0.0}})
    found = search(tmp_path, asked)
    params = found.suggest("a")["params"]
    assert best_yaml(TuningStudy.open(tmp_path), asked, "s") is None
    found.on_trial_complete("a", finished(1, 0.5))
    text = best_yaml(TuningStudy.open(tmp_path), asked, "s")
    assert text is not None
    assert text.startswith("# trial 0 of s: test_loss 0.5\n")
    keys = run_keys(params, asked)
    assert keys["optimizer_options"] == {"dampening": 0.0}
    assert keys["lr"] == params["lr"]


def test_the_best_trains_with_what_was_held_out_to_choose_by(tmp_path):
    asked = config(train={"method": "dasgd", "validation": 0.2})
    found = search(tmp_path, asked)
    params = found.suggest("a")["params"]
    assert run_keys(params, asked)["validation"] == 0.2
    found.on_trial_complete("a", finished(1, 0.5))
    text = best_yaml(TuningStudy.open(tmp_path), asked, "s")
    assert text is not None
    assert "validation" not in yaml.safe_load(text)


def test_a_scheduler_is_reminded_of_what_was_reported_before(tmp_path):
    asked = config(scheduler={"name": "asha", "grace": 1, "reduction": 2}, budget={"trials": 9})
    found = search(tmp_path, asked)
    for k, loss in enumerate([0.1, 0.2, 0.3]):
        found.suggest(f"t{k}")
        found.on_trial_result(f"t{k}", report(1, loss))
        found.on_trial_complete(f"t{k}", finished(2, loss))
    for reminded, decision in ((False, "CONTINUE"), (True, "STOP")):
        scheduler = scheduler_of(asked)
        if reminded:
            remind(scheduler, TuningStudy.open(tmp_path).trials(TrialState.COMPLETE), asked)
        trial: Any = type("Trial", (), {"trial_id": "new"})()
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, report(1, 0.9)) == decision


def test_asha_judges_nobody_where_a_trial_ends(tmp_path):
    scheduler = scheduler_of(config(scheduler={"grace": 1, "reduction": 3}))
    trials: list[Any] = [type("Trial", (), {"trial_id": str(k)})() for k in range(4)]
    for k, trial in enumerate(trials):
        scheduler.on_trial_add(None, trial)
        # Each is the best so far, until the end of its training.
        losses = ((1, 9.0 - k), (3, 9.0 - k), (9, float(k)))
        told = [scheduler.on_trial_result(None, trial, report(*each)) for each in losses]
        assert told == ["CONTINUE"] * 3
    with pytest.raises(ConfigError, match="grace must be less than a whole trial"):
        scheduler_of(config(scheduler={"name": "asha", "grace": 9}))


def test_the_median_rule_never_pauses_a_trial(tmp_path):
    scheduler = scheduler_of(config(scheduler={"name": "median"}))
    trial: Any = type("Trial", (), {"trial_id": "a"})()
    waits: Any = type("Runner", (), {"get_live_trials": lambda self: [trial]})()
    trial.status = "PENDING"
    scheduler.on_trial_add(waits, trial)
    assert scheduler.on_trial_result(waits, trial, report(2, 0.9)) == "CONTINUE"


def test_two_processes_do_not_carry_out_one_search(tmp_path):
    with alone(tmp_path), pytest.raises(ConfigError, match="by one process"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_on_a_machine_of_its_own_trials_get_shares_that_fit(tmp_path):
    alone_made = Orders(config(), tmp_path, 2.0, patient=False)
    assert alone_made(0, {})["bundles"] == [{"CPU": 1.0}, {"CPU": 1.0}]
    assert alone_made.at_once() == 1
    two = Orders(config(concurrent=2), tmp_path, 2.0, patient=False)
    assert two(0, {})["bundles"] == [{"CPU": 0.5}, {"CPU": 0.5}]
    assert two(0, {})["train"]["cpus_per_worker"] == 0.5
    assert two.at_once() == 2
    grows = {**SPACE, "workers": {"int": [1, 2]}}
    without = {"method": "dasgd", "model": "mlp"}
    searched = config(space=grows, train=without)
    assert Orders(searched, tmp_path, 2.0, patient=False).at_once() is None
    assert Orders(config(), tmp_path, None, patient=False).at_once() is None


def test_a_trial_lies_in_the_searchs_folder(tmp_path):
    made = Orders(config(), tmp_path, None, patient=True)(7, {"lr": 0.5})
    assert (made["train"]["storage"], made["train"]["name"]) == (str(tmp_path / "trials"), "7")
    assert made["train"]["lr"] == 0.5


def test_paths_of_data_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute({"data": "libsvm:a.bz2,dim=3"})["data"] == f"libsvm:{tmp_path}/a.bz2,dim=3"
    assert absolute({"data": "digits"}) == {"data": "digits"}


def test_figures_that_count_since_the_row_before_are_added_up():
    figures = Figures([Objective(metric="bytes", mode="min", total=True)])
    assert figures.take({"bytes": 5})
    assert figures.take({"bytes": 7})
    assert figures.final() == [12.0]


def test_the_time_until_a_value_is_that_of_the_first_row_that_has_it():
    until = Objective(metric="time_s", mode="min", until=("test_accuracy", 0.9), better="max")
    figures = Figures([until])
    rows = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.95), (4.0, None)]
    told = [figures.take({"time_s": time_s, "test_accuracy": a}) for time_s, a in rows]
    assert told == [True, True, True, False]
    assert figures.final() == [2.0]
    never = Figures([until])
    never.take({"time_s": 1.0, "test_accuracy": 0.5})
    assert never.final() == [math.inf]


def test_a_loss_that_is_no_number_is_no_value():
    figures = Figures([Objective(metric="test_loss", mode="min")])
    figures.take({"test_loss": math.nan})
    assert figures.final() is None


def test_a_figure_that_no_row_has_is_no_value_and_no_time_to_it():
    never = Figures([Objective(metric="test_accuracy", mode="max")])
    assert not never.take({"epoch": 1, "step": 3, "test_accuracy": None, "test_loss": 0.5})
    assert never.final() is None
    timed = Figures([Objective(metric="time_s", mode="min", until=("test_accuracy", 0.9))])
    timed.take({"epoch": 1, "step": 3, "time_s": 1.0, "test_accuracy": None})
    assert timed.final() is None
    timed.take({"epoch": 2, "step": 6, "time_s": 2.0, "test_accuracy": 0.5})
    assert timed.final() == [math.inf]
