"""Optimisers and schedules by name, and the recipes of the papers."""

from raylab.optimizers.factories import make_optimizer, optimizer_names
from raylab.optimizers.recipes import RECIPES, Recipe
from raylab.optimizers.schedules import Schedule

__all__ = ["RECIPES", "Recipe", "Schedule", "make_optimizer", "optimizer_names"]
