from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import raylab
from raylab.cli.main import main
from raylab.config import ALL_METHODS, FAMILIES, METHODS, experiment_names
from raylab.errors import NonFiniteLossError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the complaint about bad input, for which nothing was started or printed."""
    running = ray.is_initialized()
    assert main(words) == 2
    assert ray.is_initialized() is running
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def helped(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# --- help and lists


def test_help_shows_the_commands_and_an_example(capsys):
    text = helped(capsys, "--help")
    assert "  train " in text
    assert "raylab train demo" in text


def test_help_of_train_has_every_key_with_its_default(capsys):
    text = helped(capsys, "train", "--help")
    for name in (name for family in FAMILIES for name in family.fields):
        assert re.search(rf"^  {name}=\S+ ", text, re.MULTILINE), name
    assert "  epochs=1 " in text
    assert "  lr=null " in text


def test_help_of_train_has_examples_starts_and_exit_codes(capsys):
    text = helped(capsys, "train", "--help")
    for name in (*ALL_METHODS, *experiment_names()):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    for code in (0, 1, 2, 130):
        assert re.search(rf"^  {code} +[a-z]", text, re.MULTILINE), code
    assert "raylab train adl stages=4" in text
    for option in ("--json", "--quiet", "--list"):
        assert f"  {option} " in text


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_help_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = helped(capsys, "train", "--help")
    keys = text[text.index("  method=adl") : text.index("a run leaves")]
    assert max(map(len, keys.splitlines())) <= max(72, min(int(columns), 110))


def test_list_shows_every_method_and_experiment(capsys):
    text = helped(capsys, "train", "--list")
    for name in (*ALL_METHODS, *experiment_names()):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


def test_list_is_one_json_object_if_asked(capsys):
    listed = json.loads(helped(capsys, "train", "--list", "--json"))
    assert listed["methods"] == ALL_METHODS
    assert tuple(listed["experiments"]) == experiment_names()


def test_version(capsys):
    assert helped(capsys, "--version") == f"raylab {raylab.__version__}\n"


def test_no_command_shows_the_help(capsys):
    assert "commands:" in refused(capsys)


def test_python_m_raylab_is_raylab():
    done = subprocess.run(
        [sys.executable, "-m", "raylab", "train", "adll"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "did you mean adl" in done.stderr


# --- bad input: exit code 2 and a message with the way out, before Ray is started


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tran", "but got 'tran': did you mean train?"),
        ("train", "NAME or FILE.yaml must be given"),
        ("plan", "what is planned must be pipeline or averaging, but got nothing"),
        ("plan adl", "must be pipeline or averaging, but got 'adl': raylab plan pipeline adl"),
        ("plan avraging", "but got 'avraging': did you mean averaging?"),
        ("plan pipeline", "for instance: raylab plan pipeline adl"),
        ("plan pipeline adll", "but got 'adll': did you mean adl?"),
        ("plan pipeline adl model=mlp stages=9", "but got stages=9 for a chain of 3 blocks"),
        ("plan pipeline adl stages=[1] balance=memory", "leave one of them out"),
        (
            "train adl balance=mesured",
            "`balance` must be one of counted, measured, memory, but got",
        ),
        ("train --bogus", "unrecognized arguments: --bogus"),
        ("train adll", "but got 'adll': did you mean adl"),
        ("train ddg_resnet", "did you mean ddg_resnet110"),
        ("train xyzzy", "raylab train --list shows them"),
        ("train stages=3", "for instance raylab train adl stages=3"),
        ("train none.yaml", "there is none at none.yaml"),
        ("train adl stages", "a setting must be key=value, such as stages=VALUE"),
        ("train adl epoch=3", "a key must be one that is known, but got `epoch`"),
        ("train adl epochs=three", "`epochs` must be a whole number >= 1, but got 'three'"),
        ("train adl accumulate=0", "`accumulate` must be a whole number >= 1, but got 0"),
        ("train adl --json accumulate=0 --quiet", "`accumulate` must be a whole number >= 1"),
        ("train adl stages=17", "1 <= stages <= 16 must hold"),
        ("train adl model=mlp stages=9", "1 <= stages <= blocks must hold, but got stages=9"),
        ("train adl model=mlp stages=[2,1]", "cut points must ascend"),
        ("train bp delay=2", "delay belongs to the delayed-gradient methods"),
        ("train adl data=npz:/none.npz", "`npz:PATH` must name a file"),
        ("train adl data=digit", "did you mean digits?"),
        ("train adl data=cifar10 data_root=/none", "pass download=true to fetch them"),
        ("train adl model=mpl", "did you mean 'mlp'?"),
        ("train adl model=resnet9", "depth = 6n + 2"),
        ("train adl model=mlp model_options.width=3", "must be one of ['hidden']"),
        ("train adl model=mlp model_options.hidden=3", "`model_options` must fit mlp"),
        ("train adl model_options.num_classes=3", "num_classes follows from the data"),
        ("train adl model_options.name=mlp", "name is set by model=NAME"),
        ("train adl optimizer=adm", "did you mean adam"),
        ("train adl optimizer=adam momentum=0.9", "but got momentum"),
        ("train adl optimizer_options.lr=3", "lr is set by lr=VALUE"),
        ("train adl optimizer_options.nestrov=true", "but got nestrov"),
        ("train adl recipe=adll", "did you mean adl?"),
        ("train adl schedule=steps", "schedule=steps needs milestones"),
        ("train adl storage=nowhere://bucket", "must be a local folder or an address"),
    ],
)
def test_bad_input_is_explained_before_anything_starts(capsys, words, message):
    assert message in refused(capsys, *words.split())


def test_a_file_that_is_no_yaml_by_name_is_explained(capsys, tmp_path):
    path = tmp_path / "config.txt"
    path.write_text("method: adl\n")
    assert "must end in .yaml" in refused(capsys, "train", str(path))


def test_a_file_is_checked_like_the_command_line(capsys, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("stages: two\nlr: 1e-3\n")
    lines = refused(capsys, "train", str(path), "epoch=2").splitlines()
    assert lines[0].startswith("raylab: error: `stages` must be")
    assert lines[1].startswith("               a key must be one that is known")
    assert len(lines) == 2


# --- plans that start nothing


def test_a_counted_plan_starts_nothing_and_is_one_json_object(capsys):
    running = ray.is_initialized()
    words = ["model=mlp", "model_options.hidden=[32,16]", "stages=3", "--counted", "--json"]
    plan = json.loads(helped(capsys, "plan", "pipeline", "fr", *words))
    assert ray.is_initialized() is running
    assert (plan["model"], plan["cuts"], plan["measured"]) == ("mlp", [1, 2], False)
    assert [stage["blocks"] for stage in plan["stages"]] == [["layer1"], ["layer2"], ["layer3"]]
    assert [stage["parameters"] for stage in plan["stages"]] == [64 * 32 + 32, 32 * 16 + 16, 170]
    assert [link["bytes"] for link in plan["links"]] == [64 * 32 * 4, 64 * 16 * 4]
    methods = {row["method"]: row for row in plan["methods"]}
    assert set(methods) == {*METHODS, "auto"}
    assert [name for name, row in methods.items() if row["asked"]] == ["fr"]
    assert methods["bp"]["speed_up"] == 1.0
    assert methods["bp"]["samples_per_s"] is None
    assert methods["adl"]["staleness"] == 2 * methods["ddg"]["staleness"] == 2.0


@pytest.mark.parametrize("columns", [80, 120])
def test_a_plan_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = helped(capsys, "plan", "pipeline", "adl", "model=resnet20", "stages=4", "--counted")
    assert max(map(len, text.splitlines())) <= columns
    for said in ("stem … group1_block2 (3)", "0 – 1", "adl *", "choose ddg: "):
        assert said in text


def test_help_of_plan_has_examples_and_exit_codes(capsys):
    text = helped(capsys, "plan", "pipeline", "--help")
    for said in ("raylab plan pipeline adl stages=4", "--counted", "--json", "  130  interrupted"):
        assert said in text


# --- other ends


def test_a_failed_run_is_exit_code_1(capsys, monkeypatch):
    def fail(argv):
        raise NonFiniteLossError("the loss must be finite, but it was nan")

    monkeypatch.setattr("raylab.cli.train.run", fail)
    assert main(["train", "adl"]) == 1
    assert capsys.readouterr().err == "raylab: error: the loss must be finite, but it was nan\n"


def test_an_interrupted_run_is_exit_code_130(capsys, monkeypatch):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("raylab.cli.train.run", interrupt)
    assert main(["train", "adl"]) == 130
    assert capsys.readouterr().err == "raylab: interrupted\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(argv):
        raise ZeroDivisionError

    monkeypatch.setattr("raylab.cli.train.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train", "adl"])


def test_a_reader_that_goes_away_is_no_error():
    script = f"{sys.executable} -m raylab train --help | true"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
