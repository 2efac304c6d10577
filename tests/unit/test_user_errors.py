"""What a user's code raises reaches the user, whatever it is made of."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import torch

from actors.errors import BatchError, StageError
from actors.groups.story import told
from actors.pipeline.runner import _Story
from actors.units import Unit
from tests.unit.test_source import Bench, numbered

pytestmark = pytest.mark.unit


class Odd(Exception):  # noqa: N818
    """Takes two arguments, and holds what cannot be pickled."""

    def __init__(self, code: int, *, about: str) -> None:
        super().__init__(f"{about} ({code})")
        self.lock = threading.Lock()


class Unsaid(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError("no text")


def fails_at(number: int) -> Any:
    class Batches:
        def __iter__(self) -> Any:
            yield from numbered(number)
            raise Odd(7, about="a broken file")

    return Batches()


def travelled(error: BaseException) -> BaseException:
    found: BaseException = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    return found


def test_an_error_of_a_data_set_tells_type_text_batch_and_where_after_its_journey():
    with pytest.raises(BatchError, match=r"^batch 2 of epoch 0 .*Odd: a broken file \(7\)") as it:
        Bench(fails_at(2)).features()
    found = travelled(it.value)
    assert str(found) == str(it.value)
    assert 'raise Odd(7, about="a broken file")' in found.__notes__[0]


def test_an_error_of_a_test_set_tells_its_batch():
    with pytest.raises(BatchError, match=r"^test batch 1 of epoch 0 .*Odd: a broken file"):
        Bench(numbered(3), fails_at(1)).features()


@pytest.mark.parametrize("error", [Odd(7, about="a broken file"), Unsaid(), KeyError("x")])
def test_errors_of_blocks_losses_and_factories_travel(error):
    unit = Unit(batch=3, part=0, parts=1, share=1.0)
    story = _Story(1, "forward", unit, (torch.ones(2),))
    with pytest.raises(StageError, match="forward of batch 3") as stage, story:
        raise error
    building = told("stage 1", "its optimiser")
    with pytest.raises(StageError, match="stage 1 failed at its optimiser") as factory, building:
        raise error
    for it in (stage, factory):
        found = travelled(it.value)
        assert type(error).__name__ in str(found)
        assert "raise error" in found.__notes__[0]


def test_a_worker_tells_of_an_odd_error_at_its_step():
    from raylab.drivers.averaging.on_ray import _WHERE, _told

    error = Odd(7, about="a broken loss")
    setattr(error, _WHERE, "step 3 of worker 1")
    found = travelled(_told(error))
    assert str(found) == "step 3 of worker 1 failed: Odd: a broken loss (7)"
