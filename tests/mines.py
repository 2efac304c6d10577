"""Blocks that kill a process at a moment that was drawn before."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Mine", "MinedBlock"]

Mine = tuple[int, Literal["forward", "backward"]]
"""After how many forwards of the block in one process, and in which pass."""


class MinedBlock(nn.Module):
    """A block with mines, which go off one after another, each once in all processes together.

    Args:
        block: what is computed.
        folder: holds a file for every mine that has gone off.
        mines: in their order.
        victim: process to kill; None: the one that the block is in; "raylet": its parent, with
            which its whole node is lost. The driver is never mined: it runs blocks once to look
            at their shapes.
    """

    def __init__(
        self,
        block: nn.Module,
        folder: Path,
        mines: Sequence[Mine],
        victim: int | Literal["raylet"] | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self._folder = folder
        self._mines = list(mines)
        self._driver = os.getpid()
        self._victim = victim
        self._forwards = 0
        folder.mkdir(parents=True, exist_ok=True)

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self._driver:
            self._forwards += 1
            self._step_on("forward")
        out: Tensor = _Backward.apply(self.block(x), self)
        return out

    def passes(self, way: str) -> None:
        if os.getpid() != self._driver:
            self._step_on(way)

    def _step_on(self, way: str) -> None:
        gone = len(list(self._folder.iterdir()))
        if gone < len(self._mines):
            after, when = self._mines[gone]
            if self._forwards >= after and when == way:
                (self._folder / str(gone)).touch(exist_ok=False)
                victim = os.getppid() if self._victim == "raylet" else self._victim
                os.kill(victim or os.getpid(), signal.SIGKILL)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: MinedBlock) -> Tensor:
        ctx.block = block
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.block.passes("backward")
        return gradient, None
