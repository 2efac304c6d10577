"""Where to cut, how late gradients come back, and what a chain does to the shapes of a batch."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from raylab.errors import DataError, ModelError
from raylab.planner import (
    BlockTrace,
    balanced_cuts,
    choose_link_delays,
    predicted_period_s,
    trace_blocks,
)

pytestmark = pytest.mark.unit

# ----------------------------------------------------------------- where to cut


@pytest.mark.parametrize(
    ("costs", "stages", "cuts"),
    [
        ([5], 1, []),
        ([1, 2, 3], 1, []),
        ([1, 2, 3], 3, [1, 2]),
        ([1, 1, 1, 3], 2, [3]),
        ([3, 1, 1, 1], 2, [1]),
        ([1, 1, 1, 1], 2, [2]),
        ([10, 1, 1, 10, 1, 1, 10], 3, [2, 5]),
    ],
)
def test_cuts_balance_the_stages(costs, stages, cuts):
    def slowest(points: list[int]) -> int:
        bounds = [0, *points, len(costs)]
        return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))

    assert slowest(balanced_cuts(costs, stages)) == slowest(cuts)


@pytest.mark.parametrize("stages", [0, -1, 4])
def test_more_stages_than_blocks_or_fewer_than_one_are_refused(stages):
    with pytest.raises(ModelError, match=f"got stages={stages} for a chain of 3 blocks"):
        balanced_cuts([1.0, 1.0, 1.0], stages)


# ----------------------------------------------------------------- delays and periods

F_S, B_S = 1.0, 2.0
P = F_S + B_S
EQUAL = [(F_S, B_S)] * 4
DDG, ADL, BP = [1, 1, 1], [2, 2, 2], [0, 0, 0]


def test_four_equal_stages_and_free_messages_run_at_the_pace_of_one_stage():
    free = [0.0] * 3
    assert predicted_period_s(EQUAL, free, DDG) == pytest.approx(P)
    assert predicted_period_s(EQUAL, free, ADL) == pytest.approx(P)
    assert predicted_period_s(EQUAL, free, DDG, replay=True) == pytest.approx(P + F_S)
    assert predicted_period_s(EQUAL, free, BP) == pytest.approx(4 * P)


def test_speed_ups_over_locked_stages_with_messages_of_a_tenth_of_a_stage():
    # Locked: four stages and six messages, 4 P + 6 c = 4.6 P. DDG: a link shows both its messages,
    # P + 2 c = 1.2 P; with replay P + f + 2 c = 23/15 P. ADL: two periods hide them, P.
    messages = [0.1 * P] * 3
    locked = predicted_period_s(EQUAL, messages, BP)
    assert locked == pytest.approx(4.6 * P)
    speed_up = {
        "ddg": locked / predicted_period_s(EQUAL, messages, DDG),
        "adl": locked / predicted_period_s(EQUAL, messages, ADL),
        "fr": locked / predicted_period_s(EQUAL, messages, DDG, replay=True),
    }
    assert speed_up == pytest.approx({"ddg": 23 / 6, "adl": 4.6, "fr": 3.0})
    # Over locked stages whose messages are free: the share of the ideal 4 that is left.
    over_free = {name: factor * 4 / 4.6 for name, factor in speed_up.items()}
    assert over_free == pytest.approx({"ddg": 10 / 3, "adl": 4.0, "fr": 60 / 23})


def test_slow_messages_divide_among_the_periods_of_the_delay():
    assert predicted_period_s([(1, 2)] * 2, [6.0], [1]) == pytest.approx(15)
    assert predicted_period_s([(1, 2)] * 2, [6.0], [3]) == pytest.approx(5)
    assert predicted_period_s([(1, 2)] * 2, [6.0], [5]) == pytest.approx(3)


def test_a_link_of_delay_0_locks_its_two_stages_only():
    # Stages 1 and 2 take turns: 2 P and two messages; stage 0 hides its own link behind them.
    assert predicted_period_s([(1, 2)] * 3, [0.5, 0.5], [2, 0]) == pytest.approx(2 * P + 1)
    # One period of delay must hold the messages of the lower link too.
    assert predicted_period_s([(1, 2)] * 3, [0.5, 0.5], [1, 0]) == pytest.approx(2 * P + 2)
    assert predicted_period_s([(1, 2)] * 3, [0.5, 0.5], [0, 2]) == pytest.approx(2 * P + 1)


def test_the_last_stage_replays_nothing():
    assert predicted_period_s([(1, 1), (5, 5)], [0.0], [1], replay=True) == pytest.approx(10)
    assert predicted_period_s([(5, 5), (1, 1)], [0.0], [1], replay=True) == pytest.approx(15)


def test_a_stage_without_delay_replays_nothing():
    # Stages 1 and 2 are locked together, 2 P; only stage 0 keeps inputs and runs twice, P + f.
    assert predicted_period_s(EQUAL[:3], [0.0, 0.0], [1, 0], replay=True) == pytest.approx(2 * P)


def test_one_stage_has_its_own_period_and_no_link():
    assert predicted_period_s([(1, 2)], [], []) == pytest.approx(3)
    assert choose_link_delays([(1, 2)], []) == []


def test_free_messages_between_equal_stages_need_a_delay_of_1():
    assert choose_link_delays(EQUAL, [0.0] * 3) == [1, 1, 1]


def test_messages_that_show_get_a_delay_of_2_on_their_own_link_only():
    assert choose_link_delays(EQUAL, [0.0, 0.1 * P, 0.0]) == [1, 2, 1]


def test_a_fast_stage_above_hides_its_messages_in_one_period():
    assert choose_link_delays([(1, 2), (1, 1)], [0.5]) == [1]
    assert choose_link_delays([(1, 2), (1, 1)], [0.6]) == [2]


def test_very_slow_messages_get_as_many_periods_as_they_take():
    assert choose_link_delays([(1, 2)] * 2, [6.0]) == [5]


def test_replay_lengthens_the_period_that_hides_messages():
    # The last stage does not replay, so f is left for the messages of the link below it.
    assert choose_link_delays([(1, 2)] * 3, [0.5, 0.5], replay=False) == [2, 2]
    assert choose_link_delays([(1, 2)] * 3, [0.5, 0.5], replay=True) == [2, 1]


@pytest.mark.parametrize(
    ("message", "tolerance", "delay"),
    [(0.03, 0.02, 1), (0.031, 0.02, 2), (0.03, 0.0, 2), (0.0, 0.0, 1), (0.15, 0.1, 1)],
)
def test_a_slow_down_within_the_tolerance_is_accepted_for_less_staleness(message, tolerance, delay):
    assert choose_link_delays([(1, 2)] * 2, [message], tolerance=tolerance) == [delay]


times = st.floats(1e-4, 10)
messages_s = st.floats(0, 30)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[float], bool]:
    stages = draw(st.lists(st.tuples(times, times), min_size=2, max_size=6))
    links = draw(st.lists(messages_s, min_size=len(stages) - 1, max_size=len(stages) - 1))
    return stages, links, draw(st.booleans())


@given(pipelines())
def test_chosen_delays_are_the_smallest_that_reach_full_speed(pipeline):
    stages, messages, replay = pipeline
    chosen = choose_link_delays(stages, messages, replay=replay)
    full = predicted_period_s(stages, [0.0] * len(messages), chosen, replay=replay)
    allowed = full * 1.02
    period = predicted_period_s(stages, messages, chosen, replay=replay)
    assert period <= allowed * (1 + 1e-6)
    for link, delay in enumerate(chosen):
        if delay > 1:
            fewer = [*chosen[:link], delay - 1, *chosen[link + 1 :]]
            slower = predicted_period_s(stages, messages, fewer, replay=replay)
            assert slower > allowed * (1 - 1e-6)


@given(pipelines(), st.data())
def test_slower_messages_never_lower_a_delay(pipeline, data):
    stages, messages, replay = pipeline
    link = data.draw(st.integers(0, len(messages) - 1))
    slower = [*messages]
    slower[link] += data.draw(messages_s)
    before = choose_link_delays(stages, messages, replay=replay)
    after = choose_link_delays(stages, slower, replay=replay)
    assert after[link] >= before[link]
    assert after[:link] + after[link + 1 :] == before[:link] + before[link + 1 :]


@given(pipelines())
def test_slower_messages_never_shorten_the_period(pipeline):
    stages, messages, replay = pipeline
    for delays in ([0] * len(messages), [1] * len(messages), [2] * len(messages)):
        period = predicted_period_s(stages, messages, delays, replay=replay)
        doubled = predicted_period_s(stages, [2 * m for m in messages], delays, replay=replay)
        assert doubled >= period


# ----------------------------------------------------------------- tracing


class AddOne(nn.Module):
    """Writes into its input through a view."""

    def forward(self, x: Tensor) -> Tensor:
        x.view(-1).add_(1)
        return x * 2


class LooksAtValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1) if x.sum() > -1e9 else x


class LooksThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.numpy().mean())


class PicksRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > -1e9]


class Complains(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class Returns(nn.Module):
    def __init__(self, what: object) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> object:
        return {"dict": {"x": x}, "mixed": (x, 3), "empty": (), "pair": (x, x + 1)}[self.what]


class TakesPair(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] + pair[1]


def trace(
    *blocks: nn.Module, x: Tensor | None = None, y: Tensor | None = None, loss_fn=F.cross_entropy
) -> list[BlockTrace]:
    return trace_blocks(
        blocks,
        [f"block{k}" for k in range(len(blocks))],
        (torch.zeros(4, 6) if x is None else x,),
        (torch.zeros(4, dtype=torch.long) if y is None else y,),
        loss_fn,
    )


def shapes(traces: list[BlockTrace]) -> list[list[tuple[int, ...]]]:
    return [[tuple(t.shape) for t in each.outputs] for each in traces]


def test_traces_have_the_shapes_and_types_of_every_block_and_no_elements():
    traces = trace(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 3), x=torch.zeros(4, 3, 8, 8))
    assert shapes(traces) == [[(4, 5, 6, 6)], [(4, 180)], [(4, 3)]]
    assert all(t.device.type == "meta" for each in traces for t in each.outputs)
    assert all(t.dtype == torch.float32 for each in traces for t in each.outputs)


def test_double_precision_models_keep_their_type():
    traces = trace(nn.Linear(6, 3).double(), x=torch.zeros(4, 6, dtype=torch.float64))
    assert traces[0].outputs[0].dtype == torch.float64


def test_blocks_may_pass_tuples_of_tensors():
    traces = trace(nn.Linear(6, 3), Returns("pair"), TakesPair())
    assert shapes(traces) == [[(4, 3)], [(4, 3), (4, 3)], [(4, 3)]]


def test_costs_count_operations_and_elements_written():
    first, second = trace(nn.Linear(6, 3), nn.Tanh())
    # The output of 4 x 3, 2 operations each of 6 products; 40 an element, tanh writes them once.
    assert first.cost >= 4 * 3 * 6 * 2 + 40 * 4 * 3
    assert second.cost == 40 * 4 * 3


def test_costs_are_the_same_every_time_and_grow_with_the_batch():
    blocks = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.Flatten(), nn.Linear(180, 3)]
    small = torch.randn(4, 3, 8, 8)
    costs = [[each.cost for each in trace(*blocks, x=small)] for _ in range(2)]
    assert costs[0] == costs[1]
    y = torch.zeros(8, dtype=torch.long)
    large = [each.cost for each in trace(*blocks, x=torch.randn(8, 3, 8, 8), y=y)]
    assert large[0] == 2 * costs[0][0]
    assert large[-1] > costs[0][-1]


def test_a_block_that_writes_into_its_input_is_found():
    traces = trace(nn.ReLU(inplace=True), nn.Linear(6, 3), nn.ReLU(inplace=True), nn.ReLU())
    assert [each.writes_input for each in traces] == [True, False, True, False]


def test_a_write_through_a_view_is_found():
    traces = trace(AddOne(), nn.Linear(6, 3))
    assert [each.writes_input for each in traces] == [True, False]


def test_a_write_into_a_result_of_the_same_block_does_not_count():
    traces = trace(nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True)))
    assert not traces[0].writes_input


@pytest.mark.parametrize("real", [False, True])
def test_batch_model_and_random_numbers_are_left_as_they_are(real):
    blocks = [
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)),
        nn.Dropout().eval(),
        LooksAtValues() if real else nn.Identity(),
    ]
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    kept = [x.clone(), y.clone()]
    states = [copy.deepcopy(b.state_dict()) for b in blocks]
    modes = [m.training for b in blocks for m in b.modules()]
    generator = torch.random.get_rng_state()
    trace(*blocks, x=x, y=y)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert [m.training for b in blocks for m in b.modules()] == modes
    for block, state in zip(blocks, states, strict=True):
        assert list(block.state_dict()) == list(state)
        for name, tensor in block.state_dict().items():
            assert tensor.device.type == "cpu"
            assert torch.equal(tensor, state[name])
    assert all(p.grad is None for b in blocks for p in b.parameters())


@pytest.mark.parametrize(
    ("block", "width"),
    [(LooksAtValues(), 10), (PicksRows(), 5), (LooksThroughNumpy(), 5)],
    ids=lambda value: type(value).__name__,
)
def test_python_that_looks_at_values_is_run_for_real(block, width):
    traces = trace(nn.Linear(6, 5), block, nn.Linear(width, 3), x=torch.randn(4, 6))
    assert shapes(traces) == [[(4, 5)], [(4, width)], [(4, 3)]]
    assert all(t.device.type == "meta" for each in traces for t in each.outputs)


def test_a_real_run_finds_the_same_costs_and_writes():
    blocks = [nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)]
    meta = trace(*blocks)
    real = trace(*blocks, LooksAtValues())[:3]
    assert [each.cost for each in real] == [each.cost for each in meta]
    assert [each.writes_input for each in real] == [each.writes_input for each in meta]


def test_a_batch_that_does_not_fit_names_the_first_block_with_weights():
    with pytest.raises(DataError, match=r"'block1' \(Linear\) cannot take \(4, 7\) float32"):
        trace(nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 3), x=torch.zeros(4, 7))


def test_a_batch_of_the_wrong_type_is_refused_before_anything_runs():
    with pytest.raises(DataError, match=r"'block0' \(Linear\) cannot take \(4, 6\) float64"):
        trace(nn.Linear(6, 3), x=torch.zeros(4, 6, dtype=torch.float64))


def test_an_image_of_the_wrong_type_is_refused_before_anything_runs():
    x = torch.zeros(4, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(DataError, match=r"'block0' \(Conv2d\) cannot take \(4, 3, 8, 8\) float64"):
        trace(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 3), x=x)


def test_a_later_block_that_does_not_fit_is_the_fault_of_the_model():
    with pytest.raises(ModelError, match=r"'block1' \(Linear\) cannot take \(4, 5\) float32"):
        trace(nn.Linear(6, 5), nn.Linear(4, 3))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("an odd width"),
        KeyError("mask"),
        RuntimeError("no metadata"),
        ValueError("no metadata"),
        NotImplementedError("to do"),
    ],
    ids=repr,
)
def test_whatever_a_block_complains_of_the_error_names_it(error):
    with pytest.raises(ModelError, match=r"'block1' \(Complains\) cannot take \(4, 3\) float32"):
        trace(nn.Linear(6, 3), Complains(error))


@pytest.mark.parametrize(
    ("what", "said"), [("dict", "dict"), ("mixed", "int"), ("empty", "nothing")]
)
def test_a_block_must_return_tensors(what, said):
    with pytest.raises(ModelError, match=rf"'block1' \(Returns\) returned .*{said}"):
        trace(nn.Linear(6, 3), Returns(what))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_of_one_number_is_accepted(reduction):
    assert len(trace(nn.Linear(6, 3), loss_fn=nn.CrossEntropyLoss(reduction=reduction))) == 1


@pytest.mark.parametrize(
    ("loss_fn", "said"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "reduction='mean' or 'sum'"),
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), r"it returned \(4,\)"),
        (lambda out, y: 1.0, "it returned float"),
        (lambda out: out.sum(), r"cannot take shapes \[\(4, 3\), \(4,\)\]"),
    ],
)
def test_a_loss_must_be_one_number_of_outputs_and_labels(loss_fn, said):
    with pytest.raises(ModelError, match=said):
        trace(nn.Linear(6, 3), loss_fn=loss_fn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
@pytest.mark.parametrize("real", [False, True])
def test_labels_of_the_wrong_type_are_refused_before_anything_runs(dtype, real):
    blocks = [nn.Linear(6, 3)] + ([LooksAtValues()] if real else [])
    with pytest.raises(ModelError, match=str(dtype).removeprefix("torch.")):
        trace(*blocks, y=torch.zeros(4, dtype=dtype))


def test_a_wrong_number_of_labels_names_the_shapes():
    with pytest.raises(ModelError, match=r"shapes \[\(4, 3\), \(5,\)\] of \['float32', 'int64'\]"):
        trace(nn.Linear(6, 3), y=torch.zeros(5, dtype=torch.long))
