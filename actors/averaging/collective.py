"""Sums over torch.distributed that go on beside the computation.

The seats of one process group, one process each. A sum starts at once, on gloo's own threads or on
a CUDA stream of its own, and is waited for when it is wanted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree

from actors.errors import LinkError

__all__ = ["DistributedCollective", "Started", "lost_peer", "own_group", "reaching_peers"]


T = TypeVar("T")


def own_group() -> dist.ProcessGroup | None:
    """Return another group of all processes, None where there is one process only.

    Raises:
        LinkError: a process is gone.
    """
    with reaching_peers():
        return dist.new_group() if dist.get_world_size() > 1 else None


class Started(Generic[T]):
    """A sum or a list that is under way.

    Args:
        work: torch's handle.
        stream: that it runs on, of a GPU.
        found: what will have come.
    """

    def __init__(self, work: dist.Work | None, stream: torch.cuda.Stream | None, found: T) -> None:
        if work is None:
            raise LinkError("this process is not in the group that it would sum over")
        self._work, self._stream, self._found = work, stream, found

    def wait(self) -> T:
        """Return what has come; on a GPU the stream waits for it, and not the thread.

        Raises:
            LinkError: a process of the group is gone.
        """
        with reaching_peers():
            if self._stream is None:
                self._work.wait()
            else:
                with torch.cuda.stream(self._stream):
                    self._work.wait()
                torch.cuda.current_stream().wait_stream(self._stream)
        if self._stream is not None:
            for each in _pytree.tree_leaves(self._found):
                each.record_stream(torch.cuda.current_stream())
        return self._found


class DistributedCollective:
    """One process's seat in a process group. All call the same, in the same order.

    Args:
        group: torch.distributed's, used by nothing else; None: that of all processes.
        device: of the tensors.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._group = group
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def size(self) -> int:
        """W."""
        with reaching_peers():
            return dist.get_world_size(self._group)

    def sum(self, flat: Tensor) -> Started[Tensor]:
        """Start the sum over all seats; `flat` is overwritten.

        Raises:
            LinkError: a process of the group is gone.
        """
        with self._beside(flat):
            work = dist.all_reduce(flat, group=self._group, async_op=True)
        return Started(work, self._stream, flat)

    def gather(self, flat: Tensor) -> Started[list[Tensor]]:
        """Start to collect every seat's tensor, all of one shape.

        Raises:
            LinkError: a process of the group is gone.
        """
        parts = [torch.empty_like(flat) for _ in range(self.size)]
        with self._beside(flat):
            work = dist.all_gather(parts, flat, group=self._group, async_op=True)
        return Started(work, self._stream, parts)

    @contextlib.contextmanager
    def _beside(self, flat: Tensor) -> Iterator[None]:
        """Start on the stream of our own, after what makes `flat`."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(reaching_peers())
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.current_stream())
                stack.enter_context(torch.cuda.stream(self._stream))
                flat.record_stream(self._stream)
            yield


@contextlib.contextmanager
def reaching_peers() -> Iterator[None]:
    """Raise what says that another process is gone as an error of a link."""
    try:
        yield
    except Exception as error:
        if lost_peer(error, reaching=True):
            raise LinkError(f"the other workers cannot be reached: {error}") from error
        raise


def lost_peer(error: Exception, *, reaching: bool) -> bool:
    """Tell whether an error means that another worker is gone, and not that something is wrong.

    torch.distributed has no class for it. When a worker is lost Ray Train destroys the process
    groups of the others, who go on computing: whatever they raise from then on (a ValueError of
    torch's next collective, as a rule) follows from that.

    Args:
        error: raised by a worker.
        reaching: it came out of a call of torch.distributed.
    """
    if isinstance(error, LinkError) or not dist.is_initialized():
        return True
    # A lack of memory of this process is a RuntimeError, too.
    own = isinstance(error, torch.OutOfMemoryError)
    return reaching and isinstance(error, RuntimeError) and not own
