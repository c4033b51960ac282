"""Names short enough to be drawn, and where they go in a plot, so that none covers another one or a marker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llmc.errors import printable

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top; points (1/72 inch)."""

RADII = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0)
ANGLES = (0, 180, 90, 270, 45, 135, 315, 225)  # degrees; beside the point reads best
LONGEST = 24  # characters
MARKER = 5.0  # half the side of what a marker takes
GAP = 1.5  # between two boxes


def clipped(name: str, longest: int = LONGEST) -> str:
    """A name on one line, its middle left out where it is long: names of models differ at their ends."""
    flat = printable(name)
    half = (longest - 1) // 2
    return flat if len(flat) <= longest else f"{flat[:half]}…{flat[-half:]}"


def place(
    points: Sequence[Point], sizes: Sequence[tuple[float, float]], border: Box, drawn: Sequence[Box] = ()
) -> list[Box | None]:
    """A box for each name, greedily: the nearest free place around its point; None where none is free.

    Args:
        points: markers, in points.
        sizes: width and height of each name.
        border: what all boxes stay in.
        drawn: what else no name may cover.
    """
    taken = [*drawn, *((x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points)]
    boxes: list[Box | None] = []
    for point, size in zip(points, sizes, strict=True):
        free = (box for box in _around(point, size) if _inside(box, border) and not any(_meet(box, t) for t in taken))
        box = next(free, None)
        boxes.append(box)
        taken += [] if box is None else [box]
    return boxes


def _around(point: Point, size: tuple[float, float]) -> Iterator[Box]:
    """Boxes whose nearest edge or corner is a radius away from the point, the nearest first."""
    for radius in RADII:
        for angle in ANGLES:
            step = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            left, bottom = (_start(*each, radius) for each in zip(point, size, step, strict=True))
            yield left, bottom, left + size[0], bottom + size[1]


def _start(at: float, length: float, step: float, radius: float) -> float:
    """Where an edge begins along one axis: beyond the point in the direction of `step`, or around it."""
    if abs(step) < 1e-6:
        return at - length / 2
    return at + radius * step - (length if step < 0 else 0)


def _inside(box: Box, border: Box) -> bool:
    return box[0] >= border[0] and box[1] >= border[1] and box[2] <= border[2] and box[3] <= border[3]


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP
