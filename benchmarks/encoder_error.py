"""What quantizing the block matrices does to the vectors of a sentence encoder: trellis against GPTQ at the same bits.

    python benchmarks/encoder_error.py --model FOLDER --calibration FILE --text FILE [--bits 4 3 2] [--num-samples 1024]
        [--sequence-length 32] [--sentences 500] [--symmetric]
        [--also column_steps=0.5 states=64,tradeoff=0.3 ...] [--rows FILE] [--out FILE.md]

GPTQ on integers with one scale and zero point per 128 columns, scales searched for the least error, in natural order
and by activation (`--symmetric`: without zero points as well); the baseline is the best of them. The trellis gets the
bits that the largest takes, scales of 16 bits and zero points counted, as equal rates and as rates by sensitivity;
each `--also` is one more row, at equal rates unless it says otherwise. Everything else is alike: calibration,
embeddings, and the model's other tensors. The model is cast to float16 first, so that scales are of 16 bits; the
vectors of that copy are the true ones.

relative error: sum of |e' - e|^2 over sentences / sum of |e - mean e|^2, e the pooled vector. Sentences are evenly
spread over a text that calibration does not see.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, markdown
from safetensors.torch import load_file, save_file

import llmc
from llmc.eval.measures.embeddings import embed, open_encoder
from llmc.models.pooling import pooling_of

GROUP = 128
SHORT, LONG = 40, 300  # characters of a sentence
REQUIRED = {4: 0.28, 3: 0.30, 2: 0.35}
EQUAL, SENSITIVE = "trellis, equal rates", "trellis, rates by sensitivity"


@dataclass(frozen=True)
class Row:
    """A setting and what became of the vectors.

    Attributes:
        stored: bits per weight of the block matrices, everything counted.
        error: relative, of the pooled vectors.
        distance: mean of 1 - cosine.
    """

    bits: int
    label: str
    stored: float
    error: float
    distance: float
    cpu_s: float


def sentences(text: str, count: int) -> list[str]:
    """So many of a text, evenly spread."""
    found = [" ".join(each.split()) for each in re.split(r"(?<=[.!?])\s+(?=[A-Z\"])|\n\s*\n", text)]
    fit = [each for each in found if SHORT <= len(each) <= LONG]
    return [fit[int(i * len(fit) / count)] for i in range(min(count, len(fit)))]


def halved(model: Path, folder: Path) -> Path:
    """A copy of the model whose weights are float16."""
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    tensors = {name: each.half() if each.is_floating_point() else each for name, each in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def vectors(folder: Path, texts: Sequence[str], pooling: str) -> np.ndarray:
    """[texts, hidden]"""
    model, tokenizer = open_encoder(folder)
    return embed(model, tokenizer, texts, pooling=pooling).vectors


def distances(mine: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Relative error and mean of 1 - cosine of vectors [texts, hidden]."""
    error = np.square(mine - true).sum() / np.square(true - true.mean(0)).sum()
    cosine = (mine * true).sum(1) / (np.linalg.norm(mine, axis=1) * np.linalg.norm(true, axis=1))
    return float(error), float((1 - cosine).mean())


def integers(bits: int, kinds: Sequence[bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and options of the baselines, `kinds` of symmetric grids or not."""
    own = {"method": "gptq", "bits": bits, "group_size": GROUP, "formats": ("compressed-tensors",)}
    for symmetric in kinds:
        for act_order in (False, True):
            label = f"gptq g{GROUP}, {'symmetric' if symmetric else 'zero points'}{', act-order' if act_order else ''}"
            more = {"symmetric": symmetric, "act_order": act_order, "options": {"scales": "mse"}}
            yield label, {**own, **more}


def trellises(rate: float, also: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and options of the trellis at so many bits per weight."""
    own = {"method": "trellis", "bits_per_weight": rate}
    yield EQUAL, {**own, "options": {"rates": "equal"}}
    yield SENSITIVE, {**own, "options": {"rates": "sensitivity"}}
    for words in also:
        changed = dict(word.split("=", 1) for word in words.split(","))
        yield f"{EQUAL}, {words}", {**own, "options": {"rates": "equal", **changed}}


def kept(file: Path | None) -> list[Row]:
    """Rows measured before."""
    lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
    return [Row(**json.loads(line)) for line in lines]


class Bench:
    """One model, its texts, and the vectors that are true."""

    def __init__(self, given: argparse.Namespace, scratch: Path) -> None:
        self.given, self.out = given, scratch / "quantized"
        self.texts = sentences(given.text.read_text(encoding="utf-8-sig"), given.sentences)
        self.pooling = pooling_of(given.model) or "mean"
        self.model = halved(given.model, scratch / "model")
        self.true = vectors(self.model, self.texts, self.pooling)
        self.cast = distances(self.true, vectors(given.model, self.texts, self.pooling))[0]

    def row(self, bits: int, label: str, options: dict[str, Any]) -> Row:
        before = next((row for row in kept(self.given.rows) if (row.bits, row.label) == (bits, label)), None)
        if before is not None:
            return before
        shared = {"num_samples": self.given.num_samples, "sequence_length": self.given.sequence_length}
        begin = time.process_time()
        result = llmc.quantize(
            str(self.model), self.out, force=True, calibration=self.given.calibration, **shared, **options
        )
        cpu = time.process_time() - begin
        (summary,) = result.folders.values()
        error, distance = distances(vectors(self.out, self.texts, self.pooling), self.true)
        row = Row(bits, label, summary["bits_per_weight"], error, distance, round(cpu, 1))
        print(f"{bits} bits, {label}: {row.stored:.4f} bits, error {row.error:.4g}", file=sys.stderr)
        if self.given.rows is not None:
            with self.given.rows.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(row)) + "\n")
        return row

    def rows(self, bits: int) -> list[Row]:
        kinds = (False, True) if self.given.symmetric else (False,)
        rows = [self.row(bits, *setting) for setting in integers(bits, kinds)]
        rate = max(row.stored for row in rows)
        return rows + [self.row(bits, *setting) for setting in trellises(rate, self.given.also)]


