"""Which certificate is being made, who has not been told of it, and whose part has not come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from actors.server.messages import Proof
from actors.server.protocols import Certificate
from actors.units import Tensors

__all__ = ["Certification"]


class Certification:
    """One certificate after another, each at a w that is held fast while its parts are made.

    Args:
        every_samples: between two certificates.
    """

    def __init__(self, every_samples: float) -> None:
        self.number = 0
        """Of the certificate of now."""
        self.answer: Tensors = ()
        """What it is made at."""
        self.at = 0
        """Updates behind that, as the server's trail counts them."""
        self.good: int | None = None
        """The last one that was good."""
        self.last = False
        """Whether that of now is the run's last."""
        self.due_samples = every_samples
        """Samples at which the next begins."""
        self._every_samples = every_samples
        self._untold: set[int] = set()
        self._awaited: set[int] = set()
        self._parts: dict[int, Certificate] = {}

    @property
    def open(self) -> bool:
        """Whether a part has not come."""
        return bool(self._awaited)

    def due(self, samples: int) -> bool:
        """Tell whether the next one begins now; if so, the one after it is put off."""
        if samples < self.due_samples or self.open:
            return False
        self.due_samples = samples + self._every_samples
        return True

    def begin(self, workers: Iterable[int], answer: Tensors, at: int) -> None:
        """Begin the next one, of these workers' samples."""
        self.number += 1
        self.answer, self.at = answer, at
        self._awaited = set(workers)
        self._untold = set(self._awaited)
        self._parts = {}

    def untold(self, worker: int) -> bool:
        """Tell whether a worker has not been told of that of now."""
        return worker in self._untold

    def tell(self, worker: int) -> tuple[int, Tensors, int] | None:
        """Return number, answer and place in the trail, of which a worker is told now; None: there
        is nothing to tell.
        """
        if worker not in self._untold:
            return None
        self._untold.discard(worker)
        return self.number, self.answer, self.at

    def lost(self, worker: int) -> None:
        """A worker is gone: whoever comes in its place makes the part that has not come."""
        if worker in self._awaited:
            self._untold.add(worker)

    def took(self, worker: int, proof: Proof) -> Mapping[int, Certificate] | None:
        """Take a part; return all of them with the last, None before that.

        A part of a certificate that was given up is forgotten.
        """
        if proof.number != self.number or worker not in self._awaited:
            return None
        self._awaited.discard(worker)
        self._parts[worker] = proof.certificate
        return None if self._awaited else self._parts

    def give_up(self) -> None:
        """Forget the certificate of now, and which one was good: the workers are others."""
        self._awaited.clear()
        self._untold.clear()
        self.last = False
        self.good = None
