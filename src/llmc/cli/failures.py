"""Anything that went wrong, as the line and the exit code that the user sees."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from typer import TyperException

from llmc.distribution import install
from llmc.errors import (
    InterruptedRun,
    LlmcError,
    MemoryLimitError,
    StorageError,
    UnsupportedError,
    UsageError,
    first_line,
)
from llmc.registry import nearest

EXTRAS = {"readers": ("bitsandbytes", "kernels"), "report": ("matplotlib",)}
"""Extra of the distribution -> packages that it brings."""
AGAIN = "run the same command again to continue, or add --fresh to discard what is there"


class InternalError(LlmcError):
    """A fault of this program."""

    kind = "internal"


def understood(error: BaseException) -> LlmcError:
    """`error` as one of the tree: unknown ones become an InternalError."""
    if isinstance(error, LlmcError):
        return error
    if isinstance(error, TyperException):
        return usage_error(error)
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRun("interrupted")
    if out_of_memory(error):
        return MemoryLimitError("not enough memory", fix="see what `llmc plan` predicts, or free some")
    if isinstance(error, OSError):
        return storage_error(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("llmc"):
        return missing_package(error)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # what pathlib makes of ELOOP
        return UsageError("a link that leads to itself", where=str(error).rpartition(" from ")[2].strip("'"))
    return InternalError(
        f"internal error: {type(error).__name__}: {error}", fix="please report it with the lines above"
    )


def exit_code(error: LlmcError) -> int:
    """The code that the process ends with: after a signal 128 + its number."""
    return 128 + error.signal if isinstance(error, InterruptedRun) else error.exit_code


def usage_error(error: TyperException) -> UsageError:
    """What the command line parser refused, with the nearest valid names where it knows them."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "llmc"
    named = getattr(error, "option_name", "")
    possible = getattr(error, "possibilities", None) or ()
    bare = {each.lstrip("-"): each for each in possible}
    near = [bare[each] for each in nearest(str(named).lstrip("-"), list(bare))] if named else list(bare.values())
    message = error.message if possible else error.format_message()
    message, _, guess = message.partition(" Did you mean ")
    guess = " or ".join(near) + "?" if near else guess
    return UsageError(message.rstrip("."), where=where, fix=f"did you mean {guess}" if guess else f"see {where} --help")


def missing_package(error: ImportError) -> UnsupportedError:
    """A package that is not there, or not as it should be, and what brings it."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), "")
    fix = install(extra=extra) if extra or not package else f"pip install {package}"
    if isinstance(error, ModuleNotFoundError) and package:
        return UnsupportedError(f"it needs {package}, which is not installed", fix=fix)
    return UnsupportedError(first_line(error), fix=f"install what it asks for, as in: {fix}")


def storage_error(error: OSError) -> StorageError:
    """A failure of the disk or the network that the library did not explain itself."""
    message = error.strerror or str(error) or type(error).__name__
    where = str(error.filename) if error.filename is not None else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return StorageError(message, where=where, fix="free some space and run the same command again" if full else "")


def out_of_memory(error: BaseException) -> bool:
    """Python's own, torch's for devices, and what torch's CPU allocator says in a plain RuntimeError."""
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or allocator


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises InterruptedRun inside, as SIGINT raises KeyboardInterrupt: what is open is closed in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedRun("terminated", signal=number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def resumable() -> Iterator[None]:
    """An interruption inside says how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRun("interrupted", fix=AGAIN) from error
    except InterruptedRun as error:
        raise InterruptedRun(error.message, where=error.where, fix=error.fix or AGAIN, signal=error.signal) from error