def report(document: dict[str, Any], rows: Sequence[Row]) -> str:
    """Markdown: conditions, what was asked, every row."""
    settings = document["settings"]
    conditions = [
        f"{document['machine']['processor']}, {document['machine']['cores']} cores, one thread.",
        f"{settings['model']}; calibrated on {settings['num_samples']} x {settings['sequence_length']} tokens of "
        f"{settings['calibration']}, judged on {settings['sentences']} sentences of {settings['text']}.",
        f"The float16 copy that everything starts from has a relative error of {settings['cast']:.1e}.",
    ]
    parts = ["\n".join(f"- {line}" for line in conditions), _asked(rows), _everything(rows)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def baseline(rows: Sequence[Row], bits: int) -> Row:
    """The best of GPTQ's rows."""
    return min((row for row in rows if row.bits == bits and row.label.startswith("gptq")), key=lambda row: row.error)


def _asked(rows: Sequence[Row]) -> str:
    cells = []
    for bits in dict.fromkeys(row.bits for row in rows):
        best = baseline(rows, bits)
        equal, by_cost = (
            next(row for row in rows if (row.bits, row.label) == (bits, own)) for own in (EQUAL, SENSITIVE)
        )
        ratio, most = by_cost.error / best.error, REQUIRED.get(bits)
        asked = ["", ""] if most is None else [f"{most:.2f}", "yes" if ratio <= most else "no"]
        shares = f"{equal.error / best.error:.3f}", f"{ratio:.3f}"
        cells.append([str(bits), best.label, f"{best.error:.4g}", *shares, *asked])
    header = [
        "bits",
        "best of gptq",
        "its error",
        "equal rates, of that",
        "by sensitivity, of that",
        "asked",
        "reached",
    ]
    return f"## Error of the trellis in parts of GPTQ's\n\n{markdown(header, cells)}"


def _everything(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        ratio = row.error / baseline(rows, row.bits).error
        figures = f"{row.stored:.4f}", f"{row.error:.5f}", f"{ratio:.3f}", f"{row.distance:.5f}", f"{row.cpu_s:.0f}"
        cells.append([row.label, str(row.bits), *figures])
    header = ["", "bits", "stored bits", "relative error", "of the best gptq", "1 - cosine", "CPU s"]
    return f"## Every setting\n\n{markdown(header, cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 3, 2])
    parser.add_argument("--num-samples", type=int, default=1024)
    parser.add_argument("--sequence-length", type=int, default=32, help="about that of the sentences")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--symmetric", action="store_true", help="GPTQ without zero points too")
    parser.add_argument("--also", nargs="*", default=[], help="further options of the trellis, OPTION=VALUE[,...]")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--rows", type=Path, help="JSON lines of rows measured with these settings, read and added to")
    parser.add_argument("--out", type=Path, help="Markdown")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        bench = Bench(given, Path(scratch))
        rows = [row for bits in given.bits for row in bench.rows(bits)]
    settings = {key: getattr(given, key).name for key in ("model", "calibration", "text")}
    settings |= {"num_samples": given.num_samples, "sequence_length": given.sequence_length}
    settings |= {"sentences": len(bench.texts), "cast": bench.cast}
    document = {"machine": machine(), "settings": settings, "rows": [asdict(row) for row in rows]}
    page = report(document, rows)
    if given.out is not None:
        given.out.write_text(page, encoding="utf-8")
    print(json.dumps(document, indent=2) if given.json else page)


if __name__ == "__main__":
    main()
