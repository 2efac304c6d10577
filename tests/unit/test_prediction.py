"""What a plan says: periods under a modelled clock, memory in flight, and the choice."""

from __future__ import annotations

import dataclasses
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from actors.pipeline.probes import echo, probe
from actors.wires.messages import Message
from raylab.drivers.notes import say_steps
from raylab.drivers.pipeline.measure import measured_cuts
from raylab.drivers.pipeline.plan import in_a_line, optimizer_copies
from raylab.drivers.pipeline.predict import best, predict_methods, predicted
from raylab.drivers.pipeline.rehearsal import rehearsed_period_s
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.drivers.pipeline.traced_chain import traced_chain
from raylab.planner import (
    LinkCost,
    MessageCost,
    PipelineCosts,
    StageCost,
    block_memory,
    held,
    predicted_period_s,
    response_factor,
    stage_bytes,
    trace_blocks,
)

pytestmark = pytest.mark.unit

F_S, B_S = 1.0, 2.0
P = F_S + B_S


def costs_of(
    stages: list[tuple[float, float]], latency_s: float = 0.0, handling_s: float = 0.0, **more
) -> PipelineCosts:
    message = MessageCost(latency_s=latency_s, put_s=handling_s, take_s=handling_s)
    each = [StageCost(forward_s=f, backward_s=b) for f, b in stages]
    links = [LinkCost(full=message, empty=message)] * (len(stages) - 1)
    return PipelineCosts(**{"together": each, "alone": each, "links": links, "cores": {}, **more})


def period(method: str, costs: PipelineCosts, **options) -> float:
    asked = PipelineSettings(method=method, stages=len(costs.alone), **options)
    return rehearsed_period_s(asked, asked.link_delays(), costs)


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_equal_stages_and_free_messages(stages):
    costs = costs_of([(F_S, B_S)] * stages)
    replayed = F_S if stages > 1 else 0
    bubble = (stages - 1 + 8) / 8
    assert period("bp", costs) == pytest.approx(stages * P)
    assert period("ddg", costs) == pytest.approx(P)
    assert period("adl", costs, accumulate=4) == pytest.approx(P)
    assert period("fr", costs) == pytest.approx(P + replayed)
    assert period("gpipe", costs, micro_batches=8) == pytest.approx(bubble * P)
    assert period("1f1b", costs, micro_batches=8) == pytest.approx(bubble * P)


@pytest.mark.parametrize("stages", [2, 3, 6])
def test_messages_show_in_a_link_delay_of_1_and_not_of_2(stages):
    costs = costs_of([(F_S, B_S)] * stages, latency_s=0.3)
    assert period("bp", costs) == pytest.approx(stages * P + 2 * (stages - 1) * 0.3)
    # A stall lengthens a stage's own period, so that K periods hold 2 (K-1) messages.
    assert period("ddg", costs) == pytest.approx(P + 2 * (stages - 1) / stages * 0.3)
    assert period("adl", costs) == pytest.approx(P)


def test_handling_messages_is_work_of_the_stage_under_every_delay():
    costs = costs_of([(F_S, B_S)] * 4, latency_s=0.2, handling_s=0.1)
    # In the middle: features taken and put, a gradient taken and put.
    assert period("adl", costs) == pytest.approx(P + 4 * 0.1)


@pytest.mark.parametrize("stages", [2, 4])
def test_lock_step_is_the_papers_formula(stages):
    costs = costs_of([(F_S, B_S)] * stages)
    # HUO Table 3: T_F + T_B / K, of the whole network.
    assert period("ddg", costs, barrier=True) == pytest.approx(stages * F_S + B_S)
    assert period("adl", costs, barrier=True) == pytest.approx(P)
    assert period("bp", costs, barrier=True) == pytest.approx(stages * P)


times_s = st.floats(0.1, 10)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(times_s, times_s), min_size=2, max_size=5),
    st.floats(0, 20),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_rehearsal_is_between_the_slowest_stage_and_the_closed_form(stages, latency, delay, fr):
    costs = costs_of(stages, latency_s=latency)
    found = period("fr" if fr else "ddg", costs, delay=delay)
    between = [delay] * (len(stages) - 1)
    bound = predicted_period_s(stages, [latency] * len(between), between, replay=fr)
    slowest = predicted_period_s(stages, [0.0] * len(between), between, replay=fr)
    # Over 24 batches a cycle of another length is seen but for a part of it.
    assert slowest * 0.95 <= found <= bound * 1.05


