"""For all tests: one thread of torch, so that small tensors do not wait for each other's cores; no
example of a property fails because the machine was busy; and Ctrl-C works in what tests start.
"""

from __future__ import annotations

import signal

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("busy")
# A shell lets what it starts in the background ignore the interrupt, and so would our children.
signal.signal(signal.SIGINT, signal.default_int_handler)
