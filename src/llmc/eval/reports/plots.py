"""Plots of a comparison: loss against bytes, error per block, and how the KL is spread over tokens.

Drawn by matplotlib (the extra `report`) and written as SVG whose text is text. The same comparison gives the
same bytes. In a page the colours are CSS: `currentColor`, and `--line`, `--page`, `--model-0`, ... for both themes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from llmc.distribution import install
from llmc.errors import OutputError, UsageError
from llmc.eval.reports.labels import Point, clipped, place
from llmc.late import np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from llmc.eval.reports.comparison import Comparison, Row

PALETTE = (
    ("#0044a5", "#0a72bb"),
    ("#ec5e10", "#c23a1d"),
    ("#129564", "#1eefa5"),
    ("#d552aa", "#f2b4e7"),
    ("#724202", "#ff9e03"),
    ("#9f10fe", "#8134ff"),
    ("#3f3c3c", "#786f6c"),
)
"""Colours of the models on a light and on a dark page: their contrast to it is 3 or more, and they are far apart under
the simulations of colour blindness of Machado, Oliveira and Fernandes 2009. Dashes differ as well."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 1.5, 1, 1.5)))
INK, FAINT, PAPER = "#1b1f24", "#d3d8de", "#fffffe"
FONT = 11  # points
WIDTH, HEIGHT = 4.8, 3.6  # inches: shrunk to a phone's width the font stays legible
HALF = 17  # characters of a label that half the width of a plot holds
RANKS = 240  # points of a line of the distribution
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
        name: of its file, and what its ids begin with.
        title: what it shows.
        says: how to read it, in one or two sentences.
        svg: the picture, from `<svg` on.
    """

    name: str
    title: str
    says: str
    svg: str


@dataclass(frozen=True)
class _Kind:
    """What to draw: `draw(axes, comparison, legend)` says whether the plot names all its rows.

    With a legend below it, points are numbered as there. `lines` always have one.
    """

    name: str
    title: str
    says: str
    draw: Callable[[Axes, Comparison, bool], bool]
    has: Callable[[Row], bool]
    lines: bool = True


def plots(comparison: Comparison) -> list[Plot]:
    """The plots that there are figures for, in the colours of the page they are put in.

    Raises:
        UsageError: matplotlib is not installed.
    """
    return [Plot(kind.name, kind.title, kind.says, _svg(kind, comparison, page=True)) for kind in _kinds(comparison)]


def save_plots(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write each plot to `folder` as SVG and as PNG, dark on white. Returns the files.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    written: list[Path] = []
    for kind in _kinds(comparison):
        picture = {".svg": _svg(kind, comparison, page=False).encode(), ".png": _png(kind, comparison)}
        written += [Path(folder) / f"{kind.name}{ending}" for ending in picture]
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for ending, content in picture.items():
                (Path(folder) / f"{kind.name}{ending}").write_bytes(content)
        except OSError as error:
            raise OutputError(f"cannot write the plots: {error.strerror}", where=str(folder)) from error
    return written


def _kinds(comparison: Comparison) -> list[_Kind]:
    """Those of which there is something to see."""
    if find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib, which is not installed", fix=install(extra="report"))
    kl = comparison.loss != "flip_rate"
    size = _Kind(
        "kl-against-bytes" if kl else "flips-against-bytes",
        "KL divergence against size" if kl else "Flip rate against size",
        "Lower left is better. The line is the Pareto front; a hollow point is dominated by another one, "
        "a diamond is a control. Bars are 95 % intervals.",
        _loss_against_bytes,
        lambda row: bool(_loss(row, comparison)),
        lines=False,
    )
    layers = _Kind(
        "error-per-block",
        "Error per block",
        "Squared error of the outputs of each block, divided by their squared size, each model fed by itself.",
        _error_per_block,
        lambda row: any(value > 0 for value in row.report.layer_error.values()),
    )
    tokens = _Kind(
        "kl-of-tokens",
        "KL divergence over tokens",
        "Share of the tokens that changed at least so much: a line that ends far to the right breaks a few tokens.",
        _kl_of_tokens,
        lambda row: len(_tail(row)[0]) > 0,
    )
    return [kind for kind in (size, layers, tokens) if any(map(kind.has, comparison.rows))]


def colour(index: int) -> str:
    """Of the row `index`, the same in all plots."""
    return PALETTE[index % len(PALETTE)][0]


def _loss(row: Row, comparison: Comparison) -> float | None:
    """The loss that points are drawn at, if it is a number."""
    value = getattr(row.report, comparison.loss or "kl")
    return value if value is not None and math.isfinite(value) else None


def _loss_against_bytes(axes: Axes, comparison: Comparison, legend: bool) -> bool:
    """A point per model. Losses of 0 lie on the lower border of a log axis."""
    found = [(i, row, loss) for i, row in enumerate(comparison.rows) if (loss := _loss(row, comparison)) is not None]
    log = comparison.loss != "flip_rate"
    floor = min(loss for _, _, loss in found if loss > 0) / 3 if log else 0.0
    points = [(row.report.weight_bytes / 1e6, max(loss, floor)) for _, row, loss in found]
    front = sorted(point for point, (_, row, _) in zip(points, found, strict=True) if row.dominated_by is None)
    corners = [corner for a, b in pairwise(front) for corner in (a, (b[0], a[1]))] + front[-1:]
    axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.8, alpha=0.6, zorder=1)
    front_lines, bars = list(pairwise(corners)), []
    for (x, y), (i, row, _) in zip(points, found, strict=True):
        low, high = (max(edge, floor) for edge in row.report.intervals.get(comparison.loss or "kl", (y, y)))
        bars.append(((x, low), (x, high)))
        axes.plot([x, x], [low, high], color=colour(i), linewidth=1.2, zorder=2)
        face, shape = PAPER if row.dominated_by else colour(i), "D" if row.control_of else "o"
        axes.plot([x], [y], shape, markersize=7, color=colour(i), markerfacecolor=face, markeredgewidth=1.6, zorder=3)
    axes.set_xlabel("weight files, MB")
    axes.set_ylabel("KL divergence, nats" if log else "flip rate")
    axes.margins(x=0.14, y=0.12)
    if log:
        axes.set_yscale("log")
        _number_log(axes.yaxis)
    _share_axis(axes, comparison.original.weight_bytes / 1e6)
    names = [str(i + 1) if legend else clipped(row.label) for i, row, _ in found]
    return _name_points(axes, points, names, [*bars, *front_lines], spare=len(bars))


def _share_axis(axes: Axes, original: float) -> None:
    """Above the plot: bytes as a share of the original's `original` MB."""

    def share(mb: Any) -> Any:
        return 100 * mb / original

    def mb(share: Any) -> Any:
        return share * original / 100

    axes.secondary_xaxis("top", functions=(share, mb)).set_xlabel("% of the original")


