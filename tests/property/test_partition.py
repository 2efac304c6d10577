"""Balanced cuts against every way to cut the chain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylab.errors import ModelError
from raylab.planner import balanced_cuts, best_cuts, one_move, stage_costs

pytestmark = pytest.mark.property


def largest(costs: Sequence[float], cuts: Sequence[int]) -> float:
    bounds = [0, *cuts, len(costs)]
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


def least_possible(costs: Sequence[float], stages: int) -> float:
    ways = itertools.combinations(range(1, len(costs)), stages - 1)
    return min(largest(costs, cuts) for cuts in ways)


@st.composite
def chains(draw: st.DrawFn, cost: st.SearchStrategy[float]) -> tuple[list[float], int]:
    costs = draw(st.lists(cost, min_size=1, max_size=9))
    return costs, draw(st.integers(1, len(costs)))


@given(chains(st.integers(0, 20)))
def test_no_other_way_to_cut_has_a_faster_slowest_stage(chain):
    costs, stages = chain
    cuts = balanced_cuts(costs, stages)
    assert largest(costs, cuts) == least_possible(costs, stages)


@given(chains(st.floats(0, 1e12)))
def test_costs_of_any_size_are_balanced_up_to_rounding(chain):
    costs, stages = chain
    least = least_possible(costs, stages)
    # A cost is a difference of sums over the whole chain, whose rounding is that of the sum.
    assert largest(costs, balanced_cuts(costs, stages)) <= least + 1e-14 * sum(costs)


@given(chains(st.floats(0, 1e6)))
def test_every_stage_gets_at_least_one_block(chain):
    costs, stages = chain
    cuts = balanced_cuts(costs, stages)
    assert len(cuts) == stages - 1
    assert all(a < b for a, b in itertools.pairwise([0, *cuts, len(costs)]))


@given(chains(st.integers(0, 20)), st.integers(1, 1000))
def test_the_unit_of_the_costs_does_not_matter(chain, unit):
    costs, stages = chain
    assert balanced_cuts([unit * c for c in costs], stages) == balanced_cuts(costs, stages)


@given(st.lists(st.floats(0, 1e6), max_size=9), st.integers(-2, 20))
def test_a_number_of_stages_that_the_chain_has_not_is_an_error(costs, stages):
    if 1 <= stages <= len(costs):
        assert len(balanced_cuts(costs, stages)) == stages - 1
    else:
        with pytest.raises(ModelError, match=f"stages={stages} for a chain of {len(costs)}"):
            balanced_cuts(costs, stages)


@st.composite
def unlike_stages(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    blocks = draw(st.integers(1, 7))
    stages = draw(st.integers(1, blocks))
    row = st.lists(st.integers(0, 20), min_size=blocks, max_size=blocks)
    matrix = st.lists(row, min_size=stages, max_size=stages)
    return draw(matrix), draw(matrix)


def largest_of(costs, entries, cuts) -> float:
    firsts = [0, *cuts]
    return max(cost + entries[k][firsts[k]] for k, cost in enumerate(stage_costs(costs, cuts)))


@given(unlike_stages())
def test_no_other_way_to_cut_is_cheaper_on_unlike_stages(chain):
    costs, entries = chain
    ways = itertools.combinations(range(1, len(costs[0])), len(costs) - 1)
    least = min(largest_of(costs, entries, cuts) for cuts in ways)
    assert largest_of(costs, entries, best_cuts(costs, entries)) == least
    free = [[0] * len(costs[0])] * len(costs)
    assert largest_of(costs, free, best_cuts(costs)) <= largest_of(costs, entries, best_cuts(costs))


@given(unlike_stages(), st.data())
def test_a_move_is_one_block_over_one_cut_and_helps_by_the_measured_ratios(chain, data):
    costs, _ = chain
    cuts = best_cuts(costs)
    sums = stage_costs(costs, cuts)
    ratios = [data.draw(st.floats(0.5, 2)) for _ in sums]
    measured = [r * s for r, s in zip(ratios, sums, strict=True)]
    moved = one_move(costs, cuts, measured)
    if moved is None:
        return
    assert sum(abs(a - b) for a, b in zip(cuts, moved, strict=True)) == 1
    scaled = [[r * c for c in row] for r, row in zip(ratios, costs, strict=True)]
    assert max(stage_costs(scaled, moved)) < 0.98 * max(measured) * (1 + 1e-12)
