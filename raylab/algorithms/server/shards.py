"""w in contiguous ranges of its coordinates, each the rule of a server of its own.

Every server's rule moves w coordinate by coordinate: w <- w - η v, w = Σ g_k, and all that goes
back to an earlier state. So the rule of a range is the rule of the whole, on slices of messages;
only the figures of certificates are made of sums over all ranges.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raylab.algorithms.server.dual_server import DualServer
from raylab.algorithms.server.parts import Tensors
from raylab.algorithms.server.primal_rules import PrimalServer
from raylab.algorithms.server.rule_factory import server_rule
from raylab.algorithms.server.settings import ServerSettings
from raylab.errors import ConfigError
from raylab.problems.objective import Vector

__all__ = ["Cut", "slice_rule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How w is cut; the lengths differ by one at most.

    Args:
        dim: d, of w.
        servers: S, that share it.

    Raises:
        ConfigError: there are more servers than coordinates.

    >>> Cut(dim=7, servers=3).ranges
    [(0, 3), (3, 5), (5, 7)]
    """

    dim: int
    servers: int

    def __post_init__(self) -> None:
        if not 1 <= self.servers <= self.dim:
            raise ConfigError(
                f"every server needs a coordinate of w, but servers={self.servers} share "
                f"d={self.dim}: ask for 1 to {self.dim}"
            )

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first coordinate of each server's, and the one behind its last."""
        short, longer = divmod(self.dim, self.servers)
        starts = [s * short + min(s, longer) for s in range(self.servers + 1)]
        return list(itertools.pairwise(starts))

    def vector(self, vector: Tensor) -> list[Tensor]:
        """Return the slices of a vector (dim,), on its memory."""
        return [vector[lo:hi] for lo, hi in self.ranges]

    def message(self, tensors: Tensors) -> list[Tensors]:
        """Return the slices of what `raylab.algorithms.server.parts.as_message` made."""
        if len(tensors) == 1:
            (values,) = tensors
            return [(each,) for each in self.vector(_there(values))]
        where, values = (_there(each) for each in tensors)
        found: list[Tensors] = []
        for lo, hi in self.ranges:
            inside = torch.logical_and(where >= lo, where < hi)
            found.append((where[inside] - lo, values[inside]))
        return found


def slice_rule(
    settings: ServerSettings, w0: Vector, servers: int, shard: int
) -> PrimalServer | DualServer:
    """Return the rule of one range of w.

    Args:
        settings: of the run, for the whole of w.
        w0: w to begin with, (dim,).
        servers: S.
        shard: whose range, from 0.
    """
    if servers == 1:
        return server_rule(settings, w0)
    lo, hi = Cut(dim=settings.dim, servers=servers).ranges[shard]
    return server_rule(replace(settings, dim=hi - lo), w0[lo:hi])


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("a message of the parameter server has no gaps")
    return tensor
