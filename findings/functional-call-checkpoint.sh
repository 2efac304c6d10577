#!/usr/bin/env bash
# torch 2.13.0. torch.func.functional_call runs a module on other weights, but a block within it that
# uses torch.utils.checkpoint(use_reentrant=False) is run again in the backward, when functional_call
# has already put the module's own weights back. Shapes agree, so nothing is raised: the gradients mix
# two sets of weights. It matters to whoever differentiates at stale, averaged or perturbed weights
# (late gradients, meta-learning, ensembles). Keep the other weights in the module itself until the
# backward has run, or take the checkpoint out of blocks that functional_call runs.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, recompute):
        super().__init__()
        self.recompute = recompute
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()

    def forward(self, x):
        return checkpoint(self.layers, x, use_reentrant=False) if self.recompute else self.layers(x)


def gradient(recompute, called_with, held):
    """Gradient of the first weight by the weights called with, in a module that holds others."""
    torch.manual_seed(0)
    module, x = Block(recompute), torch.randn(3, 4).double()
    initial = {name: value.detach().clone() for name, value in module.named_parameters()}
    for name, value in module.named_parameters():
        value.data.copy_(held * initial[name])
    weights = {name: (called_with * value).requires_grad_() for name, value in initial.items()}
    functional_call(module, weights, (x,)).pow(2).sum().backward()
    return weights["layers.0.weight"].grad


right = gradient(False, 2, 1)
wrong = gradient(True, 2, 1)
same = gradient(True, 2, 2)  # recomputed with the same values: right again
print("torch", torch.__version__)
print("expected: one gradient, with checkpoint and without")
print(f"seen: norm {right.norm():.4f} without, {wrong.norm():.4f} with, nothing raised")
if not ((right - wrong).norm() > 0.1 * right.norm() and torch.allclose(right, same)):
    print("CHANGED: it no longer does")
    sys.exit(1)
print("as stated")
PYTHON
