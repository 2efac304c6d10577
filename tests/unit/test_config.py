from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from raylab.algorithms.pipeline import PIPELINE_METHODS
from raylab.config import (
    ALL_METHODS,
    METHODS,
    PipelineConfig,
    apply_pairs,
    experiment_names,
    experiment_summary,
    pipeline_config,
    read_experiment,
    read_yaml,
    run_config,
)
from raylab.config.rules import choices_of, rule_of
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.drivers.resolve import resolve
from raylab.errors import ConfigError
from raylab.models import build
from raylab.optimizers import RECIPES

pytestmark = pytest.mark.unit

FIELDS = PipelineConfig.model_fields


def configured(*pairs: str) -> PipelineConfig:
    return pipeline_config(apply_pairs({}, pairs))


def complaint(*pairs: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(*pairs)
    return str(caught.value)


# --- key=value


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("lr=1e-3", "lr", 1e-3),
        ("lr=1E3", "lr", 1e3),
        ("lr=1", "lr", 1.0),
        ("lr=null", "lr", None),
        ("lr=", "lr", None),
        ("augment=true", "augment", True),
        ("stages=4", "stages", 4),
        ("stages=[3,6]", "stages", [3, 6]),
        ("delay=auto", "delay", "auto"),
        ("delay=[0,2]", "delay", [0, 2]),
        ("milestones=[1e1,20]", "milestones", [10.0, 20.0]),
        ("model_options={width: 8}", "model_options", {"width": 8}),
        ("model_options.hidden=[64,32]", "model_options", {"hidden": [64, 32]}),
        ("optimizer_options.eps=1e-8", "optimizer_options", {"eps": 1e-8}),
        ("name=007", "name", "007"),
        ("name=1e3", "name", "1e3"),
        ("name=on", "name", "on"),
        ("name=null", "name", None),
        ("storage=~", "storage", "~"),
        ("data=npz:a: b.npz", "data", "npz:a: b.npz"),
        ("data=random:n=9,shape=3x8x8", "data", "random:n=9,shape=3x8x8"),
    ],
)
def test_a_value_is_read_as_its_key_needs_it(pair, key, value):
    read = getattr(configured(pair), key)
    assert read == value
    assert type(read) is type(value)


def test_later_pairs_go_before_earlier_ones():
    assert configured("epochs=3", "epochs=4").epochs == 4


def test_a_dotted_key_leaves_the_other_keys_of_its_mapping():
    base = {"model_options": {"block": "basic", "width": 1}}
    merged = apply_pairs(base, ["model_options.width=2"])
    assert merged == {"model_options": {"block": "basic", "width": 2}}
    assert base == {"model_options": {"block": "basic", "width": 1}}


def test_a_whole_mapping_replaces_the_one_below():
    base = {"model_options": {"block": "basic"}}
    assert apply_pairs(base, ["model_options={}"]) == {"model_options": {}}


@pytest.mark.parametrize("pair", ["epochs", "=3", "", "a..b=1", ".a=1", "--lr"])
def test_what_is_no_pair_is_refused(pair):
    message = complaint(pair)
    assert message.startswith("a setting must be key=value")
    assert repr(pair) in message


def test_a_key_without_a_value_is_shown_with_one():
    assert "such as lr=VALUE" in complaint("lr")


def test_a_value_that_is_no_yaml_is_refused():
    assert "stages=[1 is not, line 1, column 3" in complaint("stages=[1")


def test_a_dot_into_what_is_no_mapping_is_refused():
    assert complaint("model_options=3", "model_options.width=1") == (
        "`model_options` must be a mapping for model_options.width to be set, but it is 3"
    )


# --- validation


