"""For all tests: one thread of torch, so that small tensors do not wait for each other's cores; and
no example of a property fails because the machine was busy.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("busy")
