#!/usr/bin/env bash
# torch 2.13.0. NAdam keeps the product of its momenta in the default dtype (float32) whatever the
# parameters are, and load_state_dict casts it to theirs. With float64 parameters the product therefore
# goes on in float64 after loading: the resumed run drifts from the undisturbed one, without a word,
# while Adam's goes on bit for bit. It matters to whoever promises or checks exact resumption. Give
# state[p]['mu_product'] its float32 back after loading, or call torch.set_default_dtype(torch.float64).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy
import sys

import torch


def weights(kind, stop):
    """Take 40 steps, saved and loaded into a new optimiser before step number stop."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(64).double())
    optimizer = kind([p], lr=0.01)
    for step in range(40):
        if step == stop:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = kind([p], lr=0.01)
            optimizer.load_state_dict(state)
        p.grad = torch.cos(p.detach() * (step + 1))
        optimizer.step()
    return p.detach(), optimizer.state[p]


print("torch", torch.__version__)
print("expected: saved and loaded, the same bits as undisturbed")
adam = (weights(torch.optim.Adam, None)[0] - weights(torch.optim.Adam, 2)[0]).abs().max().item()
straight, before = weights(torch.optim.NAdam, None)
resumed, after = weights(torch.optim.NAdam, 2)
nadam = (straight - resumed).abs().max().item()
kinds = (before["mu_product"].dtype, after["mu_product"].dtype)
print(f"seen: Adam differs by {adam:g}, NAdam by {nadam:g}; mu_product {kinds[0]}, then {kinds[1]}")
if not (adam == 0 and nadam > 0 and kinds == (torch.float32, torch.float64)):
    print("CHANGED: it no longer does")
    sys.exit(1)
print("as stated")
PYTHON
