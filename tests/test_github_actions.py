"""The workflow of docs/github-actions.yml: its steps, run as they stand but for what only GitHub has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOW = Path(__file__).parents[1] / "docs" / "github-actions.yml"
RECIPE = """
model: tiny
stages:
  - {method: rtn, bits: 4, group_size: 32}
"""
RECORD = """#!/bin/sh
echo "$(basename "$0") $*" >> "$RECORD"
"""


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]["compress"]


def steps(job: Any) -> dict[str, str]:
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step}


def environment(place: Path, gates: str) -> dict[str, str]:
    """Of a runner: programs that need a network only say that they were called."""
    programs = place / "bin"
    programs.mkdir()
    for name in ("pip", "gh"):
        (programs / name).write_text(RECORD)
        (programs / name).chmod(0o755)
    (programs / "llmc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmc "$@"\n')
    (programs / "llmc").chmod(0o755)
    (place / "recipe.yaml").write_text(RECIPE)
    own = {"MODEL": "tiny", "RECIPE": "recipe.yaml", "TEXT": "tiny:evaluation", "GATES": gates, "PULL_REQUEST": "7"}
    own |= {"LLMC_CACHE": str(place / "cache"), "RECORD": str(place / "record"), "OMP_NUM_THREADS": "1"}
    own["GITHUB_STEP_SUMMARY"] = str(place / "summary.md")
    return {**os.environ, **own, "PATH": f"{programs}:{os.environ['PATH']}"}


def run(job: Any, place: Path, gates: str) -> dict[str, int]:
    """Exit code of each step, all of them run, as `if: always()` has it for those behind a failure."""
    settings = environment(place, gates)
    codes = {}
    for name, script in steps(job).items():
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        codes[name] = subprocess.run(
            command, cwd=place, env=settings, stderr=subprocess.DEVNULL, check=False
        ).returncode
    return codes


def test_a_pull_request_gets_its_table(job: Any, tmp_path: Path) -> None:
    codes = run(job, tmp_path, "kl < 0.5\nweight_bytes < 60% * original\n")
    assert codes == dict.fromkeys(("Install", "Compress", "Compare", "Summary", "Comment"), 0)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {row["label"] for row in figures["rows"]} == {"compressed", "rtn at the bytes of compressed"}
    assert [gate["outcome"] for gate in figures["gates"]] == ["passed", "passed"]
    table = (tmp_path / "table.md").read_text()
    assert "compressed" in table and "| `kl < 0.5` | passed |" in table
    assert (tmp_path / "summary.md").read_text() == table
    assert "<svg" in (tmp_path / "report.html").read_text()
    called = (tmp_path / "record").read_text().splitlines()
    assert called[0].startswith("pip install llmc[readers,report]")
    assert called[1] == "gh pr comment 7 --edit-last --create-if-none --body-file table.md"


def test_a_failed_gate_stops_the_job_and_still_shows_its_table(job: Any, tmp_path: Path) -> None:
    codes = run(job, tmp_path, "kl < 0.000001\n")
    assert codes == {"Install": 0, "Compress": 0, "Compare": 1, "Summary": 0, "Comment": 0}
    assert "FAILED" in (tmp_path / "table.md").read_text().upper()
    assert json.loads((tmp_path / "figures.json").read_text())["gates"][0]["outcome"] == "failed"


def test_steps_behind_the_comparison_run_after_a_failed_gate(job: Any) -> None:
    names = [step.get("name") for step in job["steps"]]
    behind = job["steps"][names.index("Compare") + 1 :]
    assert behind and all("always()" in str(step["if"]) for step in behind)
