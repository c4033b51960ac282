"""What a command costs: wall time, CPU time and peak memory of a process of its own, as the kernel counts them."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

KNOBS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Usage:
    """Cost of one process and the children it waited for.

    Attributes:
        code: exit status, negative for a signal.
        wall_s, cpu_s: seconds; `cpu_s` is user and system time of all threads.
        peak_rss_mb: 10**6 bytes. Never less than the memory of the process that measures, see `measured`.
        last_line: of what it printed; says what failed when something did.
    """

    code: int
    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    last_line: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measured(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command and wait for it; what it prints goes to `log`.

    The kernel starts a child's peak at the size of its parent, so whoever calls this must have imported nothing big.
    """
    with log.open("wb") as out:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
    peak = used.ru_maxrss * 1024 / 1e6
    return Usage(process.returncode, wall, used.ru_utime + used.ru_stime, peak, lines[-1] if lines else "")


def best_times(runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of the best round of each; they run in turn, so that a busy machine harms all alike."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for place, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            best[place] = min(best[place], time.perf_counter() - begin)
    return best


def own_peak_mb() -> float:
    """Peak memory of this process: what `measured` cannot see below, 10**6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def threads_environment(threads: int | None) -> dict[str, str]:
    """The environment of this process, with the number of threads of numerical libraries set."""
    return {**os.environ, **({} if threads is None else dict.fromkeys(KNOBS, str(threads)))}


def machine() -> dict[str, object]:
    """The processor, its cores, and how busy it is: half of what is measured depends on that."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    load = [round(x, 2) for x in os.getloadavg()]
    return {"processor": names[0] if names else "unknown", "cores": os.cpu_count(), "load": load}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column holds words, the others numbers."""
    ruler = ["---"] + ["---:"] * (len(columns) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ruler, *rows)]
    return "\n".join(lines) + "\n"