@pytest.mark.parametrize(
    ("pair", "rule"),
    [
        (
            "method=afl",
            f"`method` must be one of {', '.join(ALL_METHODS)}, but got 'afl'",
        ),
        ("epochs=0", "`epochs` must be a whole number >= 1, but got 0"),
        ("epochs=2.5", "`epochs` must be a whole number >= 1, but got 2.5"),
        ("epochs=true", "`epochs` must be a whole number >= 1, but got true"),
        ("epochs=null", "`epochs` must be a whole number >= 1, but got null"),
        ("accumulate=0", "`accumulate` must be a whole number >= 1, but got 0"),
        ("lr=fast", "`lr` must be a number > 0 or null, but got 'fast'"),
        ("lr=0", "`lr` must be a number > 0 or null, but got 0"),
        ("lr=.nan", "`lr` must be a number > 0 or null, but got nan"),
        ("lr=.inf", "`lr` must be a number > 0 or null, but got inf"),
        ("augment=1", "`augment` must be true or false, but got 1"),
        ("model=", "`model` must be a text that is not empty, but got ''"),
        ("model_options=3", "`model_options` must be a mapping, but got 3"),
        (
            "stages=[2,0]",
            "`stages` must be a whole number >= 1 or a list of whole numbers >= 1, but got [2, 0]",
        ),
        (
            "delay=soon",
            "`delay` must be a whole number >= 0 or a list of whole numbers >= 0 or auto or null, "
            "but got 'soon'",
        ),
        ("seed=-1", "`seed` must be a whole number >= 0 and < 4294967296, but got -1"),
        ("seed=4294967296", "must be a whole number >= 0 and < 4294967296, but got 4294967296"),
        ("milestones=[a]", "`milestones` must be a list of numbers >= 0 or null, but got ['a']"),
        ("wire=tcp", "`wire` must be zmq or ray, but got 'tcp'"),
    ],
)
def test_a_wrong_value_is_told_its_rule(pair, rule):
    message = complaint(pair)
    assert rule in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("pair", "meant"),
    [("epoch=3", "epochs"), ("precision=bfloat", "bfloat16"), ("wire=zqm", "zmq")],
)
def test_a_near_miss_is_pointed_out(pair, meant):
    assert f"did you mean {meant}?" in complaint(pair)


def test_an_unknown_key_that_is_like_no_other_is_pointed_to_the_help():
    assert "raylab train --help" in complaint("xyzzy=3")


def test_every_problem_has_one_line():
    lines = complaint("stages=0", "lr=fast", "epoch=2").splitlines()
    assert len(lines) == 3
    for line, key in zip(lines, ("stages", "lr", "epoch"), strict=True):
        assert f"`{key}`" in line


def test_a_long_value_is_cut_short():
    assert len(complaint(f"epochs={list(range(500))}")) < 150


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        PipelineConfig().epochs = 3


# --- files


