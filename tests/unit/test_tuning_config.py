"""The configuration of a search: what is taken, and what every complaint says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from raylab import tune
from raylab.cli.main import main
from raylab.config.domain import domain_of
from raylab.config.searches import read_search, search_names, search_summary
from raylab.config.tuning import TuningConfig, tuning_config
from raylab.errors import ConfigError

pytestmark = pytest.mark.unit

BASE: dict[str, Any] = {
    "train": {"method": "dasgd", "data": "digits"},
    "space": {
        "delay": {"int": [0, 15], "below": "tau"},
        "lr": {"uniform": [0.001, 1.0], "log": True},
        "tau": {"int": [1, 16], "log": True},
    },
    "objectives": [{"metric": "test_loss"}],
}


def config(**keys: Any) -> TuningConfig:
    return tuning_config({**copy.deepcopy(BASE), **keys})


def test_a_configuration_is_what_its_own_keys_make():
    made = config(search={"start_from": [{"lr": 0.1}]}, scheduler={"name": "median"})
    assert tuning_config(made.plain()) == made


def test_keys_stand_behind_those_that_they_depend_on():
    assert [domain.key for domain in config().space] == ["lr", "tau", "delay"]


def test_one_objective_is_judged_by_asha_and_several_by_none():
    two = [{"metric": "test_accuracy"}, {"metric": "time_s", "until": {"test_accuracy": 0.9}}]
    assert config().scheduler.name == "asha"
    assert config(objectives=two).scheduler.name == "none"
    assert [each.mode for each in config(objectives=two).objectives] == ["max", "min"]


def test_a_budget_that_is_not_given_is_32_trials_and_minutes_alone_are_enough():
    assert config().budget.trials == 32
    assert config(budget={"minutes": 2.0}).budget.trials is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"space": {}}, "a space must have a key"),
        ({"space": {"learning_rate": {"int": [1, 2]}}}, "must be one that is known"),
        ({"space": {"lr": {"uniform": [0, 1]}}}, "`lr` must be a number > 0 or null, but got 0.0"),
        ({"space": {"lr": {"uniform": [1, 0]}}}, "must have LOW < HIGH, but got [1, 0]"),
        ({"space": {"tau": {"uniform": [1, 4]}}}, "say int in place of uniform"),
        ({"space": {"tau": {"int": [1, 4.5]}}}, "must be [LOW, HIGH] of whole numbers"),
        ({"space": {"lr": {"unform": [1, 4]}}}, "did you mean uniform?"),
        ({"space": {"lr": {"uniform": [0, 4], "log": True}}}, "must begin above 0 for log"),
        ({"space": {"lr": {"uniform": [1, 4], "log": True, "step": 1}}}, "leave one out"),
        ({"space": {"tau": {"choice": []}}}, "must be a list of values"),
        ({"space": {"tau": {"choice": [1, 1]}}}, "must not repeat itself"),
        ({"space": {"tau": {"choice": [1, "x"]}}}, "`tau` must be"),
        ({"space": {"data": {"choice": ["digits", "mnist"]}}}, "stands in both"),
        ({"space": {"name": {"choice": ["a", "b"]}}}, "is not searched over"),
        ({"train": {}, "space": {"method": {"choice": ["dasgd", "adl"]}}}, "of one family"),
        (
            {"space": {"tau": {"int": [1, 4]}, "delay": {"int": [1, 3], "below": "tau"}}},
            "must begin below tau, which may be 1",
        ),
        (
            {"space": {"tau": {"int": [2, 4]}, "delay": {"int": [0, 3], "below": "xi"}}},
            "must name a key with a range in space or a number in train",
        ),
        (
            {
                "space": {
                    "optimizer": {"choice": ["sgd", "nag"]},
                    "momentum": {"uniform": [0, 0.9], "when": {"optimizer": "adam"}},
                }
            },
            "must be possible, but optimizer is never 'adam'",
        ),
        (
            {
                "space": {
                    "tau": {"int": [1, 4], "when": {"xi": 0.5}},
                    "xi": {"uniform": [0, 0.9], "when": {"tau": 2}},
                }
            },
            "must not go in a circle",
        ),
        ({"objectives": []}, "must be a list, such as [{metric: test_loss}]"),
        ({"objectives": [{"metric": "test_los"}]}, "did you mean test_loss?"),
        ({"objectives": [{"metric": "test_loss", "mode": "low"}]}, "must be min or max"),
        ({"objectives": [{"metric": "bytes"}] * 2}, "objectives must differ"),
        ({"objectives": [{"metric": "time_s", "until": {}}]}, "must be a column and its value"),
        (
            {
                "objectives": [{"metric": "test_loss"}, {"metric": "bytes"}],
                "scheduler": {"name": "asha"},
            },
            "a scheduler judges by one objective",
        ),
        ({"scheduler": {"unit": "step"}}, "asha must know how much step a whole trial takes"),
        ({"search": {"algorithm": "tpa"}}, "`search.algorithm` must be one of"),
        (
            {
                "objectives": [{"metric": "test_loss"}, {"metric": "bytes"}],
                "search": {"algorithm": "cmaes"},
            },
            "cmaes has one objective",
        ),
        ({"search": {"start_from": [{"lr": 7}]}}, "it is between 0.001 and 1.0"),
        ({"search": {"start_from": [{"xi": 0.1}]}}, "must be of the space's keys"),
        ({"search": {"start_from": [{"tau": 2, "delay": 2}]}}, "`delay` must be below tau"),
        ({"budget": {"trials": 0}}, "`budget.trials` must be a whole number >= 1 or null"),
        ({"budget": {"trails": 3}}, "did you mean budget.trials?"),
        ({"trian": {}}, "did you mean train?"),
        ({"train": {"method": "dasgd", "name": "x"}}, "a tuning gives its runs their folders"),
        ({"train": {"method": "dasgd", "epochs": 0}}, "`epochs` must be a whole number >= 1"),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_starts(keys, said):
    with pytest.raises(ConfigError) as told:
        config(**keys)
    assert said in str(told.value)


def test_a_choice_may_be_a_list_and_stands_as_its_json_in_the_study():
    made = tuning_config(
        {
            "train": {"method": "adl"},
            "space": {"stages": {"choice": [2, [1, 2]]}},
            "objectives": [{"metric": "test_loss"}],
        }
    )
    (stages,) = made.space
    assert stages.labels == (2, "[1, 2]")
    assert [stages.value(label) for label in stages.labels] == [2, [1, 2]]


@pytest.mark.parametrize("name", search_names())
def test_every_search_of_the_package_is_one_and_says_what_it_does(name):
    made = tuning_config(read_search(name))
    assert made.budget.trials
    assert len(search_summary(name)) > 30


def test_the_searches_are_of_every_family_and_one_has_several_objectives():
    made = [tuning_config(read_search(name)) for name in search_names()]
    families = {each.family.name for each in made}
    assert families == {"pipeline", "averaging", "parameter_server"}
    assert any(len(each.objectives) > 1 for each in made)


def test_the_command_lists_the_searches_and_refuses_an_unknown_one(capsys):
    assert main(["tune", "--list"]) == 0
    assert "adl_digits" in capsys.readouterr().out
    assert main(["tune", "adl_digts"]) == 2
    assert "did you mean adl_digits" in capsys.readouterr().err


def test_a_key_of_the_command_line_reaches_into_the_file(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {method: dasgd}\nspace: {lr: {uniform: [0.1, 1]}}\n")
    words = ["tune", str(file), "train.epochs=0", "budget.trials=2"]
    assert main(words) == 2
    assert "`epochs` must be a whole number >= 1" in capsys.readouterr().err


def test_a_search_is_kept_in_a_local_folder(capsys):
    assert main(["tune", "adl_digits", "storage=s3://bucket/runs"]) == 2
    assert "kept in a local folder" in capsys.readouterr().err


def test_a_folder_of_a_run_is_no_search(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("method: adl\n")
    assert main(["tune", "--resume", str(tmp_path)]) == 2
    assert f"raylab resume {tmp_path}" in capsys.readouterr().err


def test_a_search_that_goes_on_keeps_its_space(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("space: {}\n")
    assert main(["tune", "--resume", str(tmp_path), "train.epochs=3"]) == 2
    assert "another search" in capsys.readouterr().err
    assert Path(tmp_path, "config.yaml").read_text() == "space: {}\n"


@pytest.mark.parametrize("given", [None, 3, [], ("train",)])
def test_a_search_that_is_no_mapping_is_one_error(given):
    with pytest.raises(ConfigError, match="a search must be a mapping with train, space and"):
        tune(given)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"int": [1, 10**400]}, r"must be \[LOW, HIGH\] of whole numbers"),
        ({"choice": [object()]}, "must be of texts, numbers, true, false, null, and lists"),
        ({"choice": [1, {2: {3}}]}, "must be of texts, numbers, true, false, null, and lists"),
    ],
)
def test_what_a_study_cannot_keep_is_no_domain(rule, message):
    with pytest.raises(ConfigError, match=message):
        domain_of("epochs", rule)
