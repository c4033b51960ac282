"""Error against bytes of every grid, on sources whose Shannon bound is known and on the matrices of models.

    python benchmarks/rate_distortion.py [--side 4096] [--source gaussian laplace student-t] [--model FOLDER ...]
        [--states 1 4 8 16 32 64] [--rates 1 1.5 2 3 4 5 6] [--grids trellis int nf4] [--rows FILE] [--out PREFIX]

Weights are rounded without statistics. Bytes are those that a file would hold: packed codes and scales, and what the
coder of tensors makes of both; of a trellis its stream with the head. `gap` is stored bits per weight above the fewest
that any code of this source needs for this squared error: exact for Gaussian weights, the Shannon lower bound
h(X) - log2(2 pi e D) / 2 for Laplace and Student-t, which no code reaches. Matrices of a model are held against
Gaussian weights of each one's variance, which are the hardest of all that have it: a gap below zero is no error.

Rows that stand in `--rows` are not measured again, unless `--side` is larger now; one page can be made of several runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measuring import machine, markdown

from llmc import Checkpoint, read_tensors
from llmc.compressors.method import Context
from llmc.compressors.rtn import Rtn
from llmc.compressors.trellis import Trellis
from llmc.encodings.coding import tensor_coder
from llmc.encodings.coding.packing import pack_rows
from llmc.encodings.encoded import Encoded
from llmc.encodings.trellis import MACHINES

GROUPS = (128, 64, "channel")
STATES = tuple(MACHINES)
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
RATES = (1, 1.5, 2, 3, 4, 5, 6)
GRIDS = ("trellis", "int", "nf4")
FREEDOM = 4  # of Student's t
REQUIRED = {8: 0.09, 64: 0.06}
REQUIRED_RATES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Setting:
    """`kind` of GRIDS at nominal `bits`; `detail` is its group size, or the states of the machine."""

    kind: str
    bits: float
    detail: int | str

    @property
    def line(self) -> str:
        """The line of the plot it lies on."""
        if self.kind == "trellis":
            return f"trellis, {self.detail} state{'s' if self.detail != 1 else ''}"
        return f"{self.kind} {self.detail if self.detail == 'channel' else f'g{self.detail}'}"


@dataclass(frozen=True)
class Row:
    """What a setting made of a source.

    Attributes:
        side: of the matrix drawn; 0 for those of a model.
        weights: how many.
        stored: bits per weight of codes and scales as they are packed, or of the stream of a trellis.
        coded: the same through the coder of tensors; None where `stored` is that already.
        error: mean squared error / mean square.
        bound: fewest bits per weight for this error.
    """

    source: str
    line: str
    bits: float
    side: int
    weights: int
    stored: float
    coded: float | None
    error: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        return self.stored - self.bound

    @property
    def coded_gap(self) -> float | None:
        return None if self.coded is None else self.coded - self.bound


def draw(name: str, side: int) -> torch.Tensor:
    """float32 [side, side] of a source: variance 1 for `gaussian`, 2 for `laplace` and `student-t`."""
    generator = torch.Generator().manual_seed(0)
    if name == "laplace":
        a, b = torch.empty(2, side, side).exponential_(generator=generator)
        return a - b
    normal = torch.randn(side, side, generator=generator)
    if name == "gaussian":
        return normal
    halves = torch.empty(FREEDOM // 2, side, side).exponential_(generator=generator)
    return normal / (halves.sum(0) * (2 / FREEDOM)).sqrt()  # chi-square of 4 degrees: twice the sum of two exponentials


def differential_entropy(name: str) -> float:
    """h(X) of what `draw` draws, bits."""
    if name == "gaussian":
        return 0.5 * math.log2(2 * math.pi * math.e)
    if name == "laplace":
        return math.log2(2 * math.e)
    half = torch.tensor([(FREEDOM + 1) / 2, FREEDOM / 2], dtype=torch.float64)
    digamma, lgamma = torch.special.digamma(half), torch.special.gammaln(half)
    beta = float(lgamma[1] - lgamma[0]) + math.lgamma(0.5)
    nats = float(half[0] * (digamma[0] - digamma[1])) + 0.5 * math.log(FREEDOM) + beta
    return nats / math.log(2)


def bound(entropy: float, error: float) -> float:
    """Shannon's lower bound, bits, at a mean squared error; for normal weights it is the rate-distortion function."""
    return max(0.0, entropy - 0.5 * math.log2(2 * math.pi * math.e * max(error, 1e-300)))


