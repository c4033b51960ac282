"""Calibration text: tokens against a naive loop, determinism, and the exact line of every refusal."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokens import ALPHABET, BOS, EOS, VOCABULARY, byte_tokenizer
from local_hub import LocalHub
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from llmc.calibration.data import CANDIDATES_PER_SAMPLE, CalibrationOptions, load_calibration
from llmc.embedded import write_texts
from llmc.errors import CalibrationError, LlmcError, NetworkError, StorageError, UsageError


def byte_ids(text: str) -> list[int]:
    characters = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]]
    return [ALPHABET.index(c) for c in characters[0]]


def naive(stream: list[int], options: CalibrationOptions) -> list[list[int]]:
    """The definition, in loops: cut the first candidates, draw by permutation, keep the order."""
    length = options.sequence_length
    stream = stream[: CANDIDATES_PER_SAMPLE * options.num_samples * length]
    cut = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(options.seed)).tolist()
    return [cut[i] for i in sorted(order[: options.num_samples])]


def words(count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijé", k=draw.randint(1, 9))) for _ in range(count))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet_file(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_text_is_cut_and_drawn_as_the_naive_loop_does(tmp_path: Path) -> None:
    text = "\n".join(words(40, seed) for seed in range(60))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    options = CalibrationOptions(str(tmp_path / "a.txt"), num_samples=7, sequence_length=33, seed=3)
    result = load_calibration(options, byte_tokenizer(), VOCABULARY)
    assert result.token_ids.tolist() == naive(byte_ids(text), options)
    assert result.token_ids.dtype == torch.int64
    assert result.source == "a.txt" and result.notes == ()


def test_a_text_larger_than_one_piece_is_read_only_as_far_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmc.calibration.data.PIECE", 100)
    text = "".join(words(9, seed) + "\r\n" for seed in range(400))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\xff never read")
    options = CalibrationOptions(str(tmp_path / "a.txt"), num_samples=5, sequence_length=50)
    result = load_calibration(options, byte_tokenizer(), VOCABULARY)
    assert result.token_ids.tolist() == naive(byte_ids(text.replace("\r\n", "\n")), options)


def test_one_endless_line_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.calibration.data.PIECE", 7)  # cuts inside the two bytes of é
    text = words(300)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    options = CalibrationOptions(str(tmp_path / "a.txt"), num_samples=1000, sequence_length=10)
    assert load_calibration(options, byte_tokenizer(), VOCABULARY).token_ids.tolist() == naive(byte_ids(text), options)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("eos", [True, False])
def test_rows_are_joined_with_eos(tmp_path: Path, kind: str, eos: bool) -> None:
    documents = [words(12, seed) for seed in range(50)]
    rows = [documents[0], "", None, *documents[1:]]
    if kind == "jsonl":
        source = jsonl(tmp_path / "a.jsonl", [{"id": i, "text": row} for i, row in enumerate(rows)])
    else:
        source = parquet_file(tmp_path / "a.parquet", {"id": list(range(len(rows))), "text": rows})
    options = CalibrationOptions(str(source), num_samples=4, sequence_length=64)
    stream = [i for document in documents for i in [*byte_ids(document), *([EOS] if eos else [])]]
    assert load_calibration(options, byte_tokenizer(eos=eos), VOCABULARY).token_ids.tolist() == naive(stream, options)


def test_conversations_are_rendered_by_the_template(tmp_path: Path) -> None:
    talks = [
        [{"role": "user", "content": words(5, i)}, {"role": "assistant", "content": words(9, -i)}] for i in range(40)
    ]
    source = jsonl(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])
    options = CalibrationOptions(str(source), num_samples=6, sequence_length=40, chat_template=True)
    stream = byte_ids("".join(f"[{m['role']}]{m['content']}" for talk in talks for m in talk))
    tokenizer = byte_tokenizer(chat=True)
    assert load_calibration(options, tokenizer, VOCABULARY).token_ids.tolist() == naive(stream, options)
    table = parquet_file(tmp_path / "a.parquet", {"messages": talks})
    options = CalibrationOptions(str(table), num_samples=6, sequence_length=40, chat_template=True)
    assert load_calibration(options, tokenizer, VOCABULARY).token_ids.tolist() == naive(stream, options)


def test_each_sequence_begins_with_bos_where_the_tokenizer_adds_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(500), encoding="utf-8")
    options = CalibrationOptions(str(tmp_path / "a.txt"), num_samples=5, sequence_length=32)
    plain = load_calibration(options, byte_tokenizer(), VOCABULARY).token_ids
    result = load_calibration(options, byte_tokenizer(bos=True), VOCABULARY).token_ids
    assert result[:, 0].tolist() == [BOS] * 5
    assert torch.equal(result[:, 1:], plain[:, 1:])


def test_the_seed_decides_the_draw_and_the_digest_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(3000), encoding="utf-8")

    def load(seed: int) -> Any:
        options = CalibrationOptions(str(tmp_path / "a.txt"), num_samples=8, sequence_length=32, seed=seed)
        return load_calibration(options, byte_tokenizer(), VOCABULARY)

    first, again, other = load(1), load(1), load(2)
    assert torch.equal(first.token_ids, again.token_ids) and first.sha256 == again.sha256
    assert not torch.equal(first.token_ids, other.token_ids) and first.sha256 != other.sha256
    flat = [i for row in first.token_ids.tolist() for i in row]
    assert first.sha256 == hashlib.sha256(struct.pack(f"<{len(flat)}i", *flat)).hexdigest()


def test_fewer_sequences_than_asked_for_are_used_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100, encoding="utf-8")
    options = CalibrationOptions(str(tmp_path / "a.txt"), num_samples=9, sequence_length=30)
    result = load_calibration(options, byte_tokenizer(), VOCABULARY)
    assert result.token_ids.shape == (3, 30)
    assert result.notes == ("a.txt holds 3 sequences of 30 tokens, fewer than the 9 asked for: calibrating on 3",)


FILES: dict[str, Callable[[Path], object]] = {
    "empty.txt": lambda path: path.write_bytes(b""),
    "short.txt": lambda path: path.write_bytes(b"only these words"),
    "latin.txt": lambda path: path.write_bytes(b"one\ntwo\ncaf\xe9\nfour"),
    "cut.txt": lambda path: path.write_bytes(b"one\nn\xc3"),
    "broken.jsonl": lambda path: path.write_bytes(b'{"text": "a"}\n\n{"text": "b"\n'),
    "list.jsonl": lambda path: path.write_bytes(b'{"text": "a"}\n["b"]\n'),
    "deep.jsonl": lambda path: path.write_bytes(b"[" * 200_000),
    "columns.jsonl": lambda path: jsonl(path, [{"title": "a", "body": "b"}]),
    "columns.parquet": lambda path: parquet_file(path, {"title": ["a"], "body": ["b"]}),
    "number.jsonl": lambda path: jsonl(path, [{"text": 3}]),
    "surrogate.jsonl": lambda path: path.write_bytes(b'{"text": "\\ud800"}'),
    "false.parquet": lambda path: path.write_bytes(b"PAR1" + b"\0" * 50 + b"PAR1"),
    "tiny.parquet": lambda path: path.write_bytes(b"PAR"),
    "notes.doc": lambda path: path.write_bytes(b"text"),
    "folder.txt": lambda path: path.mkdir(),
    "talk.jsonl": lambda path: jsonl(path, [{"messages": "hello"}]),
    "robot.jsonl": lambda path: jsonl(path, [{"messages": [{"role": "robot", "content": "beep"}]}]),
}

REFUSALS = [
    ("empty.txt", {}, "empty.txt: holds no text; give at least 512 tokens of text"),
    (
        "short.txt",
        {},
        "short.txt: too short: 16 tokens, and one sequence takes 512; "
        "give more text, or --sequence-length 16 --num-samples 1",
    ),
    ("latin.txt", {}, "latin.txt:3: not UTF-8 (byte 0xe9); convert the file to UTF-8"),
    ("cut.txt", {}, "cut.txt:2: not UTF-8 (byte 0xc3); convert the file to UTF-8"),
    (
        "broken.jsonl",
        {},
        "broken.jsonl:3: not JSON (Expecting ',' delimiter, column 13); every line must be one object",
    ),
    ("list.jsonl", {}, 'list.jsonl:2: a JSON list, not an object; write {"text": "..."}'),
    ("columns.jsonl", {}, "columns.jsonl:1: there is no column 'text'; choose one with --text-column: title, body"),
    (
        "columns.jsonl",
        {"column": "boby"},
        "columns.jsonl:1: there is no column 'boby'; choose one with --text-column: title, body",
    ),
    ("columns.parquet", {}, "columns.parquet: there is no column 'text'; choose one with --text-column: title, body"),
    (
        "number.jsonl",
        {},
        "number.jsonl:1: column 'text' holds a int, not text; "
        "choose another --text-column, or add --chat-template if these are conversations",
    ),
    ("surrogate.jsonl", {}, "surrogate.jsonl:1: not valid Unicode (a lone surrogate); repair this text"),
    ("false.parquet", {}, "false.parquet: not a readable parquet file"),
    ("tiny.parquet", {}, "tiny.parquet: not a readable parquet file"),
    ("notes.doc", {}, "notes.doc: not a kind of file read here; give a .txt, .jsonl or .parquet file or a data set id"),
    ("folder.txt", {}, "folder.txt: a folder; give a .txt, .jsonl or .parquet file or a data set id"),
    ("absent.txt", {}, "absent.txt: no such file; give a .txt, .jsonl or .parquet file or a data set id"),
    (
        "not/a/data/set",
        {},
        "not/a/data/set: neither a file here nor a data set that can be read from the Hub; "
        "give a .txt, .jsonl or .parquet file, or check the id and your access to it",
    ),
    (
        "short.txt",
        {"chat_template": True},
        "short.txt: a .txt file holds no conversations; "
        "leave --chat-template out, or give a .jsonl with a 'messages' column",
    ),
    (
        "talk.jsonl",
        {"chat_template": True},
        "talk.jsonl:1: not a conversation; expected a list of {role, content} objects",
    ),
    (
        "robot.jsonl",
        {"chat_template": True},
        "robot.jsonl:1: the chat template refuses this conversation (no robots); "
        "repair the template, or calibrate on plain text",
    ),
]


@pytest.mark.parametrize(("name", "options", "line"), REFUSALS)
def test_bad_input_is_one_line(
    name: str, options: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name in FILES:
        FILES[name](tmp_path / name)
    with pytest.raises(CalibrationError) as caught:
        load_calibration(CalibrationOptions(name, **options), byte_tokenizer(chat=True), VOCABULARY)
    assert str(caught.value) == line
    assert caught.value.exit_code == 2


def test_deep_json_is_refused(tmp_path: Path) -> None:
    FILES["deep.jsonl"](tmp_path / "deep.jsonl")
    with pytest.raises(CalibrationError, match=r"deep.jsonl:1: not JSON \(.*\); every line must be one object$"):
        load_calibration(CalibrationOptions(str(tmp_path / "deep.jsonl")), byte_tokenizer(), VOCABULARY)


def failure(kind: type[LlmcError], options: CalibrationOptions, tokenizer: Any, vocabulary: int = VOCABULARY) -> str:
    with pytest.raises(kind) as caught:
        load_calibration(options, tokenizer, vocabulary)
    return str(caught.value)


def test_the_tokenizer_must_exist_have_a_template_and_fit_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = jsonl(tmp_path / "a.jsonl", [{"text": words(30)}])
    options = CalibrationOptions(rows.name, num_samples=1, sequence_length=8)
    assert failure(CalibrationError, options, None) == (
        "a.jsonl: the model folder has no tokenizer, so the text cannot be turned into tokens; put the model's "
        "tokenizer.json and tokenizer_config.json into it, or use a method that needs no text"
    )
    chat = CalibrationOptions(rows.name, chat_template=True)
    assert failure(CalibrationError, chat, byte_tokenizer()) == (
        "a.jsonl: the tokenizer has no chat template; add chat_template.jinja to the model folder, "
        "or calibrate on plain text"
    )
    options = CalibrationOptions(rows.name, num_samples=100, sequence_length=8)
    assert failure(CalibrationError, options, byte_tokenizer(), 256) == (
        "a.jsonl: the tokenizer gives token id 256 ('<eos>'), and the model's embedding ends at 255; "
        "use the tokenizer this model was trained with"
    )


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("num_samples", 0, "num_samples must be at least 1, not 0"),
        ("sequence_length", -5, "sequence_length must be at least 1, not -5"),
        ("seed", -1, "seed must be at least 0, not -1"),
    ],
)
def test_options_out_of_range(field: str, value: Any, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        CalibrationOptions("a.txt", **{field: value})
    assert str(caught.value) == line


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    options = CalibrationOptions("a.txt")
    assert failure(StorageError, options, byte_tokenizer()) == "a.txt: cannot be read (Permission denied)"


def test_a_data_set_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = failure(NetworkError, CalibrationOptions("user/words"), byte_tokenizer())
    assert line == (
        "user/words: the data set cannot be reached (ConnectError); check the network, or give a local file"
    )


STREAM = """
import json, sys
from byte_tokens import VOCABULARY, byte_tokenizer
from llmc.calibration.data import CalibrationOptions, load_calibration
from llmc.errors import LlmcError
for options in json.loads(sys.argv[1]):
    try:
        result = load_calibration(CalibrationOptions(**options), byte_tokenizer(), VOCABULARY)
        print(json.dumps([result.source, result.token_ids.tolist()]))
    except LlmcError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_a_data_set_is_streamed(tmp_path: Path) -> None:
    documents = [words(40, seed) for seed in range(3000)]
    train = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(documents)).encode()
    options = CalibrationOptions("me/words", num_samples=4, sequence_length=64)
    asked = [
        {"source": "me/words", "num_samples": 4, "sequence_length": 64},
        {"source": "me/words", "column": "texts"},
        {"source": "me/words", "split": "dev"},
        {"source": "me/sentences"},
    ]
    tests = Path(__file__).parents[1]
    with LocalHub(tokens=set()) as hub:
        hub.add("datasets/me/words", {"train.jsonl": train, "test.jsonl": b'{"text": "t", "n": 0}\n'})
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,  # the client reads it once, when imported: hence the process of its own
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": f"{tests.parent / 'src'}{os.pathsep}{tests}",
        }
        command = [sys.executable, "-c", STREAM, json.dumps(asked)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    stream = [i for document in documents for i in [*byte_ids(document), EOS]]
    assert lines == [
        ["me/words", naive(stream, options)],
        ["CalibrationError", "me/words: there is no column 'texts'; choose one with --text-column: text, n"],
        ["CalibrationError", "me/words: Bad split: dev. Available splits: ['train', 'test']"],
        [
            "CalibrationError",
            "me/sentences: neither a file here nor a data set that can be read from the Hub; "
            "give a .txt, .jsonl or .parquet file, or check the id and your access to it",
        ],
    ]


def test_the_embedded_text(tmp_path: Path) -> None:
    source = write_texts(tmp_path)["calibration"]
    options = CalibrationOptions(str(source), num_samples=16, sequence_length=128)
    result = load_calibration(options, byte_tokenizer(), VOCABULARY)
    assert result.token_ids.tolist() == naive(byte_ids(source.read_text(encoding="utf-8")[:40_000]), options)


DATA = Path(os.environ.get("LLMC_DATA") or Path(os.environ.get("LLMC_MODELS", "")) / ".." / "data")


@pytest.mark.skipif(not os.environ.get("LLMC_MODELS"), reason="LLMC_MODELS names no folder of trained models")
def test_novels_with_a_trained_tokenizer() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(Path(os.environ["LLMC_MODELS"]) / "ref-7m")
    source = DATA / "novels-calibration.txt"
    options = CalibrationOptions(str(source), num_samples=32, sequence_length=128)
    result = load_calibration(options, tokenizer, 4096)
    assert result.token_ids.shape == (32, 128)
    assert result.notes == ("novels-calibration.txt: a byte order mark was dropped; --raw-text keeps the bytes",)
    whole = source.read_text(encoding="utf-8").replace("\r\n", "\n")
    places = [whole.find(tokenizer.decode(row[2:-2])) for row in result.token_ids]
    assert -1 not in places and places == sorted(places)
    assert len(set(places)) == 32
