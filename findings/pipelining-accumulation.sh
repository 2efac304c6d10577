#!/usr/bin/env bash
# torch 2.13.0. A schedule of torch.distributed.pipelining ends its step by dividing whatever stands in
# the parameters' .grad by the number of micro-batches (scale_grads=True, the default), also what
# earlier steps left there. Gradients accumulated over two steps with four micro-batches are thus
# g1/4 + g2, not g1 + g2, without a word. Whoever accumulates over several pipeline steps trains on
# little more than the last. Give scale_grads=False and divide the loss by the micro-batches oneself.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

os.environ["MASTER_ADDR"] = "127.0.0.1"
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
batches = [(torch.randn(8, 5).double(), torch.arange(8) % 3) for _ in range(2)]
loss = nn.CrossEntropyLoss()
held = True
print("torch", torch.__version__)
print("expected: two steps without zero_grad add up, as two backwards do")
for kind in (ScheduleGPipe, Schedule1F1B):
    module = nn.Linear(5, 3).double()
    first, second = (torch.autograd.grad(loss(module(x), y), [module.weight])[0] for x, y in batches)
    schedule = kind(PipelineStage(module, 0, 1, torch.device("cpu")), 4, loss_fn=loss)
    for x, y in batches:
        schedule.step(x, target=y)
    seen = module.weight.grad
    print(f"seen: {kind.__name__}: norm {seen.norm():.4f}, the sum's is {(first + second).norm():.4f}")
    held &= torch.allclose(seen, first / 4 + second) and not torch.allclose(seen, first + second)
dist.destroy_process_group()
if not held:
    print("CHANGED: it no longer does")
    sys.exit(1)
print("as stated")
PYTHON
