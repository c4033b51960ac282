"""Comparisons: who dominates whom, against brute force; the tables; Markdown by its public reader; the schema."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import fields, replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from comparisons import HOSTILE, bare, full, hostile, many, measured
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llmc.eval.measures.metrics import WindowSums
from llmc.eval.reports.comparison import Comparison, Row, compared, schema
from llmc.eval.reports.comparison_table import TERMINAL, task_cell
from llmc.eval.reports.report import EvalReport
from llmc.eval.reports.task_report import TaskReport
from llmc.eval.tasks.tasks import METRICS
from llmc.results import code, plain, row, rule


def at(weight_bytes: int, kl: float, **changes: Any) -> EvalReport:
    return replace(measured()[1], weight_bytes=weight_bytes, kl=kl, **changes)


def by_label(comparison: Comparison) -> dict[str, Row]:
    return {row.label: row for row in comparison.rows}


POINTS = st.lists(st.tuples(st.integers(1, 6), st.sampled_from((0.0, 0.1, 0.2, 0.5))), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_dominated_rows_are_those_of_brute_force(points: list[tuple[int, float]]) -> None:
    comparison = compared(
        measured()[0], [Row(str(i), at(*point, windows=sums([1, 2]))) for i, point in enumerate(points)]
    )
    found = by_label(comparison)
    for i, (size, loss) in enumerate(points):
        better = []
        for j, (other_size, other_loss) in enumerate(points):
            if other_size <= size and other_loss <= loss and (other_size < size or other_loss < loss):
                better.append(j)
        mark = found[str(i)].dominated_by
        assert (mark is None) == (not better)
        if mark is not None:
            assert int(mark) in better
            assert points[int(mark)][1] == min(points[j][1] for j in better)
            assert found[mark].dominated_by is None or points[int(mark)][1] == min(p[1] for p in points)
        assert (found[str(i)].resolved is None) == (mark is None)
    order = [(row.report.weight_bytes, row.label) for row in comparison.rows]
    assert order == sorted(order)


def test_equal_points_and_nan_dominate_nothing() -> None:
    rows = [Row("a", at(5, 0.1)), Row("b", at(5, 0.1)), Row("c", at(1, math.nan)), Row("d", at(9, math.nan))]
    assert [row.dominated_by for row in compared(measured()[0], rows).rows] == [None] * 4


def test_marks_that_were_there_are_made_anew() -> None:
    old = Row("a", at(5, 0.1), control_of="b", dominated_by="gone", resolved=True)
    (new,) = compared(measured()[0], [old]).rows
    assert (new.control_of, new.dominated_by, new.resolved) == ("b", None, None)


def sums(kl: Any, tokens: Any = None) -> WindowSums:
    kl = np.array(kl, dtype=np.float64)
    return WindowSums(np.full(len(kl), 10.0) if tokens is None else tokens, kl, kl, kl, kl)


@pytest.mark.parametrize("seed", range(6))
def test_resolved_is_what_a_bootstrap_of_the_difference_says(seed: int) -> None:
    generator = np.random.default_rng(seed)
    better = generator.lognormal(size=30)
    worse = better + generator.normal(0.1 * seed, 1, size=30)
    differences = []
    draws = np.random.default_rng(0)  # the same draws, one by one
    for picked in draws.integers(30, size=(2000, 30)):
        differences.append(sum(worse[i] - better[i] for i in picked) / 300)
    ordered = np.quantile(differences, [0.025, 0.975])
    rows = [Row("a", at(5, 0.1, windows=sums(better))), Row("b", at(5, 0.2, windows=sums(worse)))]
    assert by_label(compared(measured()[0], rows))["b"].resolved == (ordered[0] > 0)


def test_both_outcomes_of_that_test_occur() -> None:
    steady, noisy = np.arange(1.0, 31.0), np.arange(30.0, 0.0, -1.0)
    rows = [
        Row("a", at(5, 0.1, windows=sums(steady))),
        Row("b", at(6, 0.2, windows=sums(steady * 2))),
        Row("c", at(7, 0.11, windows=sums(noisy))),
    ]
    found = by_label(compared(measured()[0], rows))
    assert (found["b"].resolved, found["c"].resolved) == (True, False)


def test_the_same_losses_in_fewer_bytes_are_resolved() -> None:
    rows = [Row("a", at(5, 0.1, windows=sums([1, 2]))), Row("b", at(6, 0.1, windows=sums([1, 2])))]
    found = by_label(compared(measured()[0], rows))["b"]
    assert (found.dominated_by, found.resolved) == ("a", True)


@pytest.mark.parametrize(
    "other", [sums([1, 2, 3]), sums([1, 2], np.array([9.0, 11.0])), WindowSums(np.ones(2), np.ones(2))]
)
def test_other_windows_cannot_be_paired(other: WindowSums) -> None:
    rows = [Row("a", at(5, 0.1, windows=sums([1, 2]))), Row("b", at(6, 0.2, windows=other))]
    assert by_label(compared(measured()[0], rows))["b"].resolved is False


def test_without_a_text_flips_decide_and_without_both_nothing() -> None:
    comparison = bare()
    assert comparison.loss == "flip_rate"
    original, light, _ = measured()
    nothing = replace(light, kl=None, flip_rate=None)
    assert compared(original, [Row("a", nothing)]).loss is None
    assert compared(original, []).loss is None
    mixed = compared(original, [Row("a", light), Row("b", replace(light, kl=None, weight_bytes=1))])
    assert mixed.loss == "flip_rate"


def test_flips_are_paired_by_item() -> None:
    original, light, _ = measured()
    few, lots = np.array([True] + [False] * 39), np.array([True] * 20 + [False] * 20)

    def flipped(items: Any) -> EvalReport:
        return at(5, 0.0, flip_rate=float(items.mean()), tasks=(replace(light.tasks[0], flipped=items),))

    reports = {"few": flipped(few), "lots": flipped(lots), "other": flipped(few[::-1] | (np.arange(40) == 7))}
    reports = {name: replace(report, kl=None) for name, report in reports.items()}
    found = by_label(compared(original, [Row(name, report) for name, report in reports.items()]))
    assert {name: row.resolved for name, row in found.items()} == {"few": None, "lots": True, "other": False}


@pytest.mark.parametrize("make", [full, hostile, bare, lambda: many(3)])
def test_json_is_as_the_schema_says(make: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    document = json.loads(json.dumps(make().to_json(), allow_nan=False))
    jsonschema.Draft202012Validator(schema()).validate(document)
    report = {"$defs": schema()["$defs"], "$ref": "#/$defs/report"}
    jsonschema.Draft202012Validator(report).validate(document["original"])


def places(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One object of each kind in the JSON of a comparison."""
    row = document["rows"][0]
    task = row["tasks"]["choice"]
    return [document, document["original"], row, task, row["worst"][0], row["samples"][0], row["tokenizer"]]


