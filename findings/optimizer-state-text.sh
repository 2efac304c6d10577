#!/usr/bin/env bash
# torch 2.13.0. Optimizer.load_state_dict rebuilds every iterable in a parameter's state from a
# generator, and a str is iterable: a text comes back as '<generator object ...>', without an error.
# kron-torch 0.3.3 keeps its einsum expressions so, and a run that was saved fails at the first step
# after loading. Whoever writes an optimiser should keep texts in the parameter groups, which are
# taken as they are; whoever uses one should save, load and take a step before a long run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch


class Texts(torch.optim.SGD):
    """SGD that also notes a text per parameter and one in its group."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["note"] = "ab,bc->ac"
            for p in group["params"]:
                self.state[p]["note"] = "ab,bc->ac"


def make():
    p = torch.nn.Parameter(torch.ones(2))
    return p, Texts([p], lr=0.1)


p, saved = make()
p.grad = torch.ones(2)
saved.step()
q, loaded = make()
loaded.load_state_dict(saved.state_dict())
in_state, in_group = loaded.state[q]["note"], loaded.param_groups[0]["note"]
print("torch", torch.__version__)
print("expected: both texts come back as 'ab,bc->ac'")
print(f"seen: in a group {in_group!r}, in a parameter's state {in_state!r}")
if not (in_group == "ab,bc->ac" and in_state.startswith("<generator object")):
    print("CHANGED: it no longer does")
    sys.exit(1)
print("as stated")
PYTHON
