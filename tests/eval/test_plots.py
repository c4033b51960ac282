"""Plots: what is drawn against the figures, names that cover nothing, and files that are the same each time."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from colours import XYZ, contrast, linear
from comparisons import HOSTILE, bare, full, hostile, many, measured
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.errors import LlmcError
from llmc.eval.reports import plots as module
from llmc.eval.reports.comparison import Comparison, Row, compared
from llmc.eval.reports.labels import MARKER, clipped, place
from llmc.eval.reports.plots import PALETTE, plots, save_plots

SVG = "{http://www.w3.org/2000/svg}"


def drawn(comparison: Comparison) -> dict[str, ElementTree.Element]:
    return {plot.name: ElementTree.fromstring(plot.svg) for plot in plots(comparison)}


def words(root: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def test_every_plot_is_there_and_says_what_it_is() -> None:
    found = drawn(full())
    assert list(found) == ["kl-against-bytes", "error-per-block", "kl-of-tokens"]
    for name, root in found.items():
        assert root.attrib["role"] == "img"
        told = {each.attrib["id"]: each.text for each in root if each.tag in (f"{SVG}title", f"{SVG}desc")}
        assert list(told) == root.attrib["aria-labelledby"].split() == [f"{name}-title", f"{name}-desc"]
        assert all(told.values())
        assert {"small", "large", "worse"} <= set(words(root)) or name == "error-per-block"
    assert {"small", "large"} <= set(words(found["error-per-block"]))


def test_what_was_not_measured_is_not_drawn() -> None:
    assert list(drawn(bare())) == ["flips-against-bytes"]
    original, light, _ = measured()
    same = replace(light, kl=0.0, layer_error={}, windows=replace(light.windows, token_kl=np.zeros(9, np.float32)))
    assert drawn(compared(original, [Row("same", same)])) == {}
    assert drawn(compared(original, [])) == {}


def test_losses_of_nothing_and_infinity_stand_beside_others() -> None:
    original, light, _ = measured()
    rows = [
        Row("none", replace(light, kl=0.0, weight_bytes=9)),
        Row("some", light),
        Row("inf", replace(light, kl=np.inf)),
    ]
    found = drawn(compared(original, rows))["kl-against-bytes"]
    assert {"none", "some"} <= set(words(found)) and "inf" not in words(found)


def test_a_page_has_its_own_colours_and_ids() -> None:
    made = plots(full())
    svg = "".join(plot.svg for plot in made)
    assert not re.search(r"(?:stroke|fill): ?#[0-9a-f]{6}", svg)
    assert "currentColor" in svg and "var(--line)" in svg and "var(--page)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)
    outside = set(re.findall(r'"(\w+://[^"]*)"', svg)) | set(re.findall(r"url\((?!#)", svg))
    assert outside == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for plot in made:
        shown = {int(i) for i in re.findall(r"var\(--model-(\d)\)", plot.svg)}
        assert shown == ({0, 1} if plot.name == "error-per-block" else {0, 1, 2})


def test_a_name_keeps_its_colour() -> None:
    """The legend of a plot of lines: the colour before the name is that of its row."""
    for root in list(drawn(full()).values())[1:]:
        legend = next(each for each in root.iter() if each.attrib.get("id", "").endswith("legend_1"))
        colour, named = "", {}
        for each in legend.iter():
            found = re.search(r"var\(--model-\d\)", each.attrib.get("style", ""))
            colour = found[0] if found else colour
            if each.tag == f"{SVG}text":
                named["".join(each.itertext())] = colour
        assert named == {row.label: f"var(--model-{i})" for i, row in enumerate(full().rows) if row.label in named}
        assert len(named) >= 2


def markers(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    """Place and style of each model's marker."""
    found = [use for use in root.iter(f"{SVG}use") if "--model-" in use.attrib.get("style", "")]
    return [(float(use.attrib["x"]), float(use.attrib["y"]), use.attrib["style"]) for use in found]


def test_points_lie_where_their_figures_are() -> None:
    comparison = full()
    points = markers(drawn(comparison)["kl-against-bytes"])
    assert len(points) == 3
    x = [row.report.weight_bytes for row in comparison.rows]
    y = [-np.log(row.report.kl or 0) for row in comparison.rows]  # SVG counts downwards
    for values, places in ((x, [p[0] for p in points]), (y, [p[1] for p in points])):
        spread = np.ptp(values)
        if spread > 0:
            relative = (np.array(places) - places[0]) / np.ptp(places)
            assert relative == pytest.approx((np.array(values) - values[0]) / spread, abs=1e-3)
    assert [row.dominated_by for row in comparison.rows] == [None, None, "large"]
    assert ["fill: var(--page)" in point[2] for point in points] == [False, False, True]


