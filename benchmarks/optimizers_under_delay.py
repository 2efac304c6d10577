"""Claim: optimisers that keep a rate of their own per weight bear delayed gradients at the rates of
back-propagation; momentum needs a lower rate, and rate-free optimisers do not bear delay.

    python -m benchmarks.optimizers_under_delay [--more dadaptation:DAdaptSGD prodigyopt:Prodigy]

scikit-learn's digits, a multilayer perceptron of five linear layers of 64, cut into four stages,
batches of 32, eight epochs, one seed; the loops and rules of a run in one thread, without Ray.
Every optimiser has one rate, at which back-propagation trains; nothing else is tuned.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from actors.pipeline.in_process import run_in_process
from raylab.algorithms.stage.rules import stage_rule
from raylab.drivers.pipeline.network import Network
from raylab.drivers.pipeline.programs import programs, stage_settings
from raylab.drivers.pipeline.settings import PipelineSettings
from raylab.errors import RaylabError
from raylab.optimizers import make_optimizer

CUTS = (2, 4, 6)
TRAINED = 1472
METHODS = {"bp": ("bp", 1), "ddg": ("ddg", 1), "adl": ("adl", 1), "adl, M=4": ("adl", 4)}
TORCH = (
    ("sgd", 0.05, {}),
    ("sgd", 0.05, {"momentum": 0.9}),
    ("sgd", 0.005, {"momentum": 0.9}),
    ("nag", 0.05, {"momentum": 0.9}),
    ("lars", 0.5, {"momentum": 0.9}),
    ("adam", 1e-3, {}),
    ("adamw", 1e-3, {}),
    ("nadam", 1e-3, {}),
    ("radam", 1e-3, {}),
    ("adamax", 2e-3, {}),
    ("adagrad", 1e-2, {}),
    ("rmsprop", 1e-3, {}),
    ("adadelta", 1.0, {}),
    ("adafactor", 1e-2, {}),
)
Batches = list[tuple[Tensor, Tensor]]


def digits() -> tuple[Batches, Batches]:
    """Return batches to train and to test with."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    train = [(x[i : i + 32], y[i : i + 32]) for i in range(0, TRAINED, 32)]
    return train, [(x[TRAINED:], y[TRAINED:])]


def network() -> nn.Sequential:
    """Return the network with its first weights."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    for _ in range(4):
        layer = nn.Linear(64, 64)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        blocks += [layer, nn.ReLU()]
    return nn.Sequential(*blocks, nn.Linear(64, 10))


def accuracy(optimizer: Callable[..., Any], method: str, accumulate: int, epochs: int) -> float:
    """Return the test accuracy at the end of a run."""
    settings = PipelineSettings(method=method, stages=CUTS, accumulate=accumulate)
    plan = programs(settings, settings.link_delays(), report_every=0)
    train, test = digits()
    rules = [
        stage_rule(settings.rule)(
            module,
            stage_settings(settings, program, protect_inputs=False, device="cpu"),
            optimizer=optimizer,
            loss_fn=F.cross_entropy if program.last else None,
        )
        for module, program in zip(Network(network()).stages(CUTS), plan, strict=True)
    ]
    _, rows = run_in_process(plan, rules, train, test, epochs=epochs)
    return [row["test_accuracy"] for row in rows if row.get("test_accuracy") is not None][-1]


def told(optimizer: Callable[..., Any], method: str, accumulate: int, epochs: int) -> str:
    """Return the accuracy, or the error that there was in its place."""
    try:
        return f"{accuracy(optimizer, method, accumulate, epochs):.1%}"
    except RaylabError as error:
        return type(error).__name__


def main() -> None:
    """Print a row an optimiser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="names of optimisers")
    parser.add_argument("--more", nargs="*", default=[], help="module:Class, with lr=1")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {
        " ".join([f"{name} lr={lr}", *(f"{k}={v}" for k, v in more.items())]): make_optimizer(
            name, lr, **more
        )
        for name, lr, more in TORCH
        if not asked.only or name in asked.only
    }
    for each in asked.more:
        module, _, kind = each.partition(":")
        found[kind] = functools.partial(getattr(importlib.import_module(module), kind), lr=1.0)
    print("| optimiser |", " | ".join(METHODS), "|\n| --- |", " --- |" * len(METHODS))
    for title, optimizer in found.items():
        cells = [told(optimizer, *each, asked.epochs) for each in METHODS.values()]
        print(f"| {title} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
