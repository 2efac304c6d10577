"""The numbers of a pipeline: what is refused, and what they mean for each stage."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from raylab.algorithms.pipeline import PIPELINE_METHODS
from raylab.drivers.pipeline.programs import programs, stage_settings
from raylab.drivers.pipeline.settings import MOST_STAGES, PipelineSettings
from raylab.errors import ConfigError

pytestmark = pytest.mark.unit

METHODS = tuple(PIPELINE_METHODS)
DELAYED = ("ddg", "fr", "adl", "dsp")
LOCAL = ("dni", "dgl")
FRESH = ("bp", "gpipe", "1f1b", "dgl")


def make(method: str = "adl", stages: Any = 4, **settings: Any) -> PipelineSettings:
    return PipelineSettings(method=method, stages=stages, **settings)


def plan(settings: PipelineSettings, report_every: int = 0):
    return programs(settings, settings.link_delays(), report_every)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "adll"}, "must be one of bp, gpipe, .*did you mean adl"),
        (
            {"method": "zzzzz"},
            "must be one of bp, gpipe, 1f1b, ddg, fr, adl, dsp, dni, dgl, but got 'zzzzz'$",
        ),
        ({"accumulate": 0}, r"accumulate \(M\) >= 1 must hold for an integer, but got 0"),
        ({"accumulate": 1.5}, r"accumulate \(M\) >= 1 must hold for an integer, but got 1.5"),
        ({"accumulate": True}, r"accumulate \(M\) >= 1 must hold for an integer, but got True"),
        ({"method": "gpipe", "micro_batches": 0}, "micro_batches >= 1 must hold"),
        ({"seed": -1}, "seed >= 0 must hold for an integer, but got -1"),
        ({"seed": "7"}, "seed >= 0 must hold for an integer, but got '7'"),
        ({"stages": 0}, f"1 <= stages <= {MOST_STAGES} must hold, but got 0 stages"),
        ({"stages": -2}, f"1 <= stages <= {MOST_STAGES} must hold, but got -2 stages"),
        ({"stages": MOST_STAGES + 1}, f"but got {MOST_STAGES + 1} stages"),
        ({"stages": tuple(range(1, MOST_STAGES + 1))}, f"but got {MOST_STAGES + 1} stages"),
        ({"weight_version": "old"}, "weight_version must be forward or current, but got 'old'"),
        ({"precision": "float16"}, "precision must be float32 or bfloat16, but got 'float16'"),
        ({"wire": "tcp"}, "wire must be zmq or ray, but got 'tcp'"),
        ({"clip_norm": 0.0}, "clip_norm > 0 must hold, but got 0.0"),
        ({"clip_norm": math.nan}, "clip_norm > 0 must hold, but got nan"),
        ({"clip_value": -1.0}, "clip_value > 0 must hold, but got -1.0"),
        ({"clip_value": math.inf}, "clip_value > 0 must hold, but got inf"),
        ({"delay": -1}, "delay >= 0 must hold for an integer, but got -1"),
        ({"delay": True}, "delay >= 0 must hold for an integer, but got True"),
        ({"delay": 1.5}, "a number, a list or 'auto', but got 1.5"),
        ({"delay": "fast"}, "a number, a list or 'auto', but got 'fast'"),
        ({"delay": (1, 2)}, r"one number per link, 3 for 4 stages, but got \[1, 2\]"),
        ({"delay": (1, 2, -1)}, "each delay >= 0 must hold for an integer, but got -1"),
        ({"delay": (1, 2, 1.0)}, "each delay >= 0 must hold for an integer, but got 1.0"),
    ],
)
def test_what_is_out_of_range_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        make(**settings)


@pytest.mark.parametrize("stages", [2.5, "auto", "2", None, True, (1, "2"), (1.5,)])
def test_stages_must_be_a_number_or_numbers(stages):
    with pytest.raises(ConfigError, match="stages"):
        make(stages=stages)


@pytest.mark.parametrize("delay", [0, 1, (1, 1, 1), "auto"])
@pytest.mark.parametrize("method", FRESH)
def test_a_delay_belongs_to_the_methods_whose_gradients_are_late(method, delay):
    with pytest.raises(ConfigError, match=f"ddg, fr, adl.*method={method}"):
        make(method, delay=delay)


@pytest.mark.parametrize("delay", [0, 1, 7, (1, 2, 0), "auto", None])
@pytest.mark.parametrize("method", DELAYED)
def test_any_delay_goes_with_a_late_method(method, delay):
    assert make(method, delay=delay).delay == delay


@pytest.mark.parametrize("beta", [0, 0.0, -0.5, 1.01, math.nan, "0.5", True, None])
def test_gradient_shrink_must_be_a_factor_that_leaves_something(beta):
    with pytest.raises(ConfigError, match="0 < gradient_shrink <= 1 must hold, but got"):
        make("ddg", gradient_shrink=beta)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in DELAYED])
def test_gradient_shrink_belongs_to_late_gradients(method):
    assert make(method, gradient_shrink=1).gradient_shrink == 1
    with pytest.raises(ConfigError, match=f"ddg, fr, adl, dsp, .*method={method}"):
        make(method, gradient_shrink=0.9)


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_lock_step_is_refused_where_a_method_is_synchronous_anyway(method):
    with pytest.raises(ConfigError, match=f"barrier=True .* got method={method}"):
        make(method, barrier=True)


@pytest.mark.parametrize("method", LOCAL)
def test_lock_step_is_refused_where_no_stage_waits_for_a_gradient(method):
    with pytest.raises(ConfigError, match=f"barrier=True .* got method={method}.*wait for no"):
        make(method, barrier=True)


def test_the_delay_of_dni_is_that_of_its_corrections_link_by_link():
    assert [p.link_delay for p in plan(make("dni"))] == [1, 1, 1, 0]
    made = plan(make("dni", delay=(0, 3, 2)))
    assert [p.link_delay for p in made] == [0, 3, 2, 0]
    assert {p.delay for p in made} == {0}
    with pytest.raises(ConfigError, match=r"delay='auto' .* got method=dni"):
        make("dni", delay="auto")


@pytest.mark.parametrize("method", METHODS)
def test_every_stage_has_labels_where_it_makes_its_own_gradients(method):
    feedback = {"dni": "target", "dgl": "none"}.get(method, "error")
    assert [p.feedback for p in plan(make(method))] == [feedback] * 4
    assert [p.labelled for p in plan(make(method))] == [method in LOCAL] * 4


@pytest.mark.parametrize("method", ["bp", *DELAYED])
def test_lock_step_goes_with_the_methods_of_the_papers(method):
    assert make(method, barrier=True).barrier


@pytest.mark.parametrize(
    ("stages", "count"), [(1, 1), (MOST_STAGES, MOST_STAGES), ((), 1), ((3,), 2), ((1, 4, 6), 4)]
)
def test_stages_are_a_number_or_cut_points(stages, count):
    assert make(stages=stages).count == count


def test_micro_batches_count_for_the_methods_that_have_them():
    assert [make(method, micro_batches=8).parts for method in METHODS] == [1, 8, 8] + [1] * 6


@pytest.mark.parametrize("balance", ["measured", "memory"])
def test_a_balance_is_for_a_number_of_stages_not_for_cut_points(balance):
    PipelineSettings(method="adl", stages=3, balance=balance)
    with pytest.raises(ConfigError, match=rf"balance={balance} with the cut points \[1, 2\]"):
        PipelineSettings(method="adl", stages=(1, 2), balance=balance)


def test_settings_are_frozen_and_survive_pickling():
    settings = make(delay=(1, 2, 1), clip_norm=1.0)
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 3


@pytest.mark.parametrize(
    ("method", "delays"),
    [
        ("bp", [0, 0, 0, 0]),
        ("gpipe", [None, None, None, None]),
        ("1f1b", [3, 2, 1, 0]),
        ("ddg", [3, 2, 1, 0]),
        ("fr", [3, 2, 1, 0]),
        ("adl", [6, 4, 2, 0]),
        ("dsp", [6, 4, 2, 0]),
        ("dni", [0, 0, 0, 0]),
        ("dgl", [0, 0, 0, 0]),
    ],
)
def test_the_delay_of_a_stage_is_the_sum_of_the_links_above_it(method, delays):
    made = plan(make(method, accumulate=3), report_every=5)
    assert [program.delay for program in made] == delays
    assert [program.stage for program in made] == [0, 1, 2, 3]
    assert {program.stages for program in made} == {4}
    assert {program.accumulate for program in made} == {3}
    assert {program.report_every for program in made} == {5}
    assert {program.flush for program in made} == {method in ("gpipe", "1f1b")}


@pytest.mark.parametrize(
    ("delay", "links"), [(3, [3, 3, 3]), ((0, 2, 1), [0, 2, 1]), ("auto", [2, 2, 2])]
)
@pytest.mark.parametrize("method", DELAYED)
def test_a_chosen_delay_takes_the_place_of_the_methods_own(method, delay, links):
    settings = make(method, delay=delay)
    assert settings.link_delays() == links
    sums = [sum(links[k:]) for k in range(4)]
    assert [program.delay for program in plan(settings)] == sums


@pytest.mark.parametrize("method", [m for m in METHODS if m != "gpipe"])
def test_one_stage_has_no_link_and_no_delay(method):
    settings = make(method, stages=1)
    assert settings.link_delays() == []
    (program,) = plan(settings)
    assert (program.delay, program.first, program.last) == (0, True, True)


@pytest.mark.parametrize(
    ("method", "delay", "offsets", "span"),
    [
        ("bp", None, [0, 0, 0, 0], 0),
        ("ddg", None, [0, 0, 0, 0], 3),
        ("fr", None, [0, 0, 0, 0], 3),
        ("adl", None, [0, 1, 2, 3], 6),
        ("ddg", 2, [0, 1, 2, 3], 6),
        ("adl", (2, 1, 3), [0, 1, 1, 2], 6),
        ("adl", (1, 0, 2), [0, 0, 0, 1], 3),
    ],
)
def test_lock_step_lags_one_tick_over_every_link_with_time_for_it(method, delay, offsets, span):
    made = plan(make(method, delay=delay, barrier=True))
    assert [program.offset for program in made] == offsets
    assert {program.span for program in made} == {span}
    assert all(program.barrier for program in made)
    # Enough ticks for the last gradient of every stage.
    assert span == max(program.offset + program.delay for program in made)


@pytest.mark.parametrize("method", METHODS)
def test_without_lock_step_there_are_no_ticks(method):
    for program in plan(make(method)):
        assert (program.barrier, program.offset, program.span) == (False, 0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_is_told_all_that_it_computes_with(method):
    settings = make(
        method,
        accumulate=3,
        weight_version="current",
        clip_norm=1.5,
        clip_value=0.5,
        precision="bfloat16",
        seed=11,
    )
    for program in plan(settings):
        found = stage_settings(settings, program, protect_inputs=True, device="cpu")
        assert (found.stage, found.stages) == (program.stage, 4)
        assert (found.delay, found.accumulate) == (program.delay, 3)
        assert found.flush == (method in ("gpipe", "1f1b"))
        assert found.replay == (method in ("fr", "dsp"))
        assert found.weight_version == "current"
        assert (found.clip_norm, found.clip_value) == (1.5, 0.5)
        assert (found.precision, found.seed) == ("bfloat16", 11)
        assert found.protect_inputs
        assert found.device == "cpu"
        assert found.last == (program.stage == 3)
