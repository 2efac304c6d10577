"""A thread that carries out one run after another, and hands their reports over one by one.

```
on_row(row) ──▶ a report? ──▶ queue ──▶ next()      and waits until next() is called again, so that
                                                    a trial that is not to go on ends there
```
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Driving", "Outcome", "Report"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A row, and what has been made of it.

    Args:
        row: of the run.
        figures: to tell.
    """

    row: Row
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a run.

    Args:
        error: that it has failed with; None: it has ended well.
    """

    error: BaseException | None


class Driving:
    """Runs in a thread of their own, which lives as long as this.

    Args:
        around: what all runs are carried out in, entered in their thread: warm actors are kept by
            thread, for instance.
        patient: a run waits after each report until it is told to go on, or to end.
    """

    def __init__(
        self, around: Callable[[], contextlib.AbstractContextManager[Any]], *, patient: bool
    ) -> None:
        self._around = around
        self._patient = patient
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._news: queue.Queue[Report | Outcome] = queue.Queue()
        self._turn = threading.Condition()
        self._handed = 0
        self._answered = 0
        self._ends = False
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="run", daemon=True)
        self._thread.start()

    def begin(
        self, run: Callable[[], object], report: Callable[[Row], Mapping[str, Any] | None]
    ) -> None:
        """Begin a run; the one before must have ended.

        Args:
            run: carries it out; it calls `hear` with its rows.
            report: makes what is to be told of a row, None: nothing.
        """
        self._report = report
        self._handed = self._answered = 0
        self._ends = False
        self._busy = True

        def job() -> None:
            outcome = Outcome(error=None)
            try:
                run()
            except BaseException as error:
                outcome = Outcome(error=error)
            self._news.put(outcome)

        self._jobs.put(job)

    def hear(self, row: Row) -> bool:
        """Take a row of the run; return whether it is to end."""
        figures = self._report(row)
        if figures is None:
            return self._ends
        with self._turn:
            self._handed += 1
            mine = self._handed
            self._news.put(Report(row=row, figures=figures))
            self._turn.wait_for(lambda: not self._patient or self._ends or self._answered >= mine)
            return self._ends

    def next(self) -> Report | Outcome:
        """Let the run go on, and return its next report, or its end."""
        with self._turn:
            self._answered = self._handed - self._news.qsize()
            self._turn.notify_all()
        news = self._news.get()
        self._busy = not isinstance(news, Outcome)
        return news

    def end(self) -> None:
        """End the run at its next row, and wait until it has ended."""
        with self._turn:
            self._ends = True
            self._turn.notify_all()
        while self._busy:
            self._busy = not isinstance(self._news.get(), Outcome)

    def close(self) -> None:
        """End the run, and the thread with what is around it."""
        self.end()
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            with self._around():
                while (job := self._jobs.get()) is not None:
                    job()
        except BaseException as error:
            self._news.put(Outcome(error=error))
