"""The loops and algorithms of the parameter server under virtual time, with no Ray."""

from __future__ import annotations

from raylab.simulator.simulate import Applied, Simulated, simulate
from raylab.simulator.timing import Event, Timing

__all__ = ["Applied", "Event", "Simulated", "Timing", "simulate"]
