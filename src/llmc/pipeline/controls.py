"""Size-matched controls: what plain rounding to nearest makes of the original in the bytes of another model.

All matrices get the widest codes that fit, and as many of them, in the model's order, one bit more as still fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc.errors import InputError, UnsupportedError
from llmc.models.checkpoint import Checkpoint
from llmc.pipeline.plan import describe, prepare
from llmc.pipeline.run import carry_out
from llmc.recipe.recipe import Recipe, from_dict
from llmc.results import Progress

WIDTHS = range(2, 9)
GROUPS: tuple[int | str, ...] = (128, 64, 32, "channel")


class Controls:
    """Makes controls of one original.

    Args:
        original: its folder.
    """

    def __init__(self, original: Path) -> None:
        self.checkpoint = Checkpoint(original)
        self.group_size = next((size for size in GROUPS if self._fits(size)), None)
        if self.group_size is None:
            raise UnsupportedError("rtn has no control for it: no group size fits its matrices", where=original.name)
        self.targets = list(prepare(self._recipe(4, []), self.checkpoint).specs)

    def write(self, budget: int, out: Path, progress: Progress | None) -> int:
        """Write the control of `budget` bytes of weight files into `out`; returns how many bytes it has.

        Raises UnsupportedError when the narrowest codes take more.
        """
        bits = max((width for width in WIDTHS if self._bytes(width, 0) <= budget), default=None)
        if bits is None:
            message = f"no rtn control has {budget:,} bytes: 2 bits take {self._bytes(WIDTHS[0], 0):,}"
            raise UnsupportedError(message, where=self.checkpoint.folder.name, fix="leave out --control")
        low, high = 0, len(self.targets) if bits < WIDTHS[-1] else 0
        while low < high:  # the most matrices that may have one bit more
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._bytes(bits, middle) <= budget else (low, middle - 1)
        job = prepare(self._recipe(bits, self.targets[:low]), self.checkpoint)
        carry_out(job, out, progress=progress)
        return self._bytes(bits, low)

    def _bytes(self, bits: int, wider: int) -> int:
        return describe(prepare(self._recipe(bits, self.targets[:wider]), self.checkpoint)).weight_bytes

    def _fits(self, group_size: int | str) -> bool:
        self.group_size = group_size
        try:
            prepare(self._recipe(4, []), self.checkpoint)
        except InputError:
            return False
        return True

    def _recipe(self, bits: int, wider: Sequence[str]) -> Recipe:
        """Rounding to `bits` bits, and of the matrices `wider` to one more."""
        stages: list[dict[str, Any]] = [{"method": "rtn", "bits": bits, "group_size": self.group_size}]
        if wider:
            stages[0]["ignore"] = list(wider)
            stages.append({**stages[0], "bits": bits + 1, "targets": list(wider), "ignore": []})
        if len(wider) == len(getattr(self, "targets", ())) > 0:
            stages = stages[1:]
        return from_dict({"model": str(self.checkpoint.folder), "stages": stages})