def test_a_node_does_no_more_work_than_it_has_cores():
    here = StageCost(forward_s=F_S, backward_s=B_S, cpu_s=P, node="a")
    costs = costs_of([(F_S, B_S)] * 4, together=[here] * 4, alone=[here] * 4, cores={"a": 2})
    assert period("ddg", costs) == pytest.approx(2 * P)
    assert period("bp", costs) == pytest.approx(4 * P)
    replayed = 3 * (P + F_S) + P
    assert period("fr", costs) == pytest.approx(replayed / 2)
    both = [here, here, dataclasses.replace(here, node="b"), dataclasses.replace(here, node="b")]
    costs = dataclasses.replace(costs, alone=both, together=both, cores={"a": 2, "b": 2})
    assert period("ddg", costs) == pytest.approx(P)


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
@pytest.mark.parametrize("utilisation", [0.0, 0.3, 0.9])
def test_work_that_waits_for_a_core_takes_as_long_as_in_a_queue(cores, utilisation):
    load = cores * utilisation
    terms = [load**n / math.factorial(n) for n in range(cores)]
    last = load**cores / math.factorial(cores) / (1 - utilisation)
    waits = last / (sum(terms) + last)
    expected = 1 + waits / (cores * (1 - utilisation))
    assert response_factor(cores, utilisation) == pytest.approx(expected)


def test_more_work_than_the_cores_can_do_has_a_finite_factor():
    assert response_factor(2, 5.0) == response_factor(2, 0.95)


def test_handling_waits_for_a_core_that_handles_other_messages():
    latency_s, cpu_s = 1.0, 0.5
    message = MessageCost(latency_s=latency_s, cpu_s=cpu_s)
    here = [StageCost(forward_s=F_S, backward_s=B_S, node="a")] * 2
    links = [LinkCost(full=message, empty=message)]

    def on(cores: int) -> float:
        return period(
            "bp", PipelineCosts(together=here, alone=here, links=links, cores={"a": cores})
        )

    found = on(1)
    # Two messages and the labels of a batch, each put and taken.
    factor = 1 / (1 - 3 * cpu_s / found)
    assert found == pytest.approx(2 * P + 2 * latency_s * factor, rel=0.01)
    assert on(64) == pytest.approx(2 * P + 2 * latency_s)


def test_locked_stages_run_as_fast_as_they_do_alone():
    alone = [StageCost(forward_s=F_S, backward_s=B_S)] * 2
    together = [StageCost(forward_s=2 * F_S, backward_s=2 * B_S)] * 2
    costs = costs_of([(F_S, B_S)] * 2, alone=alone, together=together)
    assert period("bp", costs) == pytest.approx(2 * P)
    assert period("adl", costs) == pytest.approx(2 * P)
    assert 2 * P * 9 / 16 < period("gpipe", costs, micro_batches=8) < 2 * P * 9 / 8


def test_every_method_is_predicted_and_the_least_stale_of_the_fast_ones_chosen():
    asked = PipelineSettings(method="adl", stages=4, accumulate=2)
    plans = {plan.label: plan for plan in predict_methods(asked, costs_of([(F_S, B_S)] * 4))}
    assert plans["bp"].speed_up == 1
    assert plans["ddg"].speed_up == pytest.approx(4)
    assert (plans["ddg"].staleness, plans["adl"].staleness) == (0.75, 1.5)
    chosen, why = best(list(plans.values()))
    assert chosen.label == "ddg"
    assert why.startswith("4.00× over bp")
    slow = {plan.label: plan for plan in predict_methods(asked, costs_of([(F_S, B_S)] * 4, 1.0))}
    assert best(list(slow.values()))[0].label == "adl"
    assert slow["auto"].delays == [2, 2, 2]


def test_the_delay_that_was_asked_for_is_the_methods_own_in_other_rows():
    asked = PipelineSettings(method="ddg", stages=3, delay=(0, 3), barrier=True)
    plans = {plan.label: plan for plan in predict_methods(asked, costs_of([(F_S, B_S)] * 3))}
    assert plans["ddg"].delays == [0, 3]
    assert plans["adl"].delays == [2, 2]
    assert plans["adl"].settings.barrier
    assert not plans["gpipe"].settings.barrier
    assert plans["bp"].delays is None


def test_one_stage_has_a_plan():
    plan = predicted(PipelineSettings(method="adl", stages=1, delay="auto"), costs_of([(1, 2)]))
    assert (plan.period_s, plan.delays, plan.staleness) == (pytest.approx(3), [], 0)


# ----------------------------------------------------------------- cuts by measured times


def test_measured_cuts_move_a_block_where_whole_stages_take_longer_than_their_blocks():
    # On its own a block takes 1; the first stage takes twice the sum of its blocks.
    asked = []

    def time_stages(cuts):
        asked.append(list(cuts))
        return [2.0 * cuts[0], 6.0 - cuts[0]]

    assert measured_cuts([[1.0] * 6] * 2, time_stages) == [2]
    assert asked == [[3], [2]]


def test_the_fastest_measured_cuts_are_kept_although_a_move_promised_more():
    times = {3: [6.0, 3.0], 2: [1.0, 9.0]}
    assert measured_cuts([[1.0] * 6] * 2, lambda cuts: times[cuts[0]]) == [3]