def test_the_distribution_is_the_share_of_tokens() -> None:
    token_kl = np.random.default_rng(0).lognormal(size=500).astype(np.float32)
    token_kl[:50] = 0
    row = Row("a", replace(measured()[1], windows=replace(measured()[1].windows, token_kl=token_kl)))
    kl, share = module._tail(row)
    assert len(kl) > 100
    for x, y in zip(kl, share, strict=True):
        assert y == sum(float(each) >= x for each in token_kl) / 500
    assert share[0] == 1 / 500 and share[-1] <= 450 / 500


def test_names_are_text_as_they_are() -> None:
    found = drawn(hostile())
    assert len(found) == 3
    label = clipped(f"{HOSTILE}0")
    for root in found.values():
        assert label in words(root)
        assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
            *("svg", "title", "desc", "defs", "g", "path", "use", "text", "tspan", "clipPath", "rect")
        }
    underscored = compared(measured()[0], [Row("_a", measured()[1])])
    assert any(word.endswith("_a") for word in words(drawn(underscored)["kl-of-tokens"]))


@pytest.mark.parametrize("count", [1, 26])
def test_a_crowd_is_named(count: int) -> None:
    """Beside the points while there is room, then by number."""
    comparison = many(count)
    found = drawn(comparison)
    names = [clipped(row.label) for row in comparison.rows]
    points = words(found["kl-against-bytes"])
    assert set(names) <= set(words(found["kl-of-tokens"]))
    if count == 1:
        assert names[0] in points
        return
    assert {f"{i}  {name}" for i, name in enumerate(names, 1)} <= set(points)
    assert {str(i) for i in range(1, count + 1)} <= set(points)


BOX = (0.0, 0.0, 300.0, 220.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(10, 290), st.floats(10, 210), st.floats(8, 130)), max_size=14))
def test_names_cover_neither_names_nor_markers(drawn: list[tuple[float, float, float]]) -> None:
    points = [(x, y) for x, y, _ in drawn]
    line = (0.0, 100.0, 300.0, 100.0)
    boxes = place(points, [(width, 11.0) for _, _, width in drawn], BOX, [line])
    marks = [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    there = [box for box in boxes if box is not None]
    for box, (_, _, width) in zip(boxes, drawn, strict=True):
        assert box is None or (box[2] - box[0] == pytest.approx(width) and box[3] - box[1] == pytest.approx(11))
    for box in there:
        assert min(box) >= 0 and box[2] <= 300 and box[3] <= 220
    for a, b in [*combinations(there, 2), *((a, b) for a in there for b in [*marks, line])]:
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_a_lonely_point_is_named_beside_it() -> None:
    ((left, bottom, _, top),) = [box for box in place([(50, 50)], [(40, 10)], BOX) if box is not None]
    assert left == 59 and (bottom + top) / 2 == 50
    assert place([(50, 50)], [(400, 10)], BOX) == [None]


def test_clipped() -> None:
    assert clipped("short") == "short"
    assert clipped("a" * 24) == "a" * 24
    assert clipped("begin" + "x" * 40 + "end") == "beginxxxxxx…xxxxxxxxend"
    assert clipped("a\nb\x1b") == "a\\nb\\x1b"


def test_the_same_files_each_time(tmp_path: Path) -> None:
    comparison = full()
    first, second = save_plots(comparison, tmp_path / "new" / "a"), save_plots(comparison, tmp_path / "b")
    assert [path.name for path in first] == [
        *("kl-against-bytes.svg", "kl-against-bytes.png", "error-per-block.svg", "error-per-block.png"),
        *("kl-of-tokens.svg", "kl-of-tokens.png"),
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        if one.suffix == ".png":
            assert one.read_bytes().startswith(b"\x89PNG\r\n")
        else:
            root = ElementTree.fromstring(one.read_text())
            assert "var(" not in one.read_text() and PALETTE[0][0] in one.read_text()
            assert "currentColor" not in one.read_text() and words(root)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LlmcError) as caught:
        save_plots(full(), tmp_path / "file")
    assert str(caught.value) == f"{tmp_path / 'file'}: cannot write the plots: File exists"
    assert caught.value.exit_code == 2


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(LlmcError) as caught:
        plots(full())
    assert str(caught.value) == "plots need matplotlib, which is not installed; pip install 'llmc-compression[report]'"
    assert caught.value.exit_code == 2


SIGHT = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "no blue": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
"""Machado, Oliveira and Fernandes 2009, severity 1: linear RGB to what is seen."""


def lab(rgb: Any) -> Any:
    f = np.cbrt(XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883])  # all colours are above the linear part
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("theme", "page"), [(0, "#ffffff"), (1, "#14171b")])
def test_colours_are_told_apart_by_everybody(theme: int, page: str) -> None:
    colours = [pair[theme] for pair in PALETTE]
    assert min(contrast(colour, page) for colour in colours) >= 3
    for name, matrix in SIGHT.items():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in colours]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 20, name