@pytest.mark.parametrize("index", range(7))
def test_the_schema_knows_every_key(index: int) -> None:
    check = jsonschema.Draft202012Validator(schema())
    whole = json.loads(json.dumps(full().to_json()))
    metrics = {f"{head}{name}" for names in METRICS.values() for name in names for head in ("", "original_")}
    for key in places(whole)[index]:
        document = copy.deepcopy(whole)
        del places(document)[index][key]
        assert check.is_valid(document) == (index == 3 and key in metrics), f"{key} may be left out"
    places(whole)[index]["unheard_of"] = 1
    assert not check.is_valid(whole)


def test_the_schema_has_the_fields_of_the_dataclasses() -> None:
    known = schema()["$defs"]
    report = {field.name for field in fields(EvalReport)} - {"windows"}
    assert set(known["fields"]["properties"]) == set(known["fields"]["required"]) == report
    task = {field.name for field in fields(TaskReport)} - {"name", "metrics", "flipped"}
    assert set(known["task"]["required"]) == task
    assert set(known["row"]["properties"]) == {field.name for field in fields(Row)} - {"report"}
    untold = [
        name
        for name, said in known["fields"]["properties"].items()
        if not ({"description", "$ref", "anyOf"} & set(said))
    ]
    assert untold == ["samples"]


@pytest.mark.parametrize("make", [full, hostile, bare, lambda: many(12)])
def test_tables_fit_a_terminal(make: Any) -> None:
    comparison = make()
    for table in comparison.tables():
        widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
        assert len(widths) == 2 or sum(width + 3 for width in widths) <= TERMINAL
        assert table.columns[0] in ("model", "task")
    first = comparison.tables()[0]
    assert len(first.rows) == len(comparison.rows) + 1
    assert first.rows[0][0].startswith("original (")


