"""Calibration sequences kept back to judge what the others led to."""

from __future__ import annotations

from dataclasses import replace

from llmc.calibration.data import CalibrationSet
from llmc.errors import UsageError

HELD_OUT = 4
"""One calibration sequence in so many judges what the others led to, where that is asked for."""
LEAST_JUDGED = 4


def held_out(calibration: CalibrationSet) -> tuple[CalibrationSet, CalibrationSet]:
    """What statistics are taken from, and the quarter of the sequences that is kept for judging.

    Raises UsageError when there are too few.
    """
    count = calibration.token_ids.shape[0] // HELD_OUT
    if count < LEAST_JUDGED:
        fix = f"use --num-samples {HELD_OUT * LEAST_JUDGED} or more, or more text"
        raise UsageError(f"{calibration.token_ids.shape[0]} calibration sequences leave too few for judging", fix=fix)
    ids = calibration.token_ids
    return replace(calibration, token_ids=ids[:-count]), replace(calibration, token_ids=ids[-count:])
