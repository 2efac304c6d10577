"""The algorithms: pure torch, one paper, one file; they know neither Ray nor actors."""

from raylab.algorithms.adl import ADL, adl_staleness
from raylab.algorithms.bp import BP
from raylab.algorithms.ddg import DDG, ddg_staleness
from raylab.algorithms.dgl import DGL
from raylab.algorithms.dni import DNI
from raylab.algorithms.dsp import DSP
from raylab.algorithms.features_replay import FR
from raylab.algorithms.micro_batching import GPIPE, ONE_F_ONE_B
from raylab.algorithms.pipeline_method import PipelineMethod

__all__ = [
    "ADL",
    "BP",
    "DDG",
    "DGL",
    "DNI",
    "DSP",
    "FR",
    "GPIPE",
    "ONE_F_ONE_B",
    "PIPELINE_METHODS",
    "PipelineMethod",
    "adl_staleness",
    "ddg_staleness",
]

PIPELINE_METHODS: dict[str, PipelineMethod] = {
    method.name: method for method in (BP, GPIPE, ONE_F_ONE_B, DDG, FR, ADL, DSP, DNI, DGL)
}
"""Every pipeline method by name."""
