"""`compare`: several models beside their original, with controls and gates; and evaluations held against gates."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import GateError, UsageError
from llmc.eval.evaluation import beside, evaluate
from llmc.eval.gates import GateResult, check_gate, check_gates, check_measured, gates_failure, gates_table, task_name
from llmc.eval.measures.sizes import folder_sizes
from llmc.eval.reports.comparison import Comparison
from llmc.eval.reports.report import EvalReport
from llmc.eval.subject import folder_of
from llmc.pipeline.controls import Controls
from llmc.public import public
from llmc.results import Progress, Table


@dataclass(frozen=True)
class Judged:
    """An evaluation or a comparison, and what became of its gates.

    Attributes:
        report: what was measured.
        gates: their outcomes, of every model but the controls.
        where: what a failure is called by.
    """

    report: EvalReport | Comparison
    gates: tuple[GateResult, ...]
    where: str

    @property
    def failure(self) -> GateError | None:
        """The error that failed gates amount to."""
        return gates_failure(self.gates, self.where)

    def to_json(self) -> dict[str, Any]:
        """The report, and `gates` where there are any."""
        document = self.report.to_json()
        return {**document, "gates": [gate.to_json() for gate in self.gates]} if self.gates else document

    def tables(self) -> list[Table]:
        return [*self.report.tables(), *([gates_table(self.gates)] if self.gates else [])]


def judged(report: EvalReport, gates: Sequence[str] = (), *, allow_unresolved: bool = False, where: str = "") -> Judged:
    """An evaluation held against gates; one that failed does not raise: it is the result's `failure`.

    Args:
        gates: as in a recipe: see `llmc.eval.gates`.
        allow_unresolved: let gates pass that the intervals of their figures do not decide.
        where: what a failure is called by.
    """
    return Judged(report, tuple(check_gates(gates, report.to_json(), allow_unresolved=allow_unresolved)), where)


@public(evaluate, but=["opener"])
def compare(
    folders: Sequence[str | Path],
    *,
    against: str | Path,
    control: bool = False,
    gates: Sequence[str] = (),
    allow_unresolved: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Judged:
    """Several models beside their original on the same tokens and items, one in memory at a time.

    Args:
        folders: model folders or Hub ids, also such as other tools wrote.
        against: the original.
        control: put beside each of them what plain rounding makes of the original in the same bytes.
        gates: held against each model that is no control.
        allow_unresolved: let gates pass that the intervals of their figures do not decide.
        options: of `llmc.evaluate`.

    A failed gate does not raise: it is the result's `failure`.

    Raises:
        InputError: of any kind, one line; UnsupportedError where no control is small enough.
        NetworkError: a Hub id that cannot be fetched.
    """
    check_before(gates, options)
    if not folders:
        raise UsageError("no model to compare", fix="llmc compare A B --against MODEL")
    with tempfile.TemporaryDirectory(prefix="llmc-controls-") as place:
        controls = _controls(folders, against, Path(place), progress) if control else {}
        every = [*folders, *controls]
        report = beside(every, against=against, controls=controls, progress=progress, **options)
    found: list[GateResult] = []
    for row in report.rows:
        if row.control_of is None:
            figures = row.report.to_json()
            found += check_gates(gates, figures, allow_unresolved=allow_unresolved, model=row.label)
    return Judged(report, tuple(found), "compare")


def _controls(
    folders: Sequence[str | Path], against: str | Path, place: Path, progress: Progress | None
) -> dict[str, str]:
    """Folder of a control -> the model whose size it has. Each is called after that and its bytes."""
    made: dict[str, str] = {}
    controls = Controls(folder_of(against, progress))
    for i, folder in enumerate(folders):
        local = folder_of(folder, progress)
        out = place / str(i) / f"rtn at the bytes of {local.resolve().name}"
        controls.write(folder_sizes(local).weight_bytes, out, progress)
        made[str(out)] = str(folder)
    return made


def check_before(gates: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse, before the work, gates that cannot be read, or are on what `options` of `llmc.evaluate` do not measure.

    Raises RecipeError.
    """
    tasks = [task_name(task) for task in options.get("tasks", ())]
    for gate in gates:
        check_gate(gate)
        check_measured(gate, on_text=options.get("text") is not None, tasks=tasks)
