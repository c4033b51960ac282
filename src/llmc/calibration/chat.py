"""A model's chat template, which is a program of somebody else: rendered within limits of steps, time and memory.

Transformers keeps it from reaching anything (a sandbox of Jinja); it may still raise whatever it likes, never end, or
build a text that fills the memory. What one operation of Python's own does between two steps is bounded by memory and,
in the main thread, by time.
"""

from __future__ import annotations

import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llmc.errors import CalibrationError

STEPS = 5_000_000
"""Lines of Python that one conversation may take."""
SECONDS = 30
MEMORY = 1 << 30
"""Bytes that the process may grow by."""


class EndlessError(Exception):
    """The template passed a limit."""


def render(messages: object, where: str, tokenizer: Any) -> str:
    """A conversation as the tokenizer's chat template writes it. Raises CalibrationError, naming `where`."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise CalibrationError("not a conversation", where=where, fix="expected a list of {role, content} objects")
    try:
        with limited():
            text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:
        why = "it takes too much memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        raise CalibrationError(
            f"the chat template refuses this conversation ({' '.join(why.split())[:300]})",
            where=where,
            fix="repair the template, or calibrate on plain text",
        ) from None
    if not isinstance(text, str):
        raise CalibrationError("the chat template gives no text", where=where, fix="calibrate on plain text")
    return text


@contextmanager
def limited() -> Iterator[None]:
    """Raise EndlessError or MemoryError inside once a limit is passed."""
    steps, end = 0, time.monotonic() + SECONDS

    def step(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        steps += 1
        if steps > STEPS or (steps % 1024 == 0 and time.monotonic() > end):
            raise EndlessError(f"it does not end within {STEPS:,} steps and {SECONDS} seconds")
        return step

    before = sys.gettrace()
    with _memory(), _timer():
        sys.settrace(step)
        try:
            yield
        finally:
            sys.settrace(before)


@contextmanager
def _memory() -> Iterator[None]:
    """Let the process grow by `MEMORY` and no more, where the system can say how large it is."""
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, used + MEMORY) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _timer() -> Iterator[None]:
    """Interrupt even one long operation, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise EndlessError(f"it does not end within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