def matrices(source: str, side: int, most: int) -> Iterator[tuple[torch.Tensor, float]]:
    """The matrices `[out_features, in_features]` of a source, each with the entropy that its bound is made of."""
    if source in SOURCES:
        yield draw(source, side), differential_entropy(source)
        return
    targets = [target for target in Checkpoint(Path(source)).targets if target.block and target.kind != "embedding"]
    tensors = read_tensors(Path(source))
    for target in targets[:: max(1, -(-len(targets) // most))]:
        W = tensors[target.tensor]
        W = W.t().contiguous() if target.transposed else W
        yield W, differential_entropy("gaussian") + 0.5 * math.log2(float(W.double().square().mean()))


def encode(weight: torch.Tensor, setting: Setting) -> tuple[Encoded, int, int | None]:
    """A matrix on a grid, the bytes that it is stored in, and those after coding; None where it is coded already."""
    context = Context(torch.float32, scale_dtypes=("bfloat16",))
    if setting.kind == "trellis":
        matrix = Trellis(bits_per_weight=setting.bits, states=int(setting.detail))(weight, {}, context)
        return matrix, tensor_coder.quantized(matrix).nbytes, None
    group = None if setting.detail == "channel" else int(setting.detail)
    matrix = Rtn(grid=setting.kind, bits=int(setting.bits), group_size=group)(weight, {}, context)
    parts = [pack_rows(matrix.codes, int(setting.bits)), matrix.params["scale"]]
    stored = sum(part.numel() * part.element_size() for part in parts)
    return matrix, stored, sum(tensor_coder.encode(part.contiguous()).nbytes for part in parts)


def measured(source: str, setting: Setting, side: int, most: int) -> Row:
    """The row of a setting: bytes and bounds of all matrices together, and the mean of their relative errors."""
    begin = time.perf_counter()
    weights, stored, coded, error, least = 0, 0, 0, 0.0, 0.0
    for W, entropy in matrices(source, side, most):
        matrix, own, after = encode(W, setting)
        square = float((matrix.dequantize().double() - W.double()).square().mean())
        weights += W.numel()
        stored += own
        coded += after or 0
        error += W.numel() * square / float(W.double().square().mean())
        least += W.numel() * bound(entropy, square)
    rate = None if setting.kind == "trellis" else 8 * coded / weights
    place = side if source in SOURCES else 0
    seconds = round(time.perf_counter() - begin, 1)
    figures = 8 * stored / weights, rate, error / weights, least / weights, seconds
    return Row(name_of(source), setting.line, setting.bits, place, weights, *figures)


def name_of(source: str) -> str:
    return source if source in SOURCES else Path(source).name


def settings(kinds: Sequence[str], states: Sequence[int], rates: Sequence[float]) -> Iterator[Setting]:
    for kind in GRIDS:
        if kind not in kinds:
            continue
        if kind == "trellis":
            yield from (Setting(kind, bits, n) for n in states for bits in rates)
        elif kind == "int":
            yield from (Setting(kind, bits, group) for group in GROUPS for bits in WIDTHS)
        else:
            yield Setting(kind, 4, 64)


SOURCES = ("gaussian", "laplace", "student-t")
WORDS = {
    "gaussian": "Gaussian weights, N(0, 1): bits above the rate-distortion function",
    "laplace": "Laplace weights: bits above the Shannon lower bound",
    "student-t": f"Student-t weights, {FREEDOM} degrees of freedom: bits above the Shannon lower bound",
}


def title(source: str) -> str:
    return WORDS.get(source, f"Matrices of {source}: bits above Gaussian weights of each one's variance")


def report(rows: Sequence[Row]) -> str:
    """Markdown: what was asked of it, the gaps of the trellis by states, and every row, source by source."""
    parts = [_required(rows)]
    for source in dict.fromkeys(row.source for row in rows):
        own = [row for row in rows if row.source == source]
        parts.append(f"## {title(source)}\n\n{_gaps(own)}\n{_everything(own)}")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _required(rows: Sequence[Row]) -> str:
    """The figures that Gaussian weights have to reach."""
    cells = []
    for states, most in REQUIRED.items():
        line = Setting("trellis", 1, states).line
        own = {row.bits: row for row in rows if (row.source, row.line) == ("gaussian", line)}
        if all(rate in own for rate in REQUIRED_RATES):
            gaps = [own[rate].gap for rate in REQUIRED_RATES]
            sides = sorted({own[rate].side for rate in REQUIRED_RATES})
            verdict = "yes" if max(gaps) <= most else "no"
            cells.append([line, str(sides[0]), f"{most:.2f}", *(f"{gap:.4f}" for gap in gaps), verdict])
    header = ["Gaussian", "side", "asked", *(f"gap at {rate}" for rate in REQUIRED_RATES), "reached"]
    return f"## What was asked\n\n{markdown(header, cells)}" if cells else ""


def _gaps(rows: Sequence[Row]) -> str:
    """Gap by states and rate."""
    own = [row for row in rows if row.line.startswith("trellis")]
    rates = sorted({row.bits for row in own})
    cells = []
    for line in dict.fromkeys(row.line for row in own):
        found = {row.bits: row for row in own if row.line == line}
        cells.append([line, *(f"{found[rate].gap:.4f}" if rate in found else "" for rate in rates)])
    return markdown(["gap at", *(f"{rate:g}" for rate in rates)], cells) if cells else ""


def _everything(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        coded = ["", ""] if row.coded is None else [f"{row.coded:.4f}", f"{row.coded_gap:.4f}"]
        first = f"{row.line}, {row.bits:g} bits", str(row.side or ""), f"{row.weights:,}"
        cells.append([*first, f"{row.error:.4g}", f"{row.bound:.4f}", f"{row.stored:.4f}", f"{row.gap:.4f}", *coded])
    header = ["", "side", "weights", "relative error", "bound", "stored bits", "gap", "coded bits", "gap coded"]
    return markdown(header, cells)


def plot(rows: Sequence[Row], file: Path) -> None:
    """The gap to the bound against stored bits, a panel for each source."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "llmc"  # the same rows, the same file
    from matplotlib import pyplot

    sources = list(dict.fromkeys(row.source for row in rows))
    across = min(2, len(sources))
    down = -(-len(sources) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(7 * across, 5 * down), squeeze=False)
    labels: dict[str, Any] = {}
    for number, source in enumerate(sources):
        panel = axes[number // across][number % across]
        for label, points, style in _curves([row for row in rows if row.source == source]):
            xs, ys = zip(*sorted(points), strict=True)
            labels[label] = panel.plot(xs, ys, label=label, markersize=4, linewidth=1.2, **style)[0]
        panel.set(title=title(source).partition(":")[0], xlabel="stored bits per weight", ylabel="bits above the bound")
        panel.set_ylim(*(0, 1.5) if source in SOURCES else (-1, 1.5))
        panel.set_xlim(0, 9)
        panel.grid(True, alpha=0.2)
    for number in range(len(sources), down * across):
        axes[number // across][number % across].axis("off")
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncols=5, fontsize="small")
    figure.tight_layout(rect=(0, 0.1 if down == 1 else 0.06, 1, 1))
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _curves(rows: Sequence[Row]) -> Iterator[tuple[str, list[tuple[float, float]], dict[str, Any]]]:
    """Label, points (bits, gap) and style of each curve."""
    for line in dict.fromkeys(row.line for row in rows):
        own = [row for row in rows if row.line == line]
        if line.startswith("trellis"):
            number = STATES.index(int(line.split()[1]))
            yield line, [(row.stored, row.gap) for row in own], {"color": f"C{number}", "marker": "o"}
            continue
        style = {"color": f"C{6 + ('g64' in line) + 2 * ('channel' in line)}", "marker": "s"}
        style |= {"color": "black", "marker": "*"} if line.startswith("nf4") else {}
        yield line, [(row.stored, row.gap) for row in own], {**style, "linestyle": "--"}
        points = [(row.coded, row.coded - row.bound) for row in own if row.coded is not None]
        yield f"{line}, coded", points, {**style, "linestyle": ":"}


def kept(file: Path | None) -> dict[tuple[str, str, float], Row]:
    """Rows measured before, of the largest side of each."""
    found: dict[tuple[str, str, float], Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else ():
        row = Row(**json.loads(line))
        key = row.source, row.line, row.bits
        if key not in found or found[key].side <= row.side:
            found[key] = row
    return found


def measure(given: argparse.Namespace) -> list[Row]:
    """All rows asked for and those kept, in the order of sources and settings."""
    rows = kept(given.rows)
    wanted = list(settings(given.grids, given.states, given.rates))
    for source, setting in product((*given.source, *map(str, given.model)), wanted):
        key = name_of(source), setting.line, setting.bits
        if key in rows and (source not in SOURCES or rows[key].side >= given.side):
            continue
        rows[key] = row = measured(source, setting, given.side, given.matrices)
        print(f"{row.source}: {row.line}, {row.bits:g} bits: gap {row.gap:.4f}", file=sys.stderr)
        if given.rows is not None:
            with given.rows.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(row)) + "\n")
    lines = list(dict.fromkeys(setting.line for setting in settings(GRIDS, STATES, RATES)))
    names = (*SOURCES, *sorted({row.source for row in rows.values()} - {*SOURCES}))
    return sorted(rows.values(), key=lambda row: (names.index(row.source), lines.index(row.line), row.bits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    some = partial(parser.add_argument, nargs="*")
    some("--source", choices=SOURCES, default=[*SOURCES], help="distributions")
    some("--model", type=Path, default=[], help="folders whose block matrices are taken")
    some("--states", type=int, choices=STATES, default=[*STATES])
    some("--rates", type=float, default=[*RATES], help="bits per weight of the trellis")
    some("--grids", choices=GRIDS, default=[*GRIDS])
    parser.add_argument("--side", type=int, default=4096, help="of the matrices drawn; 1024 for a quick look")
    parser.add_argument("--matrices", type=int, default=16, help="most of each model, evenly spread")
    parser.add_argument("--rows", type=Path, help="JSON lines of rows, read first and added to")
    parser.add_argument("--out", type=Path, help="PREFIX.md and PREFIX.svg are written")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(given)
    if given.out is not None:
        given.out.with_suffix(".md").write_text(report(rows), encoding="utf-8")
        plot(rows, given.out.with_suffix(".svg"))
    document = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    print(json.dumps(document, indent=2) if given.json else f"{machine()}\n\n{report(rows)}")


if __name__ == "__main__":
    main()
