"""`SimulationConfig`: the keys of a parameter server's run, and those of the virtual machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raylab.config.kinds import Count, NotNegative, Positive, Text
from raylab.config.parameter_server import DATA, SERVER_METHODS, SHARED, ParameterServerConfig

__all__ = ["MACHINE", "SIMULATED", "SimulationConfig"]

SIMULATED = {name: line for name, line in SERVER_METHODS.items() if name != SHARED}
"""The methods that can be: those whose workers send messages, a line each."""


class SimulationConfig(ParameterServerConfig):
    """All keys of `raylab simulate`. Those of wires, resources and checkpoints change nothing.

    >>> SimulationConfig(workers=[1, 2, 4]).sample_s
    1e-05
    """

    workers: Count | list[Count] | None = Field(
        None,
        description="K, null: 4, and 1 for sdca and dfsdca; several, e.g. 1,2,4,8: one run after "
        "another, and their speed-up",
    )
    data: Text = Field(DATA, description="as for raylab train")
    epochs: Positive = Field(100.0, description="as for raylab train")
    sample_s: Positive | None = Field(
        1e-5,
        description="modelled time of a sample's computation, seconds; null: what it takes here, "
        "so that no two runs are alike",
    )
    latency_s: NotNegative = Field(1e-4, description="of a message, each way, seconds")
    bandwidth: Positive = Field(
        125e6, description="bytes/s of the server's link, each way: one message after the other"
    )
    apply_s: NotNegative = Field(
        0.0, description="the server's time for a message, one after the other, seconds"
    )
    detect_s: NotNegative = Field(0.05, description="until a worker's loss is known, seconds")
    restart_s: NotNegative = Field(
        0.2, description="from then on, until another process is in its place, seconds"
    )
    clock: Literal["virtual"] = Field("virtual", description="what time_s is told by")


MACHINE = (
    *("workers", "sample_s", "latency_s", "bandwidth", "apply_s", "detect_s", "restart_s"),
    "straggler",
)
"""The keys that say what is simulated, for the help."""
