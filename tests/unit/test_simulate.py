"""`raylab simulate`: a server and its workers under virtual time, as a command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file

from raylab.cli.main import main
from raylab.records import Storage
from raylab.report import read_run, read_runs
from raylab.simulator.clock import Clock, Link

pytestmark = pytest.mark.unit

ROWS = "data=sparse:n=400,d=12,density=0.5"
SHORT = (ROWS, "epochs=6", "tolerance=0", "--quiet")


def simulated(capsys, *words):
    assert main(["simulate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    assert main(["simulate", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_simulation_leaves_the_folder_of_a_run_whose_clock_is_virtual(capsys, tmp_path):
    words = (
        "dis_dfsdca",
        *SHORT,
        "workers=4",
        "straggler=paper",
        f"storage={tmp_path}",
        "name=one",
    )
    summary = simulated(capsys, *words)
    folder = tmp_path / "one"
    found = {path.name for path in folder.iterdir()}
    assert found >= {"config.yaml", "metrics.parquet", "result.json", "report.html"}
    assert json.loads((folder / "result.json").read_text()) == summary
    assert (summary["clock"], summary["kind"]) == ("virtual", "parameter_server")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["clock"] == "virtual"
    assert config["resolved"]["n"] == 400
    rows = read_run(Storage.at(folder)).rows
    assert {row["workers"] for row in rows} == {4}
    assert rows[-1]["staleness_max"] >= 3
    assert rows[-1]["time_s"] == summary["time_s"] > 0


def test_a_simulation_from_its_own_file_repeats_every_row(capsys, tmp_path):
    where = f"storage={tmp_path}"
    simulated(capsys, "asysvrg", *SHORT, "workers=3", "straggler=heavy", where, "name=one")
    simulated(capsys, str(tmp_path / "one" / "config.yaml"), where, "name=two", "--quiet")
    one, two = read_runs([tmp_path / "one", tmp_path / "two"])
    assert one.rows == two.rows


def test_several_numbers_of_workers_have_a_folder_each_and_one_report(capsys, tmp_path):
    words = ("dis_dfsdca", ROWS, "epochs=40", "tolerance=1e-6", "--quiet")
    answer = simulated(capsys, *words, "workers=1,4", f"storage={tmp_path}", "name=all")
    assert answer["name"] == "all"
    assert [run["config"]["workers"] for run in answer["runs"]] == [1, 4]
    assert {run["ended_by"] for run in answer["runs"]} == {"tolerance"}
    first, second = (run["time_s"] for run in answer["runs"])
    assert second < first
    assert (tmp_path / "all" / "workers-4" / "result.json").exists()
    assert "speed-up" in (tmp_path / "all" / "report.html").read_text().lower()


def test_the_tables_name_virtual_time(capsys, tmp_path):
    words = ("dis_dfsdca", *SHORT, f"storage={tmp_path}")
    assert main(["simulate", *words, "workers=2"]) == 0
    assert "virtual time (s)" in capsys.readouterr().out
    assert main(["simulate", *words, "workers=1,2"]) == 0
    out = capsys.readouterr().out
    assert "virtual s" in out
    assert "speed-up" in out


@pytest.mark.parametrize(
    ("key", "floor"),
    [
        ("apply_s=0.01", lambda run: 0.01 * run["messages"]),
        ("bandwidth=1e4", lambda run: run["metrics"]["bytes"] / 2 / 1e4),
        ("sample_s=0.01", lambda run: 0.01 * run["metrics"]["samples_seen"] / 4),
        ("latency_s=0.1", lambda run: 2 * 0.1 * run["messages"] / 4),
    ],
)
def test_what_is_slow_in_the_machine_bounds_the_time(capsys, tmp_path, key, floor):
    words = ("dis_dfsdca", *SHORT, "workers=4", f"storage={tmp_path}", "name=one", key)
    run = simulated(capsys, *words)
    assert run["time_s"] >= 0.9 * floor(run) > 0.1


def test_more_workers_than_a_machine_has_processors(capsys, tmp_path):
    words = ("asysgd", "data=sparse:n=2000,d=5,density=0.5", "epochs=1", "--quiet")
    run = simulated(capsys, *words, "workers=500", "batch=2", f"storage={tmp_path}")
    assert run["messages"] >= 1000
    assert run["staleness_max"] >= 250


def test_a_worker_that_dies_is_replaced_and_the_relation_holds(capsys, tmp_path):
    words = ("dis_dfsdca", *SHORT, "workers=3", "straggler=dies:worker=1,message=3")
    run = simulated(capsys, *words, f"storage={tmp_path}")
    assert run["deaths"] == 1
    assert run["metrics"]["relation"] < 1e-12


@pytest.mark.parametrize("words", ["sdca workers=1", "cocoa_plus workers=2"])
def test_a_method_without_a_step_shows_its_progress_on_rows_as_they_were_measured(
    capsys, tmp_path, words
):
    draws = np.random.default_rng(0)
    x = draws.standard_normal((60, 4)) * np.array([1.0, 700.0, 3.0, 90.0])
    path = tmp_path / "rows"
    dump_svmlight_file(x, np.sign(x @ np.ones(4)), str(path), zero_based=False)
    ends = ("problem=ridge", "epochs=30", f"storage={tmp_path}", "name=one")
    assert main(["simulate", *words.split(), f"data=libsvm:{path}", *ends]) == 0
    err = capsys.readouterr().err
    assert "scale the columns" in err
    assert "epoch  30.0" in err
    rows = read_run(Storage.at(tmp_path / "one")).rows
    assert [row["dual"] for row in rows] == sorted(row["dual"] for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "for instance: raylab simulate dis_dfsdca"),
        ("adl stages=2", "got adl, which is a pipeline's: raylab plan pipeline adl predicts it"),
        ("demo", "raylab plan pipeline"),
        ("shared_asysvrg", "must send messages about rows of data, but got method=shared_asysvrg"),
        ("asysgd problem=cartpole", "but got problem=cartpole: raylab train runs it"),
        ("asysvrg coordinates=9", "coordinates are of shared_asysvrg"),
        ("dis_dfsca", "did you mean dis_dfsdca"),
        ("dis_dfsdca latency=1", "did you mean latency_s?"),
        ("dis_dfsdca bandwidth=0", "`bandwidth` must be a number > 0, but got 0"),
        ("dis_dfsdca workers=2,x", "`workers` must be a whole number >= 1 or a list of whole"),
        ("dis_dfsdca workers=2,2", "workers must be different numbers"),
        (f"dis_dfsdca {ROWS} workers=500", "workers=500"),
        (f"sdca {ROWS} workers=1,2", "sdca is serial and has one worker"),
        (f"dis_dfsdca {ROWS} straggler=slw", "straggler"),
        (f"dis_dfsdca {ROWS} straggler=slow:worker=99", "must be 0 to 3, one of workers=4"),
        ("dis_dfsdca data=pca:n=1000000000000,d=20", "1 TiB of memory at most"),
        ("dis_dfsdca data=sparse:n=1000000000000,d=20,density=0.1", "1 TiB of memory at most"),
    ],
)
def test_bad_input_is_explained(capsys, tmp_path, words, message):
    more = [f"storage={tmp_path}", "--quiet"] if "dfsdca " in words else []
    assert message in refused(capsys, *words.split(), *more)


def test_help_has_the_machines_keys_and_examples(capsys):
    assert main(["simulate", "--help"]) == 0
    out = capsys.readouterr().out
    for text in ("latency_s=0.0001", "bandwidth=1.25e+08", "sample_s=1e-05", "workers=1,2,4,8"):
        assert text in out
    assert max(map(len, out.splitlines())) <= 110


@given(st.lists(st.floats(0, 10), max_size=20))
def test_the_clock_never_goes_back_and_ties_keep_their_order(times):
    clock, told = Clock(), []
    for index, when in enumerate(times):
        clock.at(when, lambda index=index: told.append((clock.now, index)))
    while clock.step():
        pass
    assert told == sorted((when, index) for index, when in enumerate(times))


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 100)), max_size=20))
def test_a_link_carries_one_message_after_the_other(messages):
    link, ends = Link(10.0), [0.0]
    for when, size in sorted(messages):
        end = link.passes(when, size)
        assert end == max(when, ends[-1]) + size / 10
        ends.append(end)
    assert ends == sorted(ends)
