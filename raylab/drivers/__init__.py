"""Configuration into objects, objects into actors, what they report into records."""

from raylab.drivers.pipeline import PipelineTrainer
from raylab.drivers.result import Result

__all__ = ["PipelineTrainer", "Result"]
