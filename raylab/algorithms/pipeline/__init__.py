"""The methods of a pipeline: settings of one stage program, see `raylab.algorithms.stage`."""

from raylab.algorithms.pipeline.adl import ADL, adl_staleness
from raylab.algorithms.pipeline.bp import BP
from raylab.algorithms.pipeline.ddg import DDG, ddg_staleness
from raylab.algorithms.pipeline.dgl import DGL
from raylab.algorithms.pipeline.dni import DNI
from raylab.algorithms.pipeline.dsp import DSP
from raylab.algorithms.pipeline.features_replay import FR
from raylab.algorithms.pipeline.method import PipelineMethod
from raylab.algorithms.pipeline.micro_batching import GPIPE, ONE_F_ONE_B

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