def _name_points(
    axes: Axes, points: Sequence[Point], names: Sequence[str], lines: Sequence[tuple[Point, Point]], spare: int
) -> bool:
    """Write each name where it covers nothing, with a thin line where that is far from its point.

    No name covers `lines`, upright or level ones; the first `spare` of them only where there is no other room.
    Returns whether all names found room.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()  # fixes the layout: only now is it known where points lie
    figure.set_layout_engine("none")
    to, back = axes.transData, axes.transData.inverted()
    at: list[Point] = [tuple(to.transform(point)) for point in points]
    spans = [(min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])) for a, b in lines]
    drawn = [(*to.transform(span[:2]), *to.transform(span[2:])) for span in spans]
    texts = [axes.text(0, 0, name, fontsize=FONT - 1, verticalalignment="bottom") for name in names]
    sizes = [(extent.width, extent.height) for extent in (text.get_window_extent() for text in texts)]
    left, bottom, right, top = axes.get_window_extent().extents
    border = (left + 2, bottom + 2, right - 2, top - 2)
    boxes = place(at, sizes, border, drawn)
    boxes = place(at, sizes, border, drawn[spare:]) if None in boxes else boxes
    for text, point, box in zip(texts, at, boxes, strict=True):
        if box is None:
            text.remove()
            continue
        text.set_position(tuple(back.transform(box[:2])))
        end = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
        if math.dist(point, end) > 13:
            leader = back.transform([point, end])
            axes.plot(leader[:, 0], leader[:, 1], color=INK, linewidth=0.5, alpha=0.6, zorder=1)
    return None not in boxes


def _error_per_block(axes: Axes, comparison: Comparison, legend: bool) -> bool:
    """A line per model over all blocks that some model has; blocks without a figure above 0 leave a gap."""
    blocks = list(dict.fromkeys(block for row in comparison.rows for block in row.report.layer_error))
    for i, row in enumerate(comparison.rows):
        errors = np.array([row.report.layer_error.get(block, 0.0) for block in blocks], dtype=np.float64)
        shown = np.where(np.isfinite(errors) & (errors > 0), errors, np.nan)
        if not np.isnan(shown).all():
            axes.plot(range(len(blocks)), shown, marker="o", markersize=3.5, **_line(i))
    axes.set_yscale("log")
    _number_log(axes.yaxis)
    step = max(1, math.ceil(len(blocks) / 16))
    axes.set_xticks(range(0, len(blocks), step), [_tail_of(block) for block in blocks[::step]])
    axes.set_xlabel("block")
    axes.set_ylabel("relative squared error")
    return False


def _tail_of(path: str) -> str:
    """The number a block is told by, or the last word of its path."""
    return clipped(path.rsplit(".", 1)[-1])


def _kl_of_tokens(axes: Axes, comparison: Comparison, legend: bool) -> bool:
    """The share of tokens from each KL up, both axes log."""
    highest = max(tail[0][0] for row in comparison.rows if len((tail := _tail(row))[0]))
    for i, row in enumerate(comparison.rows):
        kl, share = _tail(row)
        seen = kl >= highest * 1e-6
        axes.plot(kl[seen], share[seen], **_line(i))
    axes.set_xscale("log")
    axes.set_yscale("log")
    _number_log(axes.xaxis)
    _number_log(axes.yaxis)
    axes.set_xlabel("KL divergence of a token, nats")
    axes.set_ylabel("share of tokens from there up")
    return False


def _tail(row: Row) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The k-th highest KL of a token and k / tokens, for some hundred k; those of 0 left out."""
    token_kl = row.report.windows.token_kl
    if token_kl is None or not len(token_kl):
        return np.zeros(0), np.zeros(0)
    ordered = np.sort(token_kl[np.isfinite(token_kl)].astype(np.float64))[::-1]
    ranks = np.unique(np.geomspace(1, len(token_kl), RANKS).astype(np.int64))
    ranks = ranks[ranks <= (ordered > 0).sum()]
    return ordered[ranks - 1], ranks / len(token_kl)


