"""What a stage is, as tensors by parameter name: to be saved, and to become it again.

Names, not places, so that a network that was trained on K stages can go on with another K.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "BESIDE",
    "copied",
    "load_module",
    "load_optimizer",
    "load_weights",
    "merged_state",
    "module_state",
    "optimizer_state",
]

State = dict[str, Any]

BESIDE = "beside the stage"
"""Goes before the names of parameters that are no part of the network, and stay at their cut."""


def copied(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU."""
    return tensor.detach().to("cpu", copy=True)


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, also of those that a state_dict leaves out."""
    return {name: copied(t) for name, t in _tensors(module).items()}


@torch.no_grad()
def load_module(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Write saved parameters and buffers into a module; it keeps its tensors where shapes agree."""
    for name, tensor in _tensors(module).items():
        if tensor.shape == saved[name].shape:
            tensor.copy_(saved[name])
        else:  # a module may have put a buffer of another size in place of its own
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, saved[name].to(tensor.device))


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write weights into the parameters' memory, unseen by the graphs that refer to it."""
    for name, p in module.named_parameters():
        if name in weights:
            p.data.copy_(weights[name])


def optimizer_state(optimizer: Optimizer, names: Mapping[int, str]) -> State:
    """Return an optimiser's state by parameter name.

    Args:
        optimizer: of the stage.
        names: of the parameters, by `id`.
    """
    kept = optimizer.state_dict()
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    return {
        "groups": [
            {key: value for key, value in group.items() if key != "params"}
            for group in copy.deepcopy(kept["param_groups"])
        ],
        "state": {
            order[index]: {
                key: copied(value) if isinstance(value, Tensor) else copy.deepcopy(value)
                for key, value in each.items()
            }
            for index, each in kept["state"].items()
        },
    }


def load_optimizer(optimizer: Optimizer, names: Mapping[int, str], saved: State) -> None:
    """Give an optimiser the state that was saved for its parameters."""
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    groups = [
        {**kept, "params": group["params"]}
        for group, kept in zip(
            optimizer.state_dict()["param_groups"], copy.deepcopy(saved["groups"]), strict=True
        )
    ]
    state = {
        index: copy.deepcopy(saved["state"][name])
        for index, name in enumerate(order)
        if name in saved["state"]
    }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def merged_state(parts: Sequence[State]) -> State:
    """Return one state of the whole network from those of its stages, with nothing in flight.

    Batches between forward and backward are left out, and the networks beside the stages: they
    belong to one way of cutting. Schedule, hyper-parameters and counts are those of the last
    stage, whose gradients are never late.
    """
    last = parts[-1]
    optimizers = [part["optimizer"] for part in parts if part["optimizer"] is not None]
    state = _of_the_network(kept["state"] for kept in optimizers)
    return {
        **last,
        "weights": {name: t for part in parts for name, t in part["weights"].items()},
        "extra": {name: each for part in parts for name, each in part.get("extra", {}).items()},
        "gradients": _of_the_network(part["gradients"] for part in parts),
        "samples": _merged_samples([part.get("samples") for part in parts]),
        "companion": None,
        "synthesizer": None,
        "optimizer": {"groups": optimizers[-1]["groups"], "state": state} if optimizers else None,
        "schedule": next((p["schedule"] for p in reversed(parts) if p["schedule"]), None),
        "versions": {},
        "open": [],
        "staleness": [],
    }


def _merged_samples(parts: Sequence[State | None]) -> State | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    by_layer = {
        key: _of_the_network(part[key] for part in known)
        for key, value in known[-1].items()
        if isinstance(value, Mapping)
    }
    return {**known[-1], **by_layer}


def _of_the_network(parts: Iterable[State]) -> State:
    return {
        name: value for part in parts for name, value in part.items() if not name.startswith(BESIDE)
    }


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
