"""Who hears the rows of a run: each once, and none after asking for its end."""

from __future__ import annotations

from typing import Any

import pytest

from raylab.drivers.listener import RowListener

pytestmark = pytest.mark.unit


def row(step: int, epoch: int | None = None) -> dict[str, Any]:
    return {"step": step, "epoch": epoch}


def test_every_row_is_told_in_order_also_two_of_a_step():
    heard: list[Any] = []
    listener = RowListener(lambda each: bool(heard.append(each)))
    rows = [row(2), row(4), row(4, 1), row(4, 1)]
    listener.begin()
    listener.hear(rows[:1])
    listener.hear(rows[1:])
    assert heard == rows
    assert not listener.asked


def test_rows_that_are_made_again_after_a_loss_are_not_told_again():
    heard: list[Any] = []
    listener = RowListener(lambda each: bool(heard.append(each)))
    listener.begin()
    listener.hear([row(2), row(4)])
    listener.begin()
    listener.hear([row(2), row(4), row(4, 1), row(6)])
    assert heard == [row(2), row(4), row(4, 1), row(6)]


def test_who_has_asked_for_the_end_hears_no_more():
    heard: list[Any] = []

    def second(each: Any) -> bool:
        heard.append(each)
        return len(heard) == 2

    listener = RowListener(second)
    listener.hear([row(2), row(4), row(6)])
    listener.begin()
    listener.hear([row(8)])
    assert heard == [row(2), row(4)]
    assert listener.asked


def test_without_anybody_nothing_is_asked():
    listener = RowListener()
    listener.hear([row(1)])
    assert not listener.on
    assert not listener.asked
