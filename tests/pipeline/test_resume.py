"""Killed at any moment, the same command again ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models
from folders import digests

COMMAND = ["--method", "gptq", "--bits", "4", "--group-size", "32", "--num-samples", "16", "--sequence-length", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny_models.build("llama", folder / "model", num_hidden_layers=6)
    tiny_models.corpus(folder)
    return folder


def command(place: Path, out: str, *more: str) -> list[str]:
    arguments = ["quantize", str(place / "model"), "-o", str(place / out / "result"), *COMMAND]
    return [sys.executable, "-m", "llmc", *arguments, "--calibration", str(place / "corpus.txt"), *more]


def units(partial: Path) -> int:
    journal = partial / "journal.jsonl"
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else -1


def kill_after(place: Path, out: str, wanted: int) -> bool:
    """Start the command and kill it once `wanted` units are journalled; False when it ended before."""
    process = subprocess.Popen(command(place, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = place / out / "result.llmc-partial"
    while process.poll() is None:
        if units(partial) >= wanted:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def test_killed_runs_resume_to_the_same_bytes(place: Path) -> None:
    subprocess.run(command(place, "whole"), check=True, capture_output=True)
    random.seed(3)
    for wanted in (0, random.randint(1, 3), random.randint(4, 6)):
        killed = kill_after(place, "cut", wanted)
        assert not killed or not (place / "cut" / "result").exists()
    resumed = subprocess.run(command(place, "cut"), check=True, capture_output=True, text=True)
    assert digests(place / "cut") == digests(place / "whole"), resumed.stderr
    assert not (place / "cut" / "result.llmc-partial").exists()


def test_thread_count_does_not_change_the_bytes(place: Path) -> None:
    for threads in ("1", "2", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        subprocess.run(command(place, f"t{threads}"), check=True, capture_output=True, env=environment)
    assert digests(place / "t1") == digests(place / "t2") == digests(place / "t3")


def test_a_changed_resume_is_refused(place: Path) -> None:
    assert kill_after(place, "changed", 1)
    other = command(place, "changed", "--seed", "5", "--json")
    refused = subprocess.run(other, capture_output=True, text=True)
    assert refused.returncode == 2
    error = json.loads(refused.stdout)["error"]
    assert error["message"] == "an unfinished run with another data and recipe lies in result.llmc-partial"
    assert error["fix"] == "add --fresh to discard it"
    subprocess.run([*other, "--fresh"], check=True, capture_output=True)
    assert (place / "changed" / "result" / "llmc.json").is_file()
