"""The loops and algorithms of the parameter server under virtual time, with no Ray."""

from __future__ import annotations

from raylab.simulator.outcome import Applied, Simulated
from raylab.simulator.rules import run_rules
from raylab.simulator.simulate import simulate
from raylab.simulator.timing import Event, Timing

__all__ = ["Applied", "Event", "Simulated", "Timing", "run_rules", "simulate"]