def test_a_file_says_1e_3_and_means_a_number(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-3\noptimizer_options: {eps: 1e-8}\nname: 1e3x\n")
    assert read_yaml(path) == {"lr": 1e-3, "optimizer_options": {"eps": 1e-8}, "name": "1e3x"}


def test_an_empty_file_sets_nothing(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a file, but there is none at"),
        ("a: 1\nb: [\n", "is not, line 3, column 1"),
        ("lr: 1\nlr: 2\n", "is not, line 2, column 1: the key 'lr' stands twice"),
        ("- 1\n", "must be a mapping, one `key: value` a line, but"),
        ("3: 1\n", "must be a mapping, one `key: value` a line, but"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("name: 2024-02-31\n", "day is out of range for month"),
        ("? [1]\n: 2\n", "found unhashable key"),
        (b"\xff\xfe\x00", "must be a readable text file"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="readable text file"):
        read_yaml(tmp_path)


def test_a_key_of_the_command_line_goes_before_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\nbatch_size: 16\n")
    config = pipeline_config(apply_pairs(read_yaml(path), ["epochs=5"]))
    assert (config.epochs, config.batch_size, config.accumulate) == (5, 16, 1)


# --- the experiments that ship


@pytest.mark.parametrize("name", experiment_names())
def test_an_experiment_is_valid_and_fits_its_model(name):
    config = resolve(pipeline_config(read_experiment(name)))
    PipelineSettings(method=config.method, stages=config.stages, accumulate=config.accumulate)
    assert len(build(config.model, **config.model_options)) >= config.stages
    assert experiment_summary(name)


def test_no_experiment_is_called_like_a_method():
    assert {"demo", "ddg_resnet110", "fr_resnet164", "adl_resnet56"} <= set(experiment_names())
    assert not set(experiment_names()) & set(ALL_METHODS)


def test_the_adl_experiment_has_the_rate_of_the_paper():
    config = resolve(pipeline_config(read_experiment("adl_resnet56")))
    assert config.lr == 0.1 * 32 * 2 / 256
    assert (config.warmup_epochs, config.milestones) == (3, [150, 225, 275])
    assert (config.momentum, config.weight_decay) == (0.9, 5e-4)


# --- no drift


def test_the_methods_are_those_that_there_are():
    assert tuple(METHODS) == tuple(PIPELINE_METHODS)
    assert choices_of(FIELDS["method"]) == list(PIPELINE_METHODS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_key_is_described_and_has_a_default_and_a_rule(name):
    field = FIELDS[name]
    assert field.description
    assert not field.is_required()
    assert rule_of(field)


def test_the_description_of_recipe_names_them_all():
    assert all(name in str(FIELDS["recipe"].description) for name in RECIPES)


def test_reading_a_configuration_imports_neither_torch_nor_ray():
    script = (
        "import sys, raylab.cli.main, raylab.cli.train, raylab.cli.help; "
        "sys.exit(bool({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


# --- what is resolved before a run


def test_resolving_twice_changes_nothing():
    for pairs in (
        [],
        ["optimizer=adam"],
        ["recipe=ddg"],
        ["recipe=adl", "schedule=cosine", "lr=0.3"],
        ["milestones=[3]", "warmup_epochs=1"],
    ):
        once = resolve(configured(*pairs))
        assert resolve(pipeline_config(once.model_dump())) == once


def test_defaults_depend_on_the_optimizer():
    assert (resolve(configured()).lr, resolve(configured()).momentum) == (0.05, 0.9)
    adam = resolve(configured("optimizer=adam"))
    assert (adam.lr, adam.momentum) == (1e-3, None)


def test_a_recipe_gives_way_to_what_is_set():
    config = resolve(configured("recipe=ddg", "lr=0.2", "momentum=0", "milestones=[7]"))
    assert (config.lr, config.momentum, config.milestones) == (0.2, 0, [7])
    assert (config.weight_decay, config.gamma, config.recipe) == (5e-4, 0.1, None)


@pytest.mark.parametrize(
    ("pairs", "size"),
    [
        (["model=resnet8"], 32),
        (["model=mlp"], None),
        (["model=cnn5"], None),
        (["model=resnet8", "image_size=16"], 16),
        (["model=resnet8", "data=mnist"], None),
    ],
)
def test_digits_are_enlarged_for_the_models_that_need_it(pairs, size):
    assert resolve(configured(*pairs)).image_size == size


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            ["recipe=huo"],
            "`recipe` must be one of ddg, fr, adl, adl_imagenet, lars, clars, but got 'huo'",
        ),
        (["recipe=adl", "optimizer=adam"], "recipe=adl with optimizer=adam"),
        (["gamma=0.5"], "`gamma` belongs to schedule=steps"),
        (["milestones=[3]", "schedule=cosine"], "`milestones` belongs to schedule=steps"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(pairs, message):
    with pytest.raises(ConfigError) as caught:
        resolve(configured(*pairs))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pairs", "size"),
    [
        (["data=digits"], 16),
        (["data=digits", "method=dasgd"], 16),
        (["data=digits", "model=mlp"], 64),
        (["data=digits", "model=mlp", "method=dasgd"], 32),
        (["data=cifar10"], 64),
        (["data=cifar10", "method=local_sgd"], 32),
        (["data=digits", "batch_size=48"], 48),
    ],
)
def test_a_batch_is_small_where_an_epoch_of_digits_would_be_few(pairs, size):
    config = resolve(run_config(apply_pairs({}, pairs)))
    assert (config.batch_size, config.eval_batch_size) == (size, size)
    assert resolve(config) == config
