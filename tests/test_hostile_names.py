"""Names that strangers chose, in tables, cards and pages: shown, and nothing else."""

from __future__ import annotations

import ast
import shlex
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from llmc.card import lossless_card, model_card
from llmc.cli.output import Output
from llmc.errors import LlmcError
from llmc.structure import Table

NAMES = [
    "a\n---\nlicense: mit",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![pixel](https://evil.example/p.png)",
    "https://evil.example/x",
    "@someone and #1",
    '")\nimport os; os.system("x")  # ',
    "a'; rm -rf ~; '$(reboot)`reboot`",
    "```\n# heading",
    "| a | b |\n|---|---|",
    "\u202egnp.exe",
    "\x1b[31mred\x1b]8;;https://evil.example\x07",
    "e\u0301 and \u00e9",
    "\ud800",
    "*bold* _it_ ~~no~~ \\",
]
SIZES: dict[str, Any] = {"weight_bytes": 5, "original_bytes": 20, "bits_per_weight": 4.0, "model_bits_per_weight": 6.0}
RESULT: dict[str, Any] = {"weight_bytes": 5, "original_bytes": 20, "ratio": 0.5, "bits_per_weight": 8.0, "excess": None}


def cards(name: str) -> list[str]:
    says = {"vllm": "yes", "sglang": "yes", "transformers": "yes"}
    made = [model_card(name, name, c, says, {"model": name}, SIZES, [name]) for c in ("dense", "gptq", "llmc")]
    return [
        *made,
        *(lossless_card(name, name, {**RESULT, "notes": [name]}, model, None, {}) for model in (True, False)),
    ]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_card_is_what_llmc_writes_with_the_name_in_it(name: str) -> None:
    """The same elements as with a tame name: no HTML, no links, no more headings, no more fields at its top."""
    for card, tame in zip(cards(name), cards("tame"), strict=True):
        card.encode()
        _, top, text = card.split("---\n", 2)
        fields = yaml.safe_load(top)
        assert set(fields) <= {"library_name", "base_model", "base_model_relation", "tags"}
        assert fields.get("base_model", name) == name
        parser = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")
        tokens, expected = parser.parse(text), parser.parse(tame.split("---\n", 2)[2])
        assert [t.type for t in tokens] == [t.type for t in expected]
        inside = {inner.type for t in tokens for inner in t.children or ()}
        assert not inside & {"html_inline", "link_open", "image", "em_open", "strong_open", "s_open"}
        for block in (t for t in tokens if t.type == "fence"):
            if block.info == "python":
                assert ast.dump(ast.parse(block.content)).count("Call(") == 1
            if block.info == "sh":
                assert [len(shlex.split(line)) for line in block.content.splitlines()] == [3, 5]


YAML_WORDS = ["null", "true", "No", "1e5", "0x1f", "12", "~", "-", "1.0", "2024-01-01"]


@pytest.mark.parametrize("name", [*YAML_WORDS, "user/model", "user/1.0", "m-1.0"])
def test_a_base_model_is_a_text_for_yaml_or_left_out(name: str) -> None:
    fields = yaml.safe_load(cards(name)[0].split("---\n")[1])
    assert fields.get("base_model", name) == name
    assert ("base_model" in fields) == (name not in YAML_WORDS)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_table_and_an_error_send_nothing_to_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.show({}, lambda: [Table(name, (name,), ((name,),))])
    output.note(name)
    output.error(LlmcError(name, where=name, fix=name))
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert printed.err.count("\n") == 2
