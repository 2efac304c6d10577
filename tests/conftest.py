"""For all tests: one thread of torch, so that small tensors do not wait for each other's cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
