"""The workflow of docs/github-actions.yml: its steps, run as they stand but for what only GitHub has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
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


def environment(place: Path, gates: str, programs: dict[str, str]) -> dict[str, str]:
    """Of a runner, where these programs (name -> script) come before all others."""
    folder = place / "bin"
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (place / "recipe.yaml").write_text(RECIPE)
    own = {"MODEL": "tiny", "RECIPE": "recipe.yaml", "TEXT": "tiny:evaluation", "GATES": gates, "PULL_REQUEST": "7"}
    own |= {"LLMC_CACHE": str(place / "cache"), "RECORD": str(place / "record"), "OMP_NUM_THREADS": "1"}
    own["GITHUB_STEP_SUMMARY"] = str(place / "summary.md")
    return {**os.environ, **own, "PATH": f"{folder}:{os.environ['PATH']}"}


def run(job: Any, place: Path, gates: str, **settings: str) -> dict[str, int]:
    """Exit code of each step, all of them run, as `if: always()` has it for those behind a failure.

    Without `settings` no network is needed: pip only says that it was called. `gh` is always so, for want of GitHub.
    """
    own = {} if settings else {"pip": RECORD, "llmc": f'#!/bin/sh\nexec "{sys.executable}" -m llmc "$@"\n'}
    variables = environment(place, gates, {"gh": RECORD, **own})
    variables |= {**settings, "PATH": f"{place / 'bin'}:{settings['PATH']}"} if settings else {}
    codes = {}
    for name, script in steps(job).items():
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        codes[name] = subprocess.run(
            command, cwd=place, env=variables, stderr=subprocess.DEVNULL, check=False
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
    assert called[0].startswith("pip install llmc-compression[readers,report]")
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


def test_wheels_are_built_for_every_machine_that_the_project_names() -> None:
    workflow = yaml.safe_load((WORKFLOW.parents[1] / ".github/workflows/wheels.yml").read_text())
    built = workflow["jobs"]["wheels"]["strategy"]["matrix"]["runner"]
    architectures = {"ubuntu-24.04": "x86_64", "ubuntu-24.04-arm": "aarch64", "macos-14": "arm64"}
    settings = tomllib.loads((WORKFLOW.parents[1] / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    named = [*settings["linux"]["archs"], *settings["macos"]["archs"]]
    assert [architectures[runner] for runner in built] == named
    files = [path for word in settings["test-command"].split() if "/tests/" in word for path in [word]]
    assert files and all((WORKFLOW.parents[1] / path.partition("}/")[2]).is_file() for path in files)
