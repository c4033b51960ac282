"""Progress, quiet, verbose and log; tables at 80 columns."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

import llmc
from llmc.cli import execute
from llmc.cli.output import Output
from llmc.cli.progress import Lines, progress_line
from llmc.cli.tables import column_widths, drawn
from llmc.results import Table

WORDS = st.lists(st.text(alphabet="abc.-_", min_size=1, max_size=18), min_size=0, max_size=5).map(" ".join)


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (("quantize", 0, 10, 3.0), "quantize: begun, 3 s so far"),
        (("quantize", 5, 0, 3.0), "quantize: begun, 3 s so far"),
        (("quantize", 1, 4, 60.0), "quantize: 25%, 60 s so far, about 3 min left"),
        (("quantize", 4, 4, 60.0), "quantize: 100%, 60 s so far, about 0 s left"),
    ],
)
def test_a_line_of_progress(step: tuple[str, float, float, float], line: str) -> None:
    assert progress_line(*step) == line


def test_lines_come_soon_then_every_ten_seconds_then_every_minute() -> None:
    told: list[str] = []
    now = [100.0]
    lines = Lines(told.append, clock=lambda: now[0])
    at = []
    try:
        for second in range(0, 301):
            now[0] = 100.0 + second
            lines("quantize", second, 300)
            if len(told) > len(at):
                at.append(second)
    finally:
        lines.close()
    assert at == [1, 11, 21, 31, 41, 51, 61, 121, 181, 241]
    assert told[1] == "quantize: 4%, 11 s so far, about 4.8 min left"


def test_a_long_step_is_told_of_too() -> None:
    """Lines come from a thread of their own: nobody has to call."""
    told, heard = [], threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        heard.set()

    now = [0.0]
    lines = Lines(tell, clock=lambda: now[0])
    lines("quantize", 1, 100)
    now[0] = 30.0
    assert heard.wait(10)
    lines.close()
    assert told == ["quantize: 1%, 30 s so far, about 50 min left"]
    assert lines._thread is None


def test_verbose_tells_every_second() -> None:
    told: list[str] = []
    now = [0.0]
    lines = Lines(told.append, verbose=True, clock=lambda: now[0])
    for tenth in range(0, 41):
        now[0] = tenth / 10
        lines("decode", tenth, 100)
    lines.close()
    assert len(told) == 4


@pytest.fixture
def model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    made = tiny_models.build("llama", tmp_path / "model")
    capsys.readouterr()
    return made


def test_quiet_and_log(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, log = tmp_path / "out", tmp_path / "run.log"
    quantize = ["quantize", str(model), "--group-size", "32", "--log", str(log)]
    assert execute([*quantize, "-o", str(out), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d note: no --calibration: .*\n", log.read_text())
    assert execute([*quantize, "-o", str(out)]) == 2
    notes = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in log.read_text().splitlines()[1:]] == notes
    assert notes[-1].startswith("error: ")


def test_a_log_that_cannot_be_written_is_refused_before_the_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize = ["quantize", str(model), "-o", str(tmp_path / "out"), "--group-size", "32"]
    assert execute([*quantize, "--log", str(tmp_path / "no" / "x.log")]) == 2
    where = f"--log {tmp_path}/no/x.log"
    line = f"error: {where}: cannot be written: No such file or directory; name a file in a folder that is there\n"
    assert capsys.readouterr().err == line
    assert execute([*quantize, "--quiet", "--verbose"]) == 2
    assert capsys.readouterr().err == "error: --verbose: it contradicts --quiet; leave one of them out\n"
    assert not (tmp_path / "out").exists()


def test_verbose_says_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["inspect", "./nothing", "-v"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.endswith(
        "error: ./nothing: no such folder; give a model folder or a Hub id like user/name\n"
    )


def test_progress_is_lines_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    output = Output()
    monkeypatch.setattr("llmc.cli.progress.FIRST", 0.0)
    monkeypatch.setattr(output, "_tell_line", told.append)
    output.progress("quantize", 1, 2)
    output.progress("quantize", 2, 2)
    output.end()
    assert len(told) == 1 and told[0].startswith("quantize: 50%")
    output.configure(quiet=True)
    output.progress("quantize", 1, 2)
    output.end()
    assert len(told) == 1


# Tables


def words(table: Table) -> list[str]:
    """Of the cells: where rows are paragraphs, so are the columns that have something in them."""
    return [word for row in table.rows for cell in row for word in cell.split()]


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(WORDS, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_no_word_is_cut(rows: list[list[str]]) -> None:
    table = Table("t", tuple(rows[0]), tuple(map(tuple, rows[1:])))
    text = drawn(table, 60, False)
    assert all(word in text for word in words(table) if len(word) < 50)
    widths = column_widths(rows, 60)
    if widths is not None:
        assert max(map(len, text.splitlines())) <= 60


def test_a_table_that_is_too_wide_is_written_row_by_row() -> None:
    name = "model.layers.0.self_attn.q_proj.and.more"
    table = Table("Matrices", ("matrix", "encoding", "note"), ((name, name, ""), ("b", "c", "d")))
    assert drawn(table, 60, False) == (
        f"Matrices\n\n  {name}\n    encoding: {name}\n\n  b\n    encoding: c\n    note: d\n"
    )
    assert drawn(table, None, False).count(name) == 2 and "─" in drawn(table, None, False)


def test_tables_of_every_verb_fit_80_columns(model: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", str(tiny_models.corpus(tmp_path))
    options: dict[str, Any] = {"group_size": 32, "num_samples": 8, "sequence_length": 32, "calibration": text}
    results: list[Any] = [
        llmc.plan(str(model), **options),
        llmc.quantize(str(model), out, **options, check=True),
        llmc.lossless(model, tmp_path / "coded"),
        llmc.inspect(out),
        llmc.verify(out, against=model),
        llmc.evaluate(out, against=model, text=text, context=64, max_tokens=500),
        llmc.compare([out, tmp_path / "coded"], against=model, text=text, context=64, max_tokens=500),
        llmc.export(out, tmp_path / "dense", format="dense"),
        llmc.push(out, "user/name", dry_run=True),
        llmc.card(out),
    ]
    place = re.escape(str(tmp_path))
    for result in results:
        for table in result.tables():
            lines = drawn(table, 80, False).splitlines()
            long = [line for line in lines if len(line) > 80 and not re.search(place, line)]
            assert all(len(line.split()) == 1 or ": " in line for line in long), long
            assert all(word in "\n".join(lines) for word in words(table) if len(word) < 70), table.title
