"""The keys of a parameter server's run, and how the commands tell the families apart."""

from __future__ import annotations

import pytest

from raylab import ParameterServerTrainer, tune
from raylab.algorithms.server.rule_factory import SERVER_METHODS as RULES
from raylab.cli.main import main
from raylab.config import (
    FAMILIES,
    SERVER_METHODS,
    ParameterServerConfig,
    PipelineConfig,
    apply_pairs,
    family_of,
    pipeline_config,
    run_config,
)
from raylab.config.parameter_server import DATA, EPISODES, SHARED
from raylab.config.rules import choices_of, rule_of
from raylab.drivers.compare import plan_comparison
from raylab.drivers.server.command import resolve_server
from raylab.errors import ConfigError, DataError
from raylab.problems import PROBLEMS

pytestmark = pytest.mark.unit

FIELDS = ParameterServerConfig.model_fields


def configured(method: str, *pairs: str) -> ParameterServerConfig:
    config = run_config(apply_pairs({"method": method}, pairs))
    assert isinstance(config, ParameterServerConfig)
    return config


def test_the_methods_and_problems_are_those_that_there_are():
    assert set(SERVER_METHODS) == {*RULES, SHARED}
    assert set(choices_of(FIELDS["method"])) == set(SERVER_METHODS)
    assert set(choices_of(FIELDS["problem"])) == {*PROBLEMS, EPISODES}


def test_no_method_is_of_two_families_and_each_finds_its_own():
    names = [name for family in FAMILIES for name in family.methods]
    assert len(set(names)) == len(names)
    assert family_of({"method": "cocoa_plus"}).config is ParameterServerConfig
    assert family_of({"method": "adl"}).config is PipelineConfig
    assert family_of({}).config is PipelineConfig


def test_the_method_says_how_values_are_read():
    assert configured("asysvrg", "workers=[2,8]", "eta=1e-3").workers == [2, 8]
    # A pipeline's name is text, and so is a server's straggler, as it is typed.
    assert configured("dis_dfsdca", "straggler=1e-3").straggler == "1e-3"
    assert configured("dis_dfsdca", "options.gamma=0.5").options == {"gamma": 0.5}
    other = run_config(apply_pairs({"method": "adl"}, ["method=sdca", "workers=1"]))
    assert isinstance(other, ParameterServerConfig)


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        (["worker=3"], "a key must be one that is known, but got `worker`: did you mean workers?"),
        (
            ["workers=0"],
            "`workers` must be a whole number >= 1 or a list of whole numbers >= 1 or null",
        ),
        (["problem=rigde"], "but got 'rigde': did you mean ridge?"),
        (["eta=0"], "`eta` must be a number > 0 or"),
        (["stages=2"], "got `stages`"),
        (["tolerance=-1"], "`tolerance` must be a number >= 0, but got -1"),
        (["method=dis_dfsda"], "did you mean dis_dfsdca?"),
    ],
)
def test_a_wrong_key_or_value_is_told_its_rule(pairs, complaint):
    with pytest.raises(ConfigError) as told:
        run_config(apply_pairs({"method": "dis_dfsdca"}, pairs))
    assert complaint in str(told.value)


def test_serial_methods_have_one_worker_unless_asked():
    for method, workers in (("dis_dfsdca", 4), ("sdca", 1)):
        assert resolve_server(configured(method)).workers == workers
        assert resolve_server(configured(method, "workers=7")).workers == 7


def test_what_is_left_out_depends_on_the_problem_and_is_written_down():
    rows = resolve_server(configured("shared_asysvrg"))
    assert (rows.workers, rows.epochs, rows.data) == (4, 100.0, DATA)
    episodes = resolve_server(configured("asysgd", "problem=cartpole"))
    assert (episodes.workers, episodes.epochs, episodes.data) == (4, 20.0, None)
    assert resolve_server(episodes) == episodes


def test_threads_stay_as_many_as_they_were():
    trainer = ParameterServerTrainer("ridge", method="shared_asysvrg", workers=2)
    with pytest.raises(ConfigError, match="shared_asysvrg keeps the workers"):
        trainer.resize(3)


def test_rows_must_be_given_and_episodes_must_not():
    with pytest.raises(DataError, match="data must be given for problem=ridge"):
        ParameterServerTrainer("ridge").fit()
    with pytest.raises(DataError, match="cartpole makes its own data"):
        ParameterServerTrainer("cartpole", method="asysgd").fit("digits")


