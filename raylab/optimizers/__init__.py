"""Optimisers and schedules by name, and the recipes of the papers."""

from raylab.optimizers.clars import CLARS
from raylab.optimizers.factories import make_optimizer, optimizer_names
from raylab.optimizers.lars import LARS
from raylab.optimizers.layers import fully_connected_parameters, plain_parameters
from raylab.optimizers.nag import NAG
from raylab.optimizers.per_sample_norms import PerSampleNorms
from raylab.optimizers.recipes import RECIPES, Recipe
from raylab.optimizers.schedules import Schedule, linear_scaling

__all__ = [
    "CLARS",
    "LARS",
    "NAG",
    "RECIPES",
    "PerSampleNorms",
    "Recipe",
    "Schedule",
    "fully_connected_parameters",
    "linear_scaling",
    "make_optimizer",
    "optimizer_names",
    "plain_parameters",
]
