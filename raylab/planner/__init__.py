"""Costs into decisions: where to cut a chain, which link delays hide the messages."""

from raylab.planner.delays import choose_link_delays, predicted_period_s
from raylab.planner.interfaces import cut_features
from raylab.planner.partition import balanced_cuts
from raylab.planner.trace import BlockTrace, trace_blocks

__all__ = [
    "BlockTrace",
    "balanced_cuts",
    "choose_link_delays",
    "cut_features",
    "predicted_period_s",
    "trace_blocks",
]
