"""The wheel as strangers get it: built, installed by its name from an index into an empty environment, and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_hub import LocalHub
from test_github_actions import WORKFLOW
from test_github_actions import run as run_workflow

from llmc.distribution import NAME

ROOT = Path(__file__).parents[1]
CODER = ("test_rans.py", "test_rans_golden.py", "test_planes.py", "test_coded_tensor.py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Installed:
    """An environment with nothing but llmc and what it depends on."""

    place: Path
    settings: dict[str, str]

    def run(self, *command: str | Path, cwd: Path | None = None, **settings: str) -> str:
        """What a command of the environment prints. Fails with its errors unless it ends with 0."""
        done = subprocess.run(
            [self.place / "bin" / command[0], *command[1:]],
            cwd=cwd or self.place,
            env={**self.settings, **settings},
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    place = tmp_path_factory.mktemp("installed")
    wheels = place / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", wheels, ROOT]
    subprocess.run(build, check=True)
    (wheel,) = wheels.iterdir()
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")
    subprocess.run([sys.executable, "-m", "venv", place / "env"], check=True)
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {wheels}".strip()
    ours = {"PIP_FIND_LINKS": links, "PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "OMP_NUM_THREADS": "1"}
    path = f"{place / 'env' / 'bin'}:{os.environ['PATH']}"
    rest = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    made = Installed(place / "env", {**rest, **ours, "PATH": path, "HF_HOME": str(place / "hf")})
    began = time.monotonic()
    made.run("python", "-m", "pip", "install", "-qq", NAME)
    print(f"installed in {time.monotonic() - began:.0f} s")
    yield made
    shutil.rmtree(place)  # a gigabyte


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub(tokens={"secret"}) as server:
        yield server


def there(hub: LocalHub) -> dict[str, Any]:
    """Settings of who may write to a Hub that has no xet."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "HF_HUB_DISABLE_XET": "1"}


def test_a_plain_install_runs_the_first_examples(installed: Installed, hub: LocalHub, tmp_path: Path) -> None:
    out = tmp_path / "demo-out"
    printed = installed.run("llmc", "run", "quickstart", "-o", out)
    assert printed.count("passed") == 4, printed
    figures = json.loads(installed.run("llmc", "eval", out, "--against", "tiny", "--text", "tiny:evaluation", "--json"))
    assert 0 < figures["kl"] < 0.003
    installed.run("llmc", "quantize", "tiny", "-o", tmp_path / "w8", "--bits", "8", "--group-size", "32")
    compare = ["compare", out, tmp_path / "w8", "--against", "tiny", "--text", "tiny:evaluation", "--json"]
    rows = json.loads(installed.run("llmc", *compare))["rows"]
    assert {row["label"] for row in rows} == {"demo-out", "w8"}
    installed.run("llmc", "push", out, "user/tiny-w4", **there(hub))
    assert "model.safetensors" in hub.repos["user/tiny-w4"].commits[-1].files


def test_what_is_missing_is_named_with_its_extra(installed: Installed, tmp_path: Path) -> None:
    compare = ["compare", "tiny", "--against", "tiny", "--text", "tiny:evaluation", "--report", tmp_path / "r.html"]
    llmc = installed.place / "bin" / "llmc"
    done = subprocess.run([llmc, *compare], env=installed.settings, text=True, capture_output=True, check=False)
    line = f"error: --report: plots need matplotlib; pip install '{NAME}[report]'\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_the_workflow_runs_as_it_stands(installed: Installed, tmp_path: Path) -> None:
    """pip and llmc are the real ones: nothing but GitHub's own `gh` is a stand-in."""
    job: Any = yaml.safe_load(WORKFLOW.read_text())["jobs"]["compress"]
    codes = run_workflow(job, tmp_path, "kl < 0.5\n", **installed.settings)
    assert codes == dict.fromkeys(("Install", "Compress", "Compare", "Summary", "Comment"), 0)
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_the_wheel_holds_all_that_belongs_to_it(installed: Installed) -> None:
    """The extension, the recipes and data files are the wheel's own, not the checkout's; the coder's tests pass."""
    script = (
        "import llmc, llmc._native as native; from pathlib import Path; place = Path(llmc.__file__).parent; "
        "assert 'env' in place.parts and Path(native.__file__).parent == place, (place, native.__file__); "
        "print(*llmc.recipe_names(), *(p.name for p in (place / 'eval' / 'reports').iterdir()))"
    )
    printed = installed.run("python", "-I", "-c", script).split()
    assert {"quickstart", "comparison.schema.json", "report.css", "report.html.jinja"} <= {*printed}
    installed.run("python", "-m", "pip", "install", "-qq", "pytest", "pytest-timeout", "hypothesis")
    options = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-o", f"pythonpath={ROOT / 'tests'}"]
    installed.run("python", "-m", "pytest", *options, *(ROOT / "tests" / "encodings" / name for name in CODER))
