"""A configuration with every recipe and default that depends on other keys as numbers."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

from raylab.config import AveragingConfig, AveragingSimulationConfig, NetworkConfig, PipelineConfig
from raylab.errors import ConfigError
from raylab.optimizers import RECIPES, linear_scaling
from raylab.records import new_run_name

__all__ = ["batch_size_of", "resolve"]

_ANY_SIZE = ("mlp", "fcn5", "cnn5")
"""Models that are as good on 8x8 images as they are; the others halve an image several times."""
_DIGITS_SIZE_PX = 32
_DIGITS_BATCH = 16
_MOMENTUM = ("sgd", "nag", "lars", "clars")
"""Optimisers that have one."""


C = TypeVar("C", PipelineConfig, AveragingConfig, AveragingSimulationConfig)


def resolve(config: C) -> C:
    """Return `config` with recipe and defaults as numbers; resolving it again changes nothing.

    Raises:
        ConfigError: two keys do not go together, or the recipe is unknown.

    >>> resolve(PipelineConfig(recipe="adl", batch_size=32, accumulate=4)).lr
    0.05
    """
    size = config.image_size
    if size is None and _resizes_digits(config):
        size = _DIGITS_SIZE_PX
    config = config.model_copy(update={"batch_size": batch_size_of(config)})
    return config.model_copy(
        update={
            **_resolved_rate(config),
            **_resolved_schedule(config),
            "recipe": None,
            "image_size": size,
            "data_root": config.data_root and str(Path(config.data_root).expanduser().absolute()),
            "eval_batch_size": _first(config.eval_batch_size, config.batch_size),
            "name": config.name or new_run_name(config.method),
        }
    )


def batch_size_of(config: NetworkConfig) -> int:
    """Return the samples of a batch.

    An epoch of the digits is 23 batches of 64, of which late gradients make too few updates for a
    deep network to learn anything in an epoch or three.
    """
    if config.batch_size is not None:
        return config.batch_size
    if _resizes_digits(config):
        return _DIGITS_BATCH
    return 64 if isinstance(config, PipelineConfig) else 32


def _resizes_digits(config: NetworkConfig) -> bool:
    return config.data == "digits" and config.model not in _ANY_SIZE


def _resolved_rate(config: NetworkConfig) -> dict[str, float | None]:
    if config.recipe is None:
        name = config.optimizer.lower()
        return {
            "lr": _rate_without_recipe(config, name),
            "base_batch_size": None,
            "momentum": _first(config.momentum, 0.9 if name in _MOMENTUM else None),
        }
    if config.recipe not in RECIPES:
        close = difflib.get_close_matches(config.recipe, RECIPES, n=1)
        raise ConfigError(
            f"`recipe` must be one of {', '.join(RECIPES)}, but got {config.recipe!r}"
            + (f": did you mean {close[0]}?" if close else "")
        )
    recipe = RECIPES[config.recipe]
    if config.optimizer.lower() != recipe.optimizer:
        raise ConfigError(
            f"recipe={config.recipe} is one of {recipe.optimizer}, but got "
            f"recipe={config.recipe} with optimizer={config.optimizer}: leave one of them out, or "
            f"say optimizer={recipe.optimizer}"
        )
    if config.base_batch_size is not None:
        raise ConfigError(
            "a recipe knows how its rate grows with the batch, but got base_batch_size="
            f"{config.base_batch_size} with recipe={config.recipe}: leave one of them out"
        )
    return {
        "lr": _first(
            config.lr, recipe.learning_rate(batch_size_of(config), _batches_of_an_update(config))
        ),
        "momentum": _first(config.momentum, recipe.momentum),
        "weight_decay": _first(config.weight_decay, recipe.weight_decay),
    }


def _rate_without_recipe(config: NetworkConfig, name: str) -> float:
    samples = batch_size_of(config) * _batches_of_an_update(config)
    if config.lr is not None and config.base_batch_size is not None:
        return linear_scaling(config.lr, samples, config.base_batch_size)
    if config.base_batch_size is not None:
        raise ConfigError(
            f"base_batch_size says what lr is meant for, but got base_batch_size="
            f"{config.base_batch_size} without lr: give lr"
        )
    if config.lr is None and name in ("lars", "clars"):
        return linear_scaling(0.1, samples, 128)  # HUO 4.4.1
    return float(_first(config.lr, 0.05 if name in ("sgd", "nag") else 1e-3))


def _batches_of_an_update(config: NetworkConfig) -> int:
    """Return M of a pipeline; of averaged gradients W, as each worker has a batch in an update."""
    if isinstance(config, PipelineConfig):
        return config.accumulate
    if isinstance(config, AveragingConfig) and config.method == "minibatch_sgd":
        return config.workers if isinstance(config.workers, int) else config.workers[-1]
    return 1


def _resolved_schedule(config: NetworkConfig) -> dict[str, Any]:
    recipe = RECIPES[config.recipe].schedule if config.recipe else None
    kind = config.schedule or (recipe.kind if recipe else None)
    kind = kind or ("steps" if config.milestones else "constant")
    found: dict[str, Any] = {
        "schedule": kind,
        "warmup_epochs": _first(config.warmup_epochs, recipe.warmup_epochs if recipe else 0.0),
    }
    if kind == "polynomial":
        found["power"] = _first(config.power, recipe.power if recipe else 2.0)
    elif config.power is not None:
        raise ConfigError(
            f"`power` belongs to schedule=polynomial, but got power={config.power} with "
            f"schedule={kind}"
        )
    if kind != "steps":
        for key in ("milestones", "gamma"):
            if getattr(config, key) is not None:
                raise ConfigError(
                    f"`{key}` belongs to schedule=steps, but got {key}={getattr(config, key)} "
                    f"with schedule={kind}"
                )
        return found
    found["milestones"] = _first(config.milestones, list(recipe.milestones) if recipe else [])
    found["gamma"] = _first(config.gamma, recipe.gamma if recipe else 0.1)
    return found


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
