"""One message ahead: the next batch is copied to the GPU while this one is computed with."""

from __future__ import annotations

from actors.wires.device_copies import DeviceCopies, OnTheWay
from actors.wires.mailbox import FeatureBox
from actors.wires.messages import Message

__all__ = ["Prefetcher"]


class Prefetcher:
    """A box whose next message is already on its way to the device.

    It never looks past a marker: at a checkpoint's the source must stand just there. What the box
    raises may so be raised a batch early.

    Args:
        box: gives messages with tensors of the host.
        copies: of the process.
    """

    def __init__(self, box: FeatureBox, copies: DeviceCopies) -> None:
        self.box = box
        self.name = box.name
        self.statistics = box.statistics
        self._copies = copies
        self._held: tuple[Message, OnTheWay] | None = None

    def take(self, timeout_s: float = 0.0) -> Message | None:
        """Return the next message, None if it has not come within `timeout_s`."""
        if self._held is None:
            self._fetch(timeout_s)
        if self._held is None:
            return None
        (message, coming), self._held = self._held, None
        if not message.tensors:
            return message
        self._fetch(0.0)
        return message._replace(tensors=self._copies.finish(coming))

    def close(self) -> None:
        """Close the box."""
        self._held = None
        self.box.close()

    def _fetch(self, timeout_s: float) -> None:
        message = self.box.take(timeout_s)
        self._held = None if message is None else (message, self._copies.begin(message.tensors))
