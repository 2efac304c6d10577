"""Claim: the exact mean of the samples' layer-gradient norms (HUO 4.7) costs CLARS at most half as
much again as a step of LARS, in time, and 1.3 times its memory; per-sample gradients of torch.func,
Opacus and BackPACK cost more.

    python -m benchmarks.clars_cost [--peers FOLDER] [--batch-size 128] [--rounds 15]

--peers is a folder that Opacus and BackPACK are installed in. All contenders train copies of one
network on one batch, in turn, round by round; what is told are medians, in seconds of processor
time, which another process on the machine does not add to. A step is forward, backward, the norms
of all layers' weights for all samples, and the update. Memory is the peak of a process of its own
above what it had before its first step.

Peers cannot take batch normalisation, so that they run on ResNet-20 without it, and on the MLP.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from raylab.models import build
from raylab.optimizers import CLARS, LARS, plain_parameters

Step = Callable[[], None]
MEMORY_STEPS = 3


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Return a model with nothing in the place of its batch normalisations."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return model


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network and the shape of a sample."""
    torch.manual_seed(0)
    if name == "mlp":
        layers: list[nn.Module] = [nn.Flatten()]
        for width in (784, 512, 512):
            layers += [nn.Linear(width, 512), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(512, 10)), (1, 28, 28)
    model: nn.Module = build("resnet20", in_channels=3, num_classes=10, image_size=32)
    return (without_batch_norm(model) if name == "resnet20 without BN" else model), (3, 32, 32)


# --- the contenders -----------------------------------------------------------------------------


def ours(kind: str, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """LARS or CLARS, in one of its kinds."""
    options: dict[str, Any] = {"estimator": "sampled"} if kind == "CLARS sampled" else {}
    rule = LARS if kind == "LARS" else CLARS
    optimizer = rule(model.parameters(), 1e-3, model=model, **options)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that have a rate of their own."""
    plain = {id(p) for p in plain_parameters(model)}
    return {name: p for name, p in model.named_parameters() if id(p) not in plain}


def by_torch_func(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """A vmap of grad, 32 samples at a time; the batch's gradient is their mean."""
    named = dict(model.named_parameters())
    layers = set(weights_of(model))
    optimizer = LARS(model.parameters(), 1e-3, model=model)

    def loss(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (one[None],)), label[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))

    def step() -> None:
        optimizer.zero_grad()
        weights = {name: p.detach() for name, p in named.items()}
        for part, labels in zip(x.split(32), y.split(32), strict=True):
            for name, each in per_sample(weights, part, labels).items():
                if name in layers:
                    each.flatten(1).norm(dim=1).sum()
                total, p = each.sum(0) / len(x), named[name]
                p.grad = total if p.grad is None else p.grad.add_(total)
        optimizer.step()

    return step


def by_opacus(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The gradients that Opacus keeps of every sample."""
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model)
    layers = list(weights_of(model).values())
    optimizer = LARS(model.parameters(), 1e-3, model=model)

    def step() -> None:
        wrapped.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        for p in layers:
            p.grad_sample.flatten(1).norm(dim=1).sum()
        optimizer.step()

    return step


def by_backpack(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """BackPACK's squared norms of every sample's gradient."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    extend(model)
    loss_fn = extend(nn.CrossEntropyLoss())
    layers = list(weights_of(model).values())
    optimizer = LARS(model.parameters(), 1e-3, model=model)

    def step() -> None:
        optimizer.zero_grad()
        with backpack(BatchL2Grad()):
            loss_fn(model(x), y).backward()
        for p in layers:
            p.batch_l2.sqrt().sum()
        optimizer.step()

    return step


CONTENDERS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    **{
        kind: lambda model, x, y, kind=kind: ours(kind, model, x, y)
        for kind in ("LARS", "CLARS", "CLARS sampled")
    },
    "torch.func": by_torch_func,
    "Opacus": by_opacus,
    "BackPACK": by_backpack,
}
OURS = ("LARS", "CLARS", "CLARS sampled")


def contender(name: str, net: str, batch_size: int) -> Step:
    """Return a step of a contender on its own copy of a network."""
    model, shape = network(net)
    x = torch.randn(batch_size, *shape)
    y = torch.randint(10, (batch_size,))
    return CONTENDERS[name](copy.deepcopy(model).train(), x, y)


# --- the measurements ---------------------------------------------------------------------------


def times(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Return the median processor time of a step of each, s."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if number:  # the first round warms up
                found[name].append(time.process_time() - began)
    return {name: statistics.median(each) for name, each in found.items()}


def peak_bytes(name: str, net: str, options: argparse.Namespace) -> int:
    """Return the memory that a few steps take, measured in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.clars_cost", "--memory-of", name, net]
    command += ["--batch-size", str(options.batch_size)]
    if options.peers is not None:
        command += ["--peers", str(options.peers)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tell_memory(name: str, net: str, batch_size: int) -> None:
    """Print the bytes by which this process grows in a few steps."""
    step = contender(name, net, batch_size)
    # Linux: forget the peak that importing has had.
    Path("/proc/self/clear_refs").write_text("5")
    before = kib_of("VmRSS")
    for _ in range(MEMORY_STEPS):
        step()
    print(1024 * (kib_of("VmHWM") - before))


def kib_of(field: str) -> int:
    """Return a number of this process's status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def rows(net: str, options: argparse.Namespace) -> Iterator[str]:
    """Measure all contenders on a network; yield the lines of a table."""
    peers = [] if net == "resnet20" else ["torch.func"]
    if peers and options.peers is not None:
        peers += ["Opacus", "BackPACK"]
    names = [*OURS, *peers]
    steps = {name: contender(name, net, options.batch_size) for name in names}
    measured = times(steps, options.rounds)
    del steps
    memory = {name: peak_bytes(name, net, options) for name in names}
    for name in names:
        yield (
            f"| {net} | {name} | {1000 * measured[name]:.1f} "
            f"| {measured[name] / measured['LARS']:.2f} | {memory[name] / 2**20:.0f} "
            f"| {memory[name] / memory['LARS']:.2f} |"
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="*", default=["mlp", "resnet20", "resnet20 without BN"])
    parser.add_argument("--peers", type=Path, help="folder that Opacus and BackPACK are in")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peers is not None:
        sys.path.append(str(options.peers))
        warnings.simplefilter("ignore")  # what peers say of torch's own changes
    if options.memory_of:
        tell_memory(*options.memory_of, options.batch_size)
        return
    print(f"torch {torch.__version__}, {options.threads} thread, batch {options.batch_size}")
    if options.peers is not None:
        for name in ("opacus", "backpack-for-pytorch"):
            print(f"{name} {importlib.metadata.version(name)}")
    print("\n| network | step of | CPU ms | times LARS | peak MiB | times LARS |")
    print("| --- | --- | --- | --- | --- | --- |")
    for net in options.networks:
        for line in rows(net, options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
