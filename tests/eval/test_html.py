"""The page: balanced, closed to the outside, and holding every figure, whatever names and texts it is given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from colours import contrast
from comparisons import HOSTILE, bare, full, hostile, many, measured

import llmc
from llmc.errors import printable
from llmc.eval.gates import GateResult
from llmc.eval.reports.comparison import Comparison, Row, compared
from llmc.eval.reports.comparison_table import COLUMNS
from llmc.eval.reports.html import to_html

VOID = {"meta", "br", "img", "link", "input", "hr"}

MAKERS: dict[str, Callable[[], Comparison]] = {
    "full": full,
    "hostile": hostile,
    "bare": bare,
    "many": lambda: many(9),
    "none": lambda: compared(measured()[0], []),
    "one": lambda: compared(measured()[0], [Row("one", measured()[1])]),
}


class Page(HTMLParser):
    """What a browser would see: tags in order, attributes, and text by the tags around it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> outside of SVG"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def visible(self) -> str:
        hidden = {"script", "style", "title", "desc"}
        return " ".join(" ".join(text for tags, text in self.texts if not hidden & set(tags)).split())


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest) -> tuple[Comparison, str, Page]:
    comparison = MAKERS[request.param]()
    text = to_html(comparison, title=HOSTILE if request.param == "hostile" else "A title")
    return comparison, text, Page(text)


def test_tags_are_balanced_and_headed(made: tuple[Comparison, str, Page]) -> None:
    _, text, page = made
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">') and page.open == []
    assert [len(page.all(tag)) for tag in ("html", "head", "body", "main", "h1", "style")] == [1] * 6, (
        "also no style in an SVG"
    )
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(page.all("caption")) == len(page.all("table")) == len(page.all("thead")) >= 1
    assert all(attributes["scope"] in ("row", "col") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    assert all(row.count("<th ") == 1 or "<td" not in row for row in rows)


def test_the_style_sheet_knows_every_class(made: tuple[Comparison, str, Page]) -> None:
    _, text, _ = made
    drawn = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    used = {name for tag in Page(drawn).tags for name in tag[1].get("class", "").split()}
    known = set(re.findall(r"\.([a-z]+)(?![0-9\w])", text.partition("<style>")[2].partition("</style>")[0]))
    assert {"box", "cards", "name"} <= used <= known, used - known


def test_nothing_is_fetched_and_nothing_runs(made: tuple[Comparison, str, Page]) -> None:
    _, _, page = made
    policy = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert {script["type"] for script in page.all("script")} == {"application/json"}
    assert not {"img", "link", "iframe", "object", "embed", "form", "base", "a"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert all(value.startswith("#") for name, value in attributes.items() if name.endswith("href"))
    style = "".join(text for tags, text in page.texts if tags[-1:] == ("style",))
    assert "@import" not in style and "url(" not in style


def test_the_data_are_in_it(made: tuple[Comparison, str, Page]) -> None:
    comparison, text, page = made
    blocks = [found for tags, found in page.texts if tags[-1:] == ("script",)]
    assert json.loads("".join(blocks)) == json.loads(json.dumps(comparison.to_json()))
    assert text.count("</script>") == 1


def test_every_figure_is_shown(made: tuple[Comparison, str, Page]) -> None:
    comparison, _, page = made
    seen = page.visible()
    for row in comparison.rows:
        report = row.report
        for column in COLUMNS:
            value = getattr(report, column.key)
            if value is not None and not column.share and (value or column.key != "overhead_bits_per_weight"):
                assert column.form(value) in seen
        for task in report.tasks:
            assert f"{task.accuracy:.1%}" in seen and f"{100 * (task.difference or 0):+.1f}" in seen
        for error in report.layer_error.values():
            assert f"{error:.3g}" in seen
        for found in report.matrix_error.values():
            assert "output_error" not in found or f"{found['output_error']:.3g}" in seen
            assert "snr_db" not in found or f"{found['snr_db']:.1f} dB" in seen
        for place in report.worst:
            assert f"{place['kl']:.3g}" in seen and f"{place['first']:,} to {place['end'] - 1:,}" in seen
        for edges in report.intervals.values():
            assert all(any(column.form(edge).rstrip("%") in seen for column in COLUMNS) for edge in edges)
    assert comparison.original.tokenizer.sha256 is None or comparison.original.tokenizer.sha256 in seen
    assert f"llmc {llmc.__version__}" in seen


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    page = Page(to_html(hostile(), title=HOSTILE, gates=[GateResult(HOSTILE, False, 1.0, 2.0)]))
    shown = printable(HOSTILE)
    assert shown in [text.strip() for tags, text in page.texts if tags[-1:] == ("h1",)]
    assert page.visible().count(shown) > 10
    assert not [text for _, text in page.texts if "\x1b" in text or "\u202e" in text]


def test_gates_are_told_in_words() -> None:
    gates = [
        GateResult("kl < 0.02", True, 0.0121, 0.02, (0.0118, 0.0125), "passed"),
        GateResult("flip_rate < 1%", False, 0.012, 0.01, (0.001, 0.02), "unresolved"),
        GateResult("weight_bytes <= 30% * original", False, 5370744, 4409037.6, None, "failed"),
        GateResult("perplexity < 9", False, None, 9.0),
    ]
    text = to_html(full(), title="t", gates=[*gates[:-1], replace(gates[-1], model="model <x>")])
    assert '<br><span class="interval">model &lt;x&gt;</span></th>' in text
    seen = Page(to_html(full(), title="t", gates=gates)).visible()
    assert "Gates: 1 passed, 2 failed, 1 unresolved." in seen
    for part in ("kl < 0.02 passed 0.0121 [0.0118, 0.0125] 0.02", "unresolved: the interval holds the limit 0.012"):
        assert part in seen
    assert "weight_bytes <= 30% * original failed 5,370,744 4,409,038" in seen
    assert "perplexity < 9 failed not measured 9" in seen
    document = re.search(r'<script type="application/json" id="gates">(.*?)</script>', text)
    assert document and json.loads(document[1])[0]["outcome"] == "passed"
    assert "Gates" not in Page(to_html(full(), title="t")).visible()


def test_parts_without_figures_are_left_out() -> None:
    every = {"Size and loss", "Plots", "Tasks", "Speed", "Notes", "How to read it", "How it was measured"}

    def headings(comparison: Comparison) -> set[str]:
        page = Page(to_html(comparison, title="t"))
        return {text for tags, text in page.texts if tags[-1:] == ("h2",)}

    assert headings(full()) == every
    assert headings(bare()) == every - {"Notes", "Speed"}
    assert headings(many(2)) == every - {"Notes", "Speed"}


def test_marks_are_words_too() -> None:
    seen = Page(to_html(full(), title="t")).visible()
    assert re.search(r"worse control of large; dominated by large\??", seen)
    assert "Smallest: small. Least KL divergence: large." in seen


def test_the_same_page_each_time() -> None:
    assert to_html(full(), title="t") == to_html(full(), title="t")


def test_text_is_readable_in_both_themes() -> None:
    style = to_html(compared(measured()[0], []), title="t").partition("<style>")[2].partition("</style>")[0]
    light, _, dark = style.partition("prefers-color-scheme: dark")
    for sheet in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", sheet.partition("* {")[0]))
        assert set(colours) >= {"page", "shade", "ink", "quiet", "link", "good", "bad", "open", "model-0", "model-6"}
        for name in ("ink", "quiet", "link", "good", "bad", "open"):
            assert contrast(colours[name], colours["page"]) >= 4.5, name
        assert contrast(colours["ink"], colours["shade"]) >= 7
