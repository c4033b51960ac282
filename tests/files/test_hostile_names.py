"""Names that strangers chose, in tables, cards and pages: shown, and nothing else."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from llmc.artifacts.card import Made, fields_of, lossless_card, model_card, with_fields
from llmc.artifacts.snippets import literal, renamed
from llmc.cli.output import Output
from llmc.errors import LlmcError
from llmc.results import Table

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
    """Of models that came in folders with this name, recipe and notes, whose config.json names such a class."""
    says = {"vllm": "yes", "sglang": "yes", "transformers": "yes"}
    config = {"model_type": "llama", "architectures": [name if name != "tame" else "LlamaForCausalLM?"]}

    def made(container: str, config: dict[str, Any]) -> Made:
        return Made(Path("nowhere"), name, {}, container, config, says)

    stages: dict[str, Any] = {"model": name, "stages": [{"method": name, "bits": 4, "group_size": 32}]}
    encoded = [model_card(made(c, config), stages, SIZES, [name]) for c in ("dense", "gptq", "llmc")]
    result = {**RESULT, "notes": [name]}
    return [*encoded, *(lossless_card(made("llmc", c), result, None, {}) for c in (config, {}))]


def calls(code: str) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_card_is_what_llmc_writes_with_the_name_in_it(name: str) -> None:
    """The same elements as with a tame name: no HTML, no links, no more headings, no more fields at its top."""
    for card, tame in zip(cards(name), cards("tame"), strict=True):
        card.encode()
        _, top, text = card.split("---\n", 2)
        fields = yaml.safe_load(top)
        assert set(fields) == {"library_name", "tags"}
        parser = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")
        tokens, expected = parser.parse(text), parser.parse(tame.split("---\n", 2)[2])
        assert [t.type for t in tokens] == [t.type for t in expected]
        inside = {inner.type for t in tokens for inner in t.children or ()}
        assert not inside & {"html_inline", "link_open", "image", "em_open", "strong_open", "s_open"}
        fences = ([t for t in each if t.type == "fence"] for each in (tokens, expected))
        for block, other in zip(*fences, strict=True):
            if block.info == "python":
                assert calls(block.content) == calls(other.content)
            if block.info == "sh":
                lines = [shlex.split(line) for line in block.content.splitlines()]
                assert [line[0] for line in lines] in (["pip"], ["vllm", "python"])


YAML_WORDS = ["null", "true", "No", "1e5", "0x1f", "12", "~", "-", "1.0", "2024-01-01"]


@pytest.mark.parametrize("name", [*YAML_WORDS, *NAMES[:-2], "user/model"])
def test_a_field_is_a_text_for_yaml(name: str) -> None:
    text = with_fields("# mine\n", {"license": name})
    assert fields_of(text) == {"license": name} and text.endswith("\n---\n# mine\n")


def test_only_an_id_of_the_hub_is_a_base_model() -> None:
    for name in (*YAML_WORDS, *NAMES, "model", "a/b/c", "user/model", "user/1.0"):
        fields = yaml.safe_load(cards(name)[0].split("---\n")[1])
        assert fields.get("base_model") == (name if name in ("user/model", "user/1.0") else None)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_snippet_with_a_name_is_still_one(name: str) -> None:
    text = renamed(cards("tame")[0], "user/x")
    assert literal("user/x") in text and ast.literal_eval(literal(name)) is not None


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
