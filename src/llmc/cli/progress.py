"""Progress of long work: bars on a terminal, and lines where nobody watches, so that a log shows that it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmc.errors import printable
from llmc.results import shown_time

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

FIRST, OFTEN, SELDOM, CALM = 1.0, 10.0, 60.0, 60.0
"""Seconds until the first line, between lines, between lines later, and when that begins."""


class Watched:
    """One bar for each label, with the time left."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, label: str, done: float, total: float) -> None:
        if self._bars is None:
            self._bars = new_bars()
            self._bars.start()
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(printable(label), total=total)
        self._bars.update(self._tasks[label], completed=done, total=total)

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}


class Lines:
    """A line soon after the start, then one every so often, also while one step takes long.

    Args:
        tell: takes a line.
        verbose: a line for every step instead, at most one a second.
        clock: seconds that only grow.
    """

    def __init__(
        self, tell: Callable[[str], None], verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell, self._verbose, self._clock = tell, verbose, clock
        self._begun: dict[str, float] = {}  # label -> when it was first heard of
        self._last: tuple[str, float, float] | None = None
        self._start: float | None = None
        self._due = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self, label: str, done: float, total: float) -> None:
        with self._lock:
            now = self._clock()
            if self._start is None:
                self._start, self._due = now, now + FIRST
                self._thread = threading.Thread(target=self._beat, daemon=True)
                self._thread.start()
            self._begun.setdefault(label, now)
            self._last = (label, done, total)
        self.beat()

    def beat(self) -> float:
        """Tell a line if one is due; the seconds until the next one is."""
        with self._lock:
            now = self._clock()
            if self._last is None or self._start is None:
                return FIRST
            if now < self._due:
                return self._due - now
            pause = FIRST if self._verbose else OFTEN if now - self._start < CALM else SELDOM
            self._due = now + pause
            label, done, total = self._last
            self._tell(progress_line(label, done, total, now - self._begun[label]))
            return pause

    def close(self) -> None:
        """No more lines."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1)
        self._start = self._last = self._thread = None
        self._stop = threading.Event()

    def _beat(self) -> None:
        stop = self._stop
        while not stop.wait(self.beat()):
            pass


def progress_line(label: str, done: float, total: float, elapsed: float) -> str:
    """`quantize: 42 %, 1.6 min so far, about 2.2 min left`."""
    if not total or done <= 0:
        return f"{label}: begun, {shown_time(elapsed)} so far"
    share = min(done / total, 1.0)
    left = elapsed * (1 - share) / share
    return f"{label}: {share:.0%}, {shown_time(elapsed)} so far, about {shown_time(left)} left"


def new_bars() -> Bars:
    """Progress bars on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
