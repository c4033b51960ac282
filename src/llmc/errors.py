"""Every error a user can meet, in one tree. Catch `LlmcError` to catch them all.

    LlmcError
    ├── GateError           exit 1    a gate failed
    ├── VerifyError         exit 1    stored bytes or values differ from what was recorded
    ├── InputError          exit 2    bad input or usage
    │   ├── UsageError                an option or argument is wrong
    │   ├── RecipeError               a recipe key, type or value is wrong
    │   ├── CheckpointError           a model folder cannot be read as it should be
    │   ├── CalibrationError          the calibration or evaluation text is unusable
    │   ├── UnsupportedError          a format or runtime cannot hold what was asked for
    │   └── OutputError               the output path cannot be used
    ├── StorageError        exit 3    disk
    │   └── NetworkError    exit 3    hub or network
    ├── MemoryLimitError    exit 4    not enough memory
    └── InterruptedRun      exit 130  stopped by a signal (143 for SIGTERM)

An error is one line: what went wrong, where (stage, tensor, file:line), and what would work.
"""

from __future__ import annotations

from typing import ClassVar


class LlmcError(Exception):
    """A failure the user can act on.

    Args:
        message: what is wrong, in one line.
        where: the stage, tensor or `file:line` it concerns.
        fix: what would work instead.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = printable(message)
        self.where = printable(where)
        self.fix = printable(fix)

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}; {self.fix}" if self.fix else head

    def as_dict(self) -> dict[str, str]:
        """The error as printed under `--json`."""
        return {"kind": self.kind, "message": self.message, "where": self.where, "fix": self.fix}


class GateError(LlmcError):
    kind = "gate"
    exit_code = 1


class VerifyError(LlmcError):
    kind = "verify"
    exit_code = 1


class InputError(LlmcError):
    kind = "input"
    exit_code = 2


class UsageError(InputError):
    kind = "usage"


class RecipeError(InputError):
    kind = "recipe"


class CheckpointError(InputError):
    kind = "checkpoint"


class CalibrationError(InputError):
    kind = "calibration"


class UnsupportedError(InputError):
    kind = "unsupported"


class OutputError(InputError):
    kind = "output"


class StorageError(LlmcError):
    kind = "storage"
    exit_code = 3


class NetworkError(StorageError):
    kind = "network"


class MemoryLimitError(LlmcError):
    kind = "memory"
    exit_code = 4


class InterruptedRun(LlmcError):  # noqa: N818 - what happened is no error of anybody
    kind = "interrupted"
    exit_code = 130

    def __init__(self, message: str, *, where: str = "", fix: str = "", signal: int = 2) -> None:
        super().__init__(message, where=where, fix=fix)
        self.signal = signal


def printable(text: str) -> str:
    """`text` on one line with control characters escaped: names from files reach terminals through here."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """What another library said, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def foreign(error: BaseException) -> bool:
    """Whether another library raised `error` over its input: no stop by the user, no lack of memory, none of ours."""
    if isinstance(error, MemoryError | LlmcError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"  # of compiled Rust
