#!/usr/bin/env bash
# torch 2.13.0. The schedules of torch.distributed.pipelining (here GPipe and 1F1B) take the mean of the
# micro-batches' losses. With a mean that is weighted, as of cross_entropy with ignore_index or class
# weights, that is not the batch's loss: micro-batches with few counted labels weigh too much, and the
# gradient depends on how the batch is cut, without a word. Whoever pads sequences or weighs classes
# trains another objective. Use reduction='sum' with scale_grads=False, and divide by the batch's
# total weight.
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
x, labels = torch.randn(8, 5).double(), torch.arange(8) % 3
padded = labels.clone()
padded[:3] = -100
cases = {
    "all labels, plain mean": (labels, nn.CrossEntropyLoss(), False),
    "three labels ignored": (padded, nn.CrossEntropyLoss(), True),
    "class weights": (labels, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]).double()), True),
}
held = True
print("torch", torch.__version__)
print("expected: the gradient of the loss over the batch")
for kind in (ScheduleGPipe, Schedule1F1B):
    for name, (y, loss, differs) in cases.items():
        module = nn.Linear(5, 3).double()
        (batch,) = torch.autograd.grad(loss(module(x), y), [module.weight])
        parts = zip(x.chunk(4), y.chunk(4))
        cut = [torch.autograd.grad(loss(module(a), b), [module.weight])[0] for a, b in parts]
        stage = PipelineStage(module, 0, 1, torch.device("cpu"))
        kind(stage, 4, loss_fn=loss).step(x, target=y)
        off = ((module.weight.grad - batch).norm() / batch.norm()).item()
        print(f"seen: {kind.__name__}, {name}: off by {off:.1%} of its norm")
        held &= torch.allclose(module.weight.grad, torch.stack(cut).mean(0))
        held &= (off > 0.05) if differs else (off < 1e-12)
dist.destroy_process_group()
if not held:
    print("CHANGED: it no longer does")
    sys.exit(1)
print("as stated")
PYTHON
