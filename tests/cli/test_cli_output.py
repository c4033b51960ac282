"""Options as text, and what reaches a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.cli.options import assignments, group_size
from llmc.cli.output import Output, finite
from llmc.errors import UsageError
from llmc.results import Table

ROOT = Path(__file__).parents[2]


@given(st.integers(1, 10**8))
def test_group_size_is_an_integer_or_channel(columns: int) -> None:
    assert group_size(str(columns)) == columns
    assert group_size("channel") == "channel"


@pytest.mark.parametrize("text", ["", "-1", "1.5", "Channel", "128x"])
def test_group_size_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        group_size(text)


@given(st.dictionaries(st.text("abc_", min_size=1), st.text()))
def test_assignments_keep_every_value(pairs: dict[str, str]) -> None:
    assert assignments([f"{name}={value}" for name, value in pairs.items()]) == pairs


def test_finite() -> None:
    value = {"a": [1.0, float("inf"), (float("nan"), "x", None, True)]}
    assert finite(value) == {"a": [1.0, None, [None, "x", None, True]]}


def test_cells_are_uncut_and_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    long = "model.layers.0." * 40
    Output().show({}, lambda: [Table("t", ("name", "n"), ((long, "[bold]\x1b[2J"),))])
    printed = capsys.readouterr().out
    assert long in printed
    assert "[bold]\\x1b[2J" in printed


def test_bars_show_label_and_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    output = Output()
    for done in range(3):
        output.progress("quantizing", done, 2)
    output.progress("writing", 1, 4)
    output.close()
    shown = screen.getvalue()
    assert "quantizing" in shown
    assert "100%" in shown
    assert "writing" in shown
    assert "left" in shown


def test_no_bars_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.progress("quantizing", 1, 2)
    output.close()
    assert capsys.readouterr() == ("", "")


def test_the_reference_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "cli_reference.py"), "--check"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "60"}
    )
    assert (done.returncode, done.stderr) == (0, "")
