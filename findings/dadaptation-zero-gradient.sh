#!/usr/bin/env bash
# dadaptation 3.2. DAdaptSGD divides by the norm of its first gradient, so a first step with zero
# gradients raises ZeroDivisionError; DAdaptAdam, of the same package, goes through it and adapts
# afterwards. First gradients of zero are ordinary: a batch whose
# samples all lie beyond a hinge loss's margin, or a pipeline with delayed gradients before its first one arrives.
# Leave out steps until a gradient differs from zero, or use DAdaptAdam.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 dadaptation==3.2

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import dadaptation
import torch


def walk(kind, zero_steps):
    """Run four steps, the first ones with zero gradients; return what was raised, if anything."""
    p = torch.nn.Parameter(torch.tensor([3.0, -2.0]).double())
    optimizer = kind([p], lr=1.0)
    for step in range(4):
        p.grad = torch.zeros_like(p) if step < zero_steps else p.detach() - 1
        try:
            optimizer.step()
        except ZeroDivisionError as error:
            return f"step {step}: {type(error).__name__}"
    return "finite" if p.isfinite().all() else "not finite"


print("dadaptation", version("dadaptation"), "torch", torch.__version__)
print("expected: a step with zero gradients leaves the parameters as they are")
seen = {
    "DAdaptSGD": (walk(dadaptation.DAdaptSGD, 0), walk(dadaptation.DAdaptSGD, 1)),
    "DAdaptAdam": (walk(dadaptation.DAdaptAdam, 0), walk(dadaptation.DAdaptAdam, 1)),
}
for name, (plain, zero) in seen.items():
    print(f"seen: {name}: {plain}; with a zero first gradient: {zero}")
held = seen["DAdaptSGD"] == ("finite", "step 0: ZeroDivisionError")
held &= seen["DAdaptAdam"] == ("finite", "finite")
if not held:
    print("CHANGED: it no longer does")
    sys.exit(1)
print("as stated")
PYTHON
