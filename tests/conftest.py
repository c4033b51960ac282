"""For all tests: nothing is kept outside their own folders, and Ctrl-C reaches the programs that they start."""

from __future__ import annotations

import os
import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would theirs


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Evaluations of the command line keep what originals show in a folder of this run."""
    os.environ["LLMC_CACHE"] = str(tmp_path_factory.mktemp("cache"))