def _line(index: int) -> dict[str, Any]:
    return {"color": colour(index), "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.6}


def _number_log(axis: Axis) -> None:
    """Plain numbers at powers of ten, and between them where the axis spans few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    few = low > 0 and high / low < 300
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@contextmanager
def _settings() -> Iterator[None]:
    """Settings of matplotlib that do not depend on the machine's own."""
    import matplotlib

    own: dict[Any, Any] = {
        **{"svg.fonttype": "none", "svg.hashsalt": "llmc", "text.parse_math": False, "font.size": FONT},
        **{"axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True},
        **{"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK},
        **{"axes.facecolor": "none", "axes.linewidth": 0.7, "lines.solid_capstyle": "butt"},
    }
    # glyphs that the measuring font lacks are only measured wrongly
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(own)
        warnings.simplefilter("ignore", UserWarning)
        yield


def _figure(kind: _Kind, comparison: Comparison) -> Figure:
    """The plot, with the names of the lines, or of points that found no room for theirs, below it."""
    rows = [(i, row) for i, row in enumerate(comparison.rows) if kind.has(row)]
    figure = _empty(rows, legend=kind.lines, lines=kind.lines)
    if not kind.draw(figure.axes[0], comparison, kind.lines) and not kind.lines:
        figure = _empty(rows, legend=True, lines=False)
        kind.draw(figure.axes[0], comparison, True)
    return figure


def _empty(rows: Sequence[tuple[int, Row]], *, legend: bool, lines: bool) -> Figure:
    """Axes without data; with `legend`, these rows below them: as lines, or as numbered points."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = [clipped(row.label) for _, row in rows]
    columns = 2 if all(len(name) <= HALF for name in names) else 1
    height = 0.21 * math.ceil(len(rows) / columns) if legend else 0.0
    figure = Figure(figsize=(WIDTH, HEIGHT + height), dpi=72, layout="constrained")
    figure.subplots()
    if legend:
        point: dict[str, Any] = {"marker": "o", "linestyle": "none"}
        handles = [Line2D([], [], **(_line(i) | ({} if lines else point))) for i, _ in rows]
        # matplotlib leaves out what begins with an underscore
        shown = [f"\N{HAIR SPACE}{name}" if name.startswith("_") else name for name in names]
        shown = shown if lines else [f"{i + 1}  {name}" for (i, _), name in zip(rows, names, strict=True)]
        figure.legend(
            handles, shown, loc="outside lower left", ncols=columns, frameon=False, handlelength=3, fontsize=FONT - 1
        )
    return figure


def _png(kind: _Kind, comparison: Comparison) -> bytes:
    stream = io.BytesIO()
    with _settings():
        _figure(kind, comparison).savefig(stream, format="png", dpi=200, metadata={"Software": None})
    return stream.getvalue()


def _svg(kind: _Kind, comparison: Comparison, *, page: bool) -> str:
    """The plot as SVG with title and description; for a page without a background, ids and colours its own."""
    stream = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _settings():
        _figure(kind, comparison).savefig(stream, format="svg", facecolor="none" if page else PAPER, metadata=nothing)
    root = ElementTree.fromstring(stream.getvalue())
    for each in root.iter():
        for key in each.attrib:
            each.attrib[key] = _own(key, each.attrib[key], kind.name, page)
    for sheet in root.findall(f"{{{SVG}}}defs[{{{SVG}}}style]"):
        root.remove(sheet)  # its rules would hold for the page around it
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    root.attrib |= {"role": "img", "aria-labelledby": f"{kind.name}-title {kind.name}-desc"}
    for position, (tag, text) in enumerate((("title", kind.title), ("desc", kind.says))):
        told = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{kind.name}-{tag}"})
        told.text, told.tail = text, "\n"
        root.insert(position, told)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str, page: bool) -> str:
    """An attribute with ids that no other plot has, and in a page with the page's colours."""
    if key == "id":
        return f"{name}-{value}"
    if key == f"{{{XLINK}}}href":
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    if not page or key != "style":
        return value
    themed = {INK: "currentColor", FAINT: "var(--line)", PAPER: "var(--page)"}
    themed |= {light: f"var(--model-{i})" for i, (light, _) in enumerate(PALETTE)}
    return re.sub(r"#[0-9a-f]{6}", lambda found: themed.get(found[0], found[0]), value)
