"""Costs into decisions: cuts of a chain, delays that hide messages, periods of averages."""

from raylab.planner.all_reduce import ALL_REDUCES, AllReduce, Network, all_reduce_s, scaled_ring_s
from raylab.planner.averaging import (
    AVERAGING_METHODS,
    AveragingMethod,
    AveragingPlan,
    Period,
    averaging_plan,
    plan_from_measured,
)
from raylab.planner.costs import LinkCost, MessageCost, PipelineCosts, StageCost, response_factor
from raylab.planner.delays import choose_link_delays, predicted_period_s
from raylab.planner.interfaces import cut_features
from raylab.planner.memory import BlockMemory, Held, block_memory, held, memory_matrix, stage_bytes
from raylab.planner.partition import balanced_cuts, best_cuts, one_move, stage_costs
from raylab.planner.trace import BlockTrace, loss_of_shapes, on_shapes, trace_blocks

__all__ = [
    "ALL_REDUCES",
    "AVERAGING_METHODS",
    "AllReduce",
    "AveragingMethod",
    "AveragingPlan",
    "BlockMemory",
    "BlockTrace",
    "Held",
    "LinkCost",
    "MessageCost",
    "Network",
    "Period",
    "PipelineCosts",
    "StageCost",
    "all_reduce_s",
    "averaging_plan",
    "balanced_cuts",
    "best_cuts",
    "block_memory",
    "choose_link_delays",
    "cut_features",
    "held",
    "loss_of_shapes",
    "memory_matrix",
    "on_shapes",
    "one_move",
    "plan_from_measured",
    "predicted_period_s",
    "response_factor",
    "scaled_ring_s",
    "stage_bytes",
    "stage_costs",
    "trace_blocks",
]
