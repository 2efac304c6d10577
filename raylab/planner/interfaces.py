"""What the features at each cut look like, where a method puts a small network there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raylab.algorithms.pipeline.method import PipelineMethod
from raylab.algorithms.stage.cut_features import CutFeatures
from raylab.errors import DataError, ModelError
from raylab.planner.trace import BlockTrace

__all__ = ["cut_features"]


def cut_features(
    method: PipelineMethod,
    traces: Sequence[BlockTrace],
    cuts: Sequence[int],
    names: Sequence[str],
    labels: Sequence[Tensor],
) -> list[CutFeatures | None]:
    """Return the features above every stage; None at the last, and for methods that need none.

    Args:
        method: DNI and DGL have networks of their own at the cuts.
        traces: of the chain's blocks.
        cuts: first blocks of stages 1..K-1.
        names: of the blocks, for errors.
        labels: y of one batch.

    Raises:
        ModelError: features at a cut are not one floating tensor (N, C) or (N, C, H, W), or the
            network's outputs are not (N, classes).
        DataError: DNI's labels are not whole numbers (N,).
    """
    if method.feedback == "error" or not cuts:
        return [None] * (len(cuts) + 1)
    outputs = traces[-1].outputs
    if len(outputs) != 1 or outputs[0].ndim != 2:
        raise ModelError(
            f"{method.name} trains networks at the cuts for outputs of shape (N, classes), but the "
            f"last block {names[-1]!r} has {_told(outputs)}: use another method"
        )
    if method.feedback == "target":
        _check_labels(method, names[cuts[0]], labels)
    found: list[CutFeatures | None] = []
    for cut in cuts:
        crossing = traces[cut - 1].outputs
        features = crossing[0]
        fits = len(crossing) == 1 and features.ndim in (2, 4) and features.is_floating_point()
        if not fits:
            raise ModelError(
                f"{method.name} takes features of one floating tensor, (N, C) or (N, C, H, W), "
                f"but between blocks {names[cut - 1]!r} and {names[cut]!r} there is "
                f"{_told(crossing)}: move the cut or use another method"
            )
        found.append(
            CutFeatures(
                channels=features.shape[1],
                image=features.ndim == 4,
                classes=outputs[0].shape[1],
                dtype=features.dtype,
            )
        )
    return [*found, None]


def _check_labels(method: PipelineMethod, block: str, labels: Sequence[Tensor]) -> None:
    whole = [not t.is_floating_point() and not t.is_complex() and t.ndim == 1 for t in labels]
    if whole != [True]:
        raise DataError(
            f"{method.name} makes gradients out of class labels, whole numbers of shape (N,), "
            f"but for the cut before block {block!r} the first batch has {_told(labels)}: "
            "use dgl or a method with late gradients"
        )


def _told(tensors: Sequence[Tensor]) -> str:
    each = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors]
    return ", ".join(each)