def test_cells_of_a_row() -> None:
    original, light, _ = measured()
    fixed = replace(
        light,
        weight_bytes=1_234_567,
        kl=0.012345,
        kl_p99=0.5,
        perplexity_ratio=1.02,
        top1_agreement=0.98765,
        flip_rate=0.25,
        bits_per_weight=4.125,
        intervals={"kl": (0.0119, 0.0131), "top1_agreement": (0.98, 0.99)},
        tasks=(),
    )
    other = replace(fixed, weight_bytes=2_000_000, kl=0.02, windows=sums([1, 2]))
    rows = [Row("a", fixed), Row("b", other, control_of="a"), Row("c", replace(fixed, weight_bytes=900, kl=9.0))]
    comparison = compared(replace(original, weight_bytes=2_000_000, tasks=()), rows)
    tables = comparison.tables()
    cells = {(r[0], c): cell for t in tables for r in t.rows for c, cell in zip(t.columns, r, strict=True)}
    assert cells["a", "weights"] == "1.23 MB (1,234,567)"
    assert cells["a", "share"] == "61.7%"
    assert cells["a", "KL, nats"] == "0.0123 [0.0119, 0.0131]"
    assert cells["a", "top-1 agreement"] == "98.77% [98.00, 99.00]"
    assert (cells["a", "perplexity ratio"], cells["a", "bits/weight"]) == ("1.0200", "4.1250")
    assert (cells["a", "mark"], cells["b", "mark"]) == ("", "control of a; dominated by a?")
    assert (cells["original (original)", "KL, nats"], cells["original (original)", "flip rate"]) == ("0", "0.00%")
    alone = compared(replace(original, weight_bytes=100), [Row("a", fixed)])
    assert any("no smaller than the original" in cells for table in alone.tables() for cells in table.rows)


def test_cells_of_a_task() -> None:
    task = replace(measured()[1].tasks[0], accuracy=0.5, difference=-0.1, resolved=False)
    task = replace(task, intervals={"difference": (-0.2, 0.05)})
    assert task_cell(task) == ("50.0%", "-10.0 [-20.0, +5.0] ?")
    assert task_cell(replace(task, resolved=True)) == ("50.0%", "-10.0 [-20.0, +5.0]")
    assert task_cell(replace(task, difference=0.0, intervals={"difference": (0.0, 0.0)})) == ("50.0%", "+0.0")
    assert task_cell(replace(task, difference=None)) == ("50.0%", "")
    assert task_cell(None) == ("-", "")


def test_long_names_are_cut_only_where_they_stay_different() -> None:
    original, light, _ = measured()
    names = ["a" * 40, "b" * 40, "a" * 20 + "x" + "a" * 20]
    cut = compared(original, [Row(name, light) for name in names[:2]]).tables()[0]
    whole = compared(original, [Row(name, light) for name in names]).tables()[0]
    assert all(len(cells[0]) <= 24 for cells in cut.rows)
    assert {cells[0] for cells in whole.rows} >= set(names)


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.mark.parametrize("make", [full, bare, lambda: many(2)])
def test_markdown_is_read_as_tables(make: Any) -> None:
    comparison = make()
    page = rendered(comparison.to_markdown())
    assert page.count("<table>") == len({t.title for t in comparison.tables()} - {"continued"})
    for row_ in comparison.rows:
        assert f"<code>{row_.label}</code>" in page
    if comparison.original.text is not None:
        assert "corpus.txt, " in page and "<details>" in page


def test_names_do_not_break_out_of_markdown() -> None:
    comparison = hostile()
    page = rendered(comparison.to_markdown())
    assert "<img" not in page and "<script" not in page and "</script" not in page
    assert "<strong>" not in page and "<a " not in page and "\x1b" not in page
    width = len(re.findall("<th[ >]", page[: page.index("</thead>")]))
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    assert [line.count("<td") for line in body.split("<tr>")[1:]] == [width] * 4
    report = measured()[1]
    alone = rendered(replace(report, model=HOSTILE, against=HOSTILE).to_markdown())
    assert "<img" not in alone and "<strong>" not in alone and "<a " not in alone


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet="a|`\\ *_<>[]&", max_size=9), min_size=1, max_size=3))
def test_code_in_a_table_is_read_as_itself(texts: list[str]) -> None:
    page = rendered("\n".join([row(["h"] * len(texts)), rule(len(texts)), row([code(text) for text in texts])]))
    body = page[page.index("<tbody>") :]
    assert body.count("<td") == body.count("<code>") == len(texts)
    assert "<em>" not in body and "<strong>" not in body


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab1|`\\*_<>[]()!&#@~", max_size=12))
def test_a_plain_sentence_has_no_markup(text: str) -> None:
    page = rendered(f"x {plain(text)} x")
    assert page.startswith("<p>x ") and page.count("<") == 2
