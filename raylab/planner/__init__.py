"""Costs into decisions: where to cut a chain, which link delays hide the messages."""

from raylab.planner.costs import LinkCost, MessageCost, PipelineCosts, StageCost
from raylab.planner.delays import choose_link_delays, predicted_period_s
from raylab.planner.interfaces import cut_features
from raylab.planner.memory import BlockMemory, Held, block_memory, held, memory_matrix, stage_bytes
from raylab.planner.partition import balanced_cuts, best_cuts, one_move, stage_costs
from raylab.planner.trace import BlockTrace, trace_blocks

__all__ = [
    "BlockMemory",
    "BlockTrace",
    "Held",
    "LinkCost",
    "MessageCost",
    "PipelineCosts",
    "StageCost",
    "balanced_cuts",
    "best_cuts",
    "block_memory",
    "choose_link_delays",
    "cut_features",
    "held",
    "memory_matrix",
    "one_move",
    "predicted_period_s",
    "stage_bytes",
    "stage_costs",
    "trace_blocks",
]
