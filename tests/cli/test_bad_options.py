"""Options that cannot be: one exact line, exit code 2 (4 for memory), nothing left behind."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from spoiled import Command, partial

RTN = ("--method", "rtn", "--group-size", "32")
GPTQ = ("--method", "gptq", "--group-size", "32", "--num-samples", "2", "--sequence-length", "32", "--calibration")
ANOTHER = "choose another -o"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a text."""
    folder = tmp_path_factory.mktemp("options")
    tiny_models.build("llama", folder / "model")
    tiny_models.corpus(folder)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refused(command: Command, line: str, model: Path, out: Path, *words: str | Path, code: int = 2) -> None:
    """`quantize` ends with exactly `line` on stderr, and leaves nothing."""
    outcome = command("quantize", model, "-o", out, *words, "--json")
    assert (outcome.code, outcome.line) == (code, f"error: {line}")
    assert outcome.error["message"] in line
    assert not out.exists()
    assert not partial(out).exists()


# Where to write


def snapshot(folder: Path) -> dict[str, str]:
    """Path -> digest, or what else is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        regular = path.is_file() and not path.is_symlink()
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else str(path.lstat().st_mode)
    return found


OUTPUTS: list[tuple[str, str, bool]] = [
    ("old", "old: the output folder exists; add --force to replace it", False),
    ("notes", "notes: it holds what no model does: kept.txt; move that away, or choose another -o", True),
    (
        "home",
        "home: it holds what no model does: .git/HEAD, Documents/a.txt, Documents/b.txt and 2 more; "
        "move that away, or choose another -o",
        True,
    ),
    ("model", f"model: the output is the input or lies inside it; {ANOTHER}", True),
    ("model/out", f"out: the output is the input or lies inside it; {ANOTHER}", True),
    ("link-to-model/out", f"out: the output is the input or lies inside it; {ANOTHER}", True),
    ("model/../model", f"model: the output is the input or lies inside it; {ANOTHER}", True),
    (".", f"{{}}: the input lies inside the output; {ANOTHER}", True),
    ("\udcff", f"\\udcff: its name is not UTF-8; {ANOTHER}", True),
    ("n" * 250, f"{'n' * 60}: its name is too long, or no name; {ANOTHER}", True),
    ("file", f"file: the output path exists and is not a folder; {ANOTHER}", True),
    ("file/out", f"out: file is not a folder; {ANOTHER}", True),
    ("link", f"link: the output path exists and is not a folder; {ANOTHER}", True),
    ("dangling", f"dangling: the output path exists and is not a folder; {ANOTHER}", True),
    ("fifo", f"fifo: the output path exists and is not a folder; {ANOTHER}", True),
]


@pytest.mark.parametrize(("where", "line", "forced"), OUTPUTS, ids=[o[0] for o in OUTPUTS])
def test_outputs(command: Command, place: Path, tmp_path: Path, where: str, line: str, forced: bool) -> None:
    """All of them are refused even with --force, but the one that only needs it."""
    model = shutil.copytree(place / "model", tmp_path / "model")
    old = shutil.copytree(place / "model", tmp_path / "old")
    notes = shutil.copytree(old, tmp_path / "notes")
    (notes / "kept.txt").write_text("mine")
    for name in (".git/HEAD", "Documents/a.txt", "Documents/b.txt", "c.txt", "link"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    (tmp_path / "link-to-model").symlink_to(model)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    before = snapshot(tmp_path)
    for force in ((), ("--force",))[: 1 + forced]:
        outcome = command("quantize", model, "-o", f"{tmp_path}/{where}", *RTN, *force, "--json")
        assert (outcome.code, outcome.line) == (2, f"error: {line.format(tmp_path.name)}")
        assert outcome.error["kind"] == "output"
        assert snapshot(tmp_path) == before


def test_an_empty_folder_is_no_obstacle_and_force_replaces(command: Command, place: Path, out: Path) -> None:
    out.mkdir()
    assert command("quantize", place / "model", "-o", out, *RTN, "--format", "dense").code == 0
    before = snapshot(out)
    assert command("quantize", place / "model", "-o", out, *RTN, "--force").code == 0
    assert snapshot(out).keys() != before.keys()
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_export_has_the_same_rules(command: Command, place: Path, out: Path) -> None:
    source = out.parent / "source"
    assert command("quantize", place / "model", "-o", source, *RTN).code == 0
    before = snapshot(source)
    inside = f"error: source: the output is the input or lies inside it; {ANOTHER}"
    assert command("export", source, "--format", "dense", "-o", source, "--force").line == inside
    assert snapshot(source) == before
    outcome = command("export", place / "model", "--format", "dense", "-o", out)
    line = "error: model: no encoded matrix in it; export starts from a quantized folder"
    assert (outcome.code, outcome.line) == (2, line)
    assert not out.exists()


# Which matrices, which groups


CHOICES = (
    "choose one of: model.embed_tokens, model.layers.0.mlp.down_proj, model.layers.0.mlp.gate_proj, "
    "model.layers.0.mlp.up_proj, model.layers.0.self_attn.k_proj, model.layers.0.self_attn.o_proj, "
    "model.layers.0.self_attn.q_proj, model.layers.0.self_attn.v_proj"
)
FITS = "use --group-size 64 or --group-size 32 or --group-size channel"
OPTIONS: list[tuple[str, str]] = [
    ("--targets *.qproj", f"stage rtn: no matrix is named '*.qproj'; {CHOICES}"),
    ("--ignore lm_heads", f"stage rtn: no matrix is named 'lm_heads'; {CHOICES}"),
    ("--ignore *", "model: no matrix of the model is targeted; widen --targets or drop --ignore"),
    (
        "--group-size 48",
        f"model.layers.0.mlp.down_proj: group_size 48 does not divide the 128 input columns; {FITS}",
    ),
    (
        "--group-size 128",
        f"model.layers.0.mlp.gate_proj: group_size 128 does not divide the 64 input columns; {FITS}",
    ),
    (
        "--format gptq --asymmetric --group-size 32",
        "format gptq: gptq v1 cannot store asymmetric zero points; "
        "drop --asymmetric or use --format compressed-tensors",
    ),
    (
        "--format gptq --bits 5 --group-size 32",
        "format gptq: gptq takes bits 2, 3, 4 or 8, not 5; use --format compressed-tensors",
    ),
    (
        "--format bitsandbytes --group-size 32",
        "format bitsandbytes: bitsandbytes cannot hold model.layers.0.mlp.down_proj on grid IntGrid; "
        "it holds Nf4Grid only; add -O grid=nf4 --group-size 64",
    ),
    (
        "--format gguf",
        "--format: formats: unknown value 'gguf'; choose one of: compressed-tensors, gptq, bitsandbytes, llmc, dense",
    ),
    (
        "--format dense --format dense --group-size 32",
        "--format: a format is given twice; choose from: compressed-tensors, gptq, bitsandbytes, llmc, dense",
    ),
]


@pytest.mark.parametrize(("words", "line"), OPTIONS, ids=[o[0] for o in OPTIONS])
def test_options(command: Command, place: Path, out: Path, words: str, line: str) -> None:
    refused(command, line, place / "model", out, "--method", "rtn", *words.split())


def test_the_group_sizes_offered_work_for_the_whole_model(command: Command, place: Path, out: Path) -> None:
    for size in ("64", "32", "channel"):
        words = ("--method", "rtn", "--group-size", size, "--force")
        assert command("quantize", place / "model", "-o", out, *words).code == 0


def test_sizes_that_a_format_cannot_hold(command: Command, tmp_path: Path, out: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 60,
        "intermediate_size": 36,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = tiny_models.build("llama", tmp_path / "odd", **sizes, head_dim=30)
    name = "model.layers.0.mlp.down_proj"
    line = f"{name}: group_size 32 does not divide the 36 input columns; use --group-size channel"
    refused(command, line, model, out, *RTN)
    line = f"format gptq: gptq needs dimensions divisible by 32 and {name} is 60 x 36; use --format compressed-tensors"
    refused(command, line, model, out, "--method", "rtn", "--group-size", "channel", "--format", "gptq")


def test_layers_that_a_format_cannot_hold(command: Command, tmp_path: Path, out: Path) -> None:
    model = tiny_models.build("gpt2", tmp_path / "gpt2")
    readers = "format compressed-tensors: compressed-tensors readers load Linear modules only and "
    line = f"{readers}transformer.h.0.attn.c_attn is a Conv1D; use --format dense or gptq"
    refused(command, line, model, out, *RTN)


def test_a_tied_head_has_two_names(command: Command, place: Path, out: Path) -> None:
    assert command("quantize", place / "model", "-o", out, *RTN, "--ignore", "lm_head").code == 0


def test_two_stages_on_one_target(command: Command, place: Path, out: Path, tmp_path: Path) -> None:
    stages = "stages: [{method: rtn, group_size: 32}, {method: rtn, bits: 8, group_size: 32, targets: ['*.up_proj']}]"
    (tmp_path / "r.yaml").write_text(f"model: {place / 'model'}\n{stages}\n")
    outcome = command("run", tmp_path / "r.yaml", "-o", out)
    line = "error: model: model.layers.0.mlp.up_proj is targeted by stages 0 and 1; give one of them an ignore"
    assert (outcome.code, outcome.line) == (2, line)
    assert not out.exists()


def test_memory(command: Command, place: Path, out: Path) -> None:
    outcome = command("quantize", place / "model", "-o", out, *RTN, "--max-memory", "100MB", "--json")
    assert (outcome.code, outcome.error["kind"]) == (4, "memory")
    need = int(outcome.error["message"].split()[1].replace(",", ""))
    fix = "raise it"
    assert outcome.line == f"error: model: about {need:,} bytes of RAM needed, --max-memory allows 100,000,000; {fix}"
    assert not out.exists()
    assert not partial(out).exists()
    assert command("quantize", place / "model", "-o", out, *RTN, "--max-memory", str(need)).code == 0


# Calibration


def test_a_quality_is_judged_on_text_of_its_own(command: Command, place: Path, out: Path) -> None:
    line = "--max-kl: there is no calibration text; add --calibration FILE_OR_DATASET"
    refused(command, line, place / "model", out, "--max-kl", "0.1")


TEXTS: list[tuple[str, str, str]] = [
    ("empty.txt", "", "{}: holds no text; give at least 32 tokens of text"),
    (
        "short.txt",
        "short",
        "{}: too short: 5 tokens, and one sequence takes 32; give more text, or --sequence-length 5 --num-samples 1",
    ),
    ("column.jsonl", '{"body": "x"}\n', "{}:1: there is no column 'text'; choose one with --text-column: body"),
    ("text.csv", "a,b\n", "{}: not a kind of file read here; give a .txt, .jsonl or .parquet file or a data set id"),
]


@pytest.mark.parametrize(("name", "text", "line"), TEXTS, ids=[t[0] for t in TEXTS])
def test_texts(command: Command, place: Path, out: Path, name: str, text: str, line: str) -> None:
    file = out.parent / name
    file.write_text(text)
    refused(command, line.format(file), place / "model", out, *GPTQ, file)


def test_a_text_that_is_not_there(command: Command, place: Path, out: Path) -> None:
    file = out.parent / "gone.txt"
    line = f"{file}: no such file; give a .txt, .jsonl or .parquet file or a data set id"
    refused(command, line, place / "model", out, *GPTQ, file)


def test_no_tokenizer(command: Command, place: Path, tmp_path: Path, out: Path) -> None:
    model = shutil.copytree(place / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("tok*"))
    text = place / "corpus.txt"
    line = f"{text}: the model folder has no tokenizer, so the text cannot be turned into tokens; put the model's "
    line += "tokenizer.json and tokenizer_config.json into it, or use a method that needs no text"
    refused(command, line, model, out, *GPTQ, text)
    outcome = command("eval", model, "--text", text, "--context", "32", "--stride", "32")
    assert outcome.code == 2
    assert outcome.line.startswith("error: bare: no tokenizer that transformers can read: ")
    assert outcome.line.endswith("; copy tokenizer.json and tokenizer_config.json of the original into it")
    assert command("quantize", model, "-o", out, *RTN).code == 0


def test_tokens_beyond_the_vocabulary(command: Command, place: Path, tmp_path: Path, out: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "small", vocab_size=64)
    text = place / "corpus.txt"
    line = f"{text}: the tokenizer gives token id 220 ('Ġ'), and the model's embedding ends at 63; "
    refused(command, f"{line}use the tokenizer this model was trained with", model, out, *GPTQ, text)
    assert command("eval", model, "--text", text, "--context", "32", "--stride", "32", "--max-tokens", "64").code == 2