# ----------------------------------------------------------------- memory


def test_the_memory_of_a_graph_is_what_autograd_saves():
    blocks = [
        nn.Linear(8, 16, dtype=torch.float64),
        nn.ReLU(inplace=True),
        nn.Linear(16, 4).double(),
    ]
    x, y = torch.zeros(32, 8, dtype=torch.float64), torch.zeros(32, dtype=torch.long)
    traces = trace_blocks(blocks, ["a", "b", "c"], [x], [y], nn.CrossEntropyLoss())
    first, relu, last = block_memory(blocks, traces, [x])
    assert (first.parameters, first.weight_bytes) == (144, 144 * 8)
    # Linear saves its input, ReLU its output: 32 samples of 8 bytes each number.
    assert (first.graph_bytes, relu.graph_bytes, last.graph_bytes) == (2048, 4096, 4096)
    assert [each.input_bytes for each in (first, relu, last)] == [2048, 4096, 4096]


HELD = {
    "accumulate": 1,
    "parts": 1,
    "flush": False,
    "replay": False,
    "recompute": False,
    "versions": True,
}


@pytest.mark.parametrize(
    ("change", "copies", "graphs", "inputs"),
    [
        ({"delay": 0}, 3, 1, 0),
        ({"delay": 3}, 6, 4, 0),
        ({"delay": 6, "accumulate": 4}, 5, 7, 0),
        ({"delay": 3, "versions": False}, 3, 4, 0),
        ({"delay": 3, "replay": True}, 3, 1, 4),
        ({"delay": 3, "recompute": True}, 6, 1, 4),
        ({"delay": None, "flush": True, "parts": 8, "accumulate": 2}, 3, 2, 0),
        ({"delay": 3, "flush": True, "parts": 8}, 3, 0.5, 0),
    ],
)
def test_a_stage_holds_what_its_method_keeps_in_flight(change, copies, graphs, inputs):
    what = held(**{**HELD, **change}, optimizer=1.0)
    assert (what.copies, what.graphs, what.inputs) == (copies, graphs, inputs)


def test_the_memory_of_a_stage_has_the_inputs_of_its_first_block_only():
    blocks = [nn.Linear(8, 8), nn.Linear(8, 8)]
    x, y = torch.zeros(4, 8), torch.zeros(4, 8)
    traces = trace_blocks(blocks, ["a", "b"], [x], [y], nn.MSELoss())
    memory = block_memory(blocks, traces, [x])
    what = held(**{**HELD, "delay": 2, "replay": True}, optimizer=0.0)
    assert stage_bytes(memory, what) == 2 * 2 * 72 * 4 + 1 * 2 * 128 + 3 * 128


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        (lambda p: torch.optim.SGD(p, lr=1.0), 0),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), 1),
        (lambda p: torch.optim.Adam(p), 2),
    ],
)
def test_an_optimisers_copies_are_counted(optimizer, copies):
    assert optimizer_copies(optimizer) == copies


# ----------------------------------------------------------------- probes


def test_a_probe_sends_what_its_echo_returns():
    up: deque[Message] = deque()
    down: deque[Message] = deque()

    def put(message: Message) -> None:
        up.append(message)
        echo_once()

    def echo_once() -> None:
        down.append(up.popleft())

    payload = (torch.zeros(3),)
    times = probe(put, down.popleft, payload, 2)
    assert not up
    assert not down
    assert min(times.latency_s, times.put_s, times.take_s) >= 0
    sent = deque(Message.of(m.unit, payload) for m in [Message(0, n) for n in range(4)])
    echo(down.append, sent.popleft, 2)
    assert [message.index for message in down] == [0, 1, 2, 3]


BLOCKS = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
FOUR = [(torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("cores", "said"),
    [
        (1, "at best 1× bp, as 4 stages share 1 core; 4.00× with a core for each"),
        (2, "at best 2× bp, as 4 stages share 2 cores; 4.00× with a core for each"),
        (4, "at best 4.00× bp, by counted work and with free messages"),
        (None, "at best 4.00× bp, by counted work and with free messages"),
    ],
)
def test_a_run_says_no_more_than_its_cores_can_give(cores, said):
    settings = PipelineSettings(method="adl", stages=4)
    chain = traced_chain(BLOCKS, FOUR, nn.CrossEntropyLoss())
    assert said in in_a_line(settings, [1, 2, 3], chain, None, cores)


def test_a_plan_says_on_standard_error_what_it_is_doing(capsys):
    settings = PipelineSettings(method="adl", stages=4)
    costs = costs_of([(F_S, B_S)] * 4)
    quiet = predict_methods(settings, costs)
    assert capsys.readouterr() == ("", "")
    assert predict_methods(settings, costs, say_steps(progress=True)) == quiet
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", "predicting bp, method 1 of 10 …")