def test_every_rule_can_be_said():
    for field in FIELDS.values():
        assert rule_of(field)


def test_a_server_is_no_pipeline_to_plan():
    with pytest.raises(ConfigError, match=r"`method` must be a pipeline's, one of bp, .*asysvrg"):
        pipeline_config({"method": "asysvrg"})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("train dis_dfsdca data=nothing:at.all", "rows must be one of"),
        ("train dis_dfsdca data=libsvm:/nowhere", "/nowhere"),
        ("train dis_dfsdca strength=0.0", "lambda must be above 0"),
        ("train sdca workers=2", "sdca is serial and has one worker"),
        ("train asysvrg straggler=papers", "a straggler must be one of"),
        ("train dis_dfsdca options.mu=3", "the options of ridge are none"),
        ("train cocoa_plus workers=[3,2]", "workers must be a number >= 1, or the fewest"),
        ("train dis_dfsdca local_steps=6000 workers=2", "local_steps must be 1 to 5000"),
        ("train asysvrg sampling=adaptive", "sampling='adaptive' is of dis_dfsdca"),
        ("train cocoa_plus problem=pca data=pca:n=100,d=5", "maximises the duals of linear models"),
        ("train asysvrg coordinates=9", "asysvrg has no use for coordinates=9: leave that out, or"),
        (
            "train shared_asysvrg straggler=paper delta=3",
            "shared_asysvrg has no use for straggler=paper, delta=3: leave that out",
        ),
        ("train shared_asysvrg workers=[1,2]", "keeps the workers that it begins with"),
        (
            "train shared_asysvrg coordinates=9 data=sparse:n=20,d=8,density=0.5",
            "coordinates must be 1 to 8",
        ),
        ("train dis_dfsdca problem=cartpole", "cartpole is trained by asysgd"),
        ("train asysgd problem=cartpole batch=5", "cartpole has no use for batch=5"),
        ("train asysgd problem=cartpole data=digits", "cartpole makes its own data"),
        ("train asysgd problem=cartpole eta=theory", 'cartpole has no eta="theory"'),
        ("train asysgd problem=cartpole options.hiden=8", "but got 'hiden'"),
        (
            "train asysgd problem=cartpole options.environments=2.5",
            "options.environments must be a whole number, but got 2.5",
        ),
        ("compare methods=adl,asysvrg", "methods must be of one family"),
        ("plan pipeline asysvrg", "`method` must be a pipeline's"),
    ],
)
def test_bad_input_is_one_message_before_anything_starts(capsys, tmp_path, words, complaint):
    given = words.split()
    where = [f"storage={tmp_path}"] if given[0] != "plan" else []
    assert main([*given, *where]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err
    assert "Traceback" not in err
    assert list(tmp_path.rglob("*.yaml")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eta": 0.1}, r"cocoa_plus .* has no step, but got eta=0.1"),
        ({"straggler": "slow:worker=99"}, "must be 0 to 3, one of workers=4, but got 99"),
        ({"workers": 8}, "sdca is serial"),
        ({"problem": "pca"}, "cocoa_plus maximises the duals of linear models"),
    ],
)
def test_a_comparison_is_refused_before_its_first_run_for_what_its_last_could_not_do(
    tmp_path, changes, words
):
    config = ParameterServerConfig(storage=str(tmp_path), name="both", **changes)
    with pytest.raises(ConfigError, match=words):
        plan_comparison(config, ["dis_dfsdca", "cocoa_plus", "sdca"], [0])
    assert not (tmp_path / "both").exists()


def test_a_search_is_refused_before_it_starts_for_keys_that_do_not_go_together(tmp_path):
    search = {
        "train": {"method": "cocoa_plus", "data": "sparse:n=90,d=5,density=0.5", "eta": 0.1},
        "space": {"strength": {"uniform": [0.01, 1.0]}},
        "objectives": [{"metric": "primal"}],
        "budget": {"trials": 2},
        "storage": str(tmp_path),
        "name": "search",
    }
    with pytest.raises(ConfigError, match=r"cocoa_plus .* has no step, but got eta=0.1"):
        tune(search)
    assert not (tmp_path / "search").exists()
