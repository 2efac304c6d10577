"""One Ray session for all tests that start actors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from actors.groups.warm import WarmActors


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
        _system_config={"metrics_report_interval_ms": 1000},  # what the metrics' test waits for
    )
    with WarmActors():
        yield
    ray.shutdown()
