"""One Ray session for all tests that start actors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from actors.groups.warm import WarmActors, warm_actors
from raylab.drivers.commits import Commits


@pytest.fixture(scope="package")
def session() -> Iterator[None]:
    """Start Ray; the stages of a test hardly compute, so they ask for a tenth of a CPU each, and
    are left to the next test.
    """
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={
            "metrics_report_interval_ms": 1000,  # what the metrics' test waits for
            "worker_niceness": os.getpriority(os.PRIO_PROCESS, 0),
        },
    )
    with WarmActors():
        yield
    ray.shutdown()


@pytest.fixture
def cold(session: None) -> None:
    """End the stages that other tests have left: nobody else in the cluster gets their place."""
    warm = warm_actors()
    assert warm is not None
    warm.clear()


@pytest.fixture
def when_saved(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[int]]:
    """Call something once, in the driver, when a run's first checkpoint is whole."""

    def arm(call: Callable[[], None]) -> list[int]:
        took, steps = Commits.took, []

        def watched(self: Commits, *arguments: Any) -> None:
            took(self, *arguments)
            if self.committed >= 0 and not steps:
                steps.append(self.committed)
                call()

        monkeypatch.setattr(Commits, "took", watched)
        return steps

    return arm
