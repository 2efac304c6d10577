"""Configuration: frozen models, and how files and command lines become them.

A configuration is parsed once, at the edge; inside, only typed objects go about. Nothing here
imports torch or Ray, so that help and complaints come at once.
"""

from raylab.config.averaging import (
    AVERAGING_METHODS,
    AveragingConfig,
    AveragingSimulationConfig,
)
from raylab.config.experiments import experiment_names, experiment_summary, read_experiment
from raylab.config.families import (
    ALL_METHODS,
    FAMILIES,
    Family,
    NetworkConfig,
    RunConfiguration,
    family_of,
)
from raylab.config.parameter_server import SERVER_METHODS, ParameterServerConfig
from raylab.config.parse import (
    apply_pairs,
    pipeline_config,
    read_yaml,
    run_config,
    simulation_config,
)
from raylab.config.pipeline import METHODS, PipelineConfig
from raylab.config.simulation import SimulationConfig

__all__ = [
    "ALL_METHODS",
    "AVERAGING_METHODS",
    "FAMILIES",
    "METHODS",
    "SERVER_METHODS",
    "AveragingConfig",
    "AveragingSimulationConfig",
    "Family",
    "NetworkConfig",
    "ParameterServerConfig",
    "PipelineConfig",
    "RunConfiguration",
    "SimulationConfig",
    "apply_pairs",
    "experiment_names",
    "experiment_summary",
    "family_of",
    "pipeline_config",
    "read_experiment",
    "read_yaml",
    "run_config",
    "simulation_config",
]
