"""Text to calibration token sequences.

A source is read in order only until it has given `CANDIDATES_PER_SAMPLE` times the tokens asked for. Those tokens, laid
end to end, are cut into sequences of equal length, and a seeded permutation draws which of them are used; drawn
sequences keep the order of the text. So the same text, tokenizer and options give the same tokens on every machine.

- A `.txt` file is one document. In `.jsonl`, `.parquet` and data sets each row is one, followed by the tokenizer's EOS.
- With a chat template each row is a conversation, rendered by the tokenizer's template, which brings its own end marks.
- Where the tokenizer begins a text with BOS by itself, the first token of every sequence is replaced by BOS: models
  trained so never saw a text without it, and without it their activations are not those of real use.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.calibration.chat import render
from llmc.calibration.data_sets import FILE_SUFFIXES, data_set_rows, parse_data_set
from llmc.errors import CalibrationError, StorageError, UsageError
from llmc.files.disk import require_utf8
from llmc.files.line_ends import MARK, LineEnds
from llmc.late import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CANDIDATES_PER_SAMPLE = 4
FILE_KINDS = ".txt, .jsonl or .parquet"
TALKS = ("messages", "conversations", "conversation")
"""Columns that usually hold conversations."""
PIECE = 1 << 17  # characters handed to the tokenizer at once

Row = tuple[str, object]  # where it stands ("file:line"), what it holds


@dataclass(frozen=True)
class CalibrationOptions:
    """What to calibrate on.

    Args:
        source: a local .txt, .jsonl or .parquet file, or a data set: `name[:configuration][@split]`; several, and
            their weights: see `calibration.mixture`.
        num_samples: sequences to draw.
        sequence_length: tokens in each.
        seed: of the draw.
        column: the column to read; None reads "messages" with a chat template and "text" without.
        split: of a data set that names none itself.
        chat_template: rows are conversations to render with the tokenizer's chat template.
        raw_text: keep line ends of Windows and byte order marks.
    """

    source: str | tuple[str, ...]
    num_samples: int = 128
    sequence_length: int = 512
    seed: int = 0
    column: str | None = None
    split: str = "train"
    chat_template: bool = False
    raw_text: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("sequence_length", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        if not self.source:
            raise UsageError("source names no text")

    @property
    def name(self) -> str:
        """The one source, where there is one."""
        return self.source if isinstance(self.source, str) else self.source[0]


@dataclass(frozen=True)
class CalibrationSet:
    """Token sequences to run through a model.

    Args:
        token_ids: int64 [samples, sequence_length].
        sha256: of the token ids in order, as little-endian int32.
        source: file name or data set id; never a full path.
        notes: what became of the text, and one line when there were fewer sequences than asked for.
    """

    token_ids: torch.Tensor
    sha256: str
    source: str
    notes: tuple[str, ...] = ()


def load_calibration(
    options: CalibrationOptions, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, *, beyond: int = 0
) -> CalibrationSet:
    """Read one source, tokenize, cut and draw.

    Args:
        options: the source and sizes.
        tokenizer: the model's tokenizer; None when the model folder has none.
        vocab_size: rows of the model's embedding; every token id must be below it.
        beyond: if not 0, at most so many sequences that the draw would have taken next, instead of those it takes.

    Raises:
        CalibrationError: the source holds nothing usable; the message says what is wrong and where.
        StorageError: the file cannot be read. NetworkError: the data set cannot be reached.
    """
    _check_tokenizer(options, tokenizer)
    ends = LineEnds(options.raw_text)
    texts, separator = _texts(options, tokenizer, ends)
    budget = CANDIDATES_PER_SAMPLE * options.num_samples * options.sequence_length
    tokens = _tokenize(texts, tokenizer, separator, budget)
    _check_tokens(tokens, tokenizer, vocab_size, options)

    available = len(tokens) // options.sequence_length
    candidates = torch.tensor(tokens[: available * options.sequence_length], dtype=torch.int64)
    candidates = candidates.view(available, options.sequence_length)  # [available, sequence_length]
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(available, generator=generator)
    first = options.num_samples if beyond else 0
    drawn = order[first : first + (beyond or options.num_samples)].sort().values
    token_ids = candidates[drawn]  # [samples, sequence_length]
    bos = _leading_bos(tokenizer)
    if bos is not None:
        token_ids[:, 0] = bos
    notes = (*ends.notes(), *_shortfall(available, options))
    return CalibrationSet(token_ids, token_sha256(token_ids), _public_name(options.name), notes)


def token_sha256(token_ids: torch.Tensor) -> str:
    """SHA-256 of token ids [samples, sequence_length] in order, as little-endian int32."""
    return hashlib.sha256(token_ids.to(torch.int32).numpy().astype("<i4").tobytes()).hexdigest()


def _check_tokenizer(options: CalibrationOptions, tokenizer: Any) -> None:
    if tokenizer is None:
        raise CalibrationError(
            "the model folder has no tokenizer, so the text cannot be turned into tokens",
            where=options.name,
            fix="put the model's tokenizer.json and tokenizer_config.json into it, or use a method that needs no text",
        )
    if options.chat_template and not tokenizer.chat_template:
        raise CalibrationError(
            "the tokenizer has no chat template",
            where=options.name,
            fix="add chat_template.jinja to the model folder, or calibrate on plain text",
        )


def _check_tokens(tokens: array[int], tokenizer: Any, vocab_size: int, options: CalibrationOptions) -> None:
    if not tokens:
        raise CalibrationError(
            "holds no text", where=options.name, fix=f"give at least {options.sequence_length} tokens of text"
        )
    if len(tokens) < options.sequence_length:
        raise CalibrationError(
            f"too short: {len(tokens)} tokens, and one sequence takes {options.sequence_length}",
            where=options.name,
            fix=f"give more text, or --sequence-length {len(tokens)} --num-samples 1",
        )
    largest = max(tokens)
    if largest >= vocab_size:
        raise CalibrationError(
            f"the tokenizer gives token id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), "
            f"and the model's embedding ends at {vocab_size - 1}",
            where=options.name,
            fix="use the tokenizer this model was trained with",
        )


def _shortfall(available: int, options: CalibrationOptions) -> tuple[str, ...]:
    if available >= options.num_samples:
        return ()
    return (
        f"{_public_name(options.name)} holds {available} sequences of {options.sequence_length} tokens, "
        f"fewer than the {options.num_samples} asked for: calibrating on {available}",
    )


def _public_name(source: str) -> str:
    return Path(source).name if Path(source).suffix.lower() in FILE_SUFFIXES else source


def _leading_bos(tokenizer: Any) -> int | None:
    """The BOS id when the tokenizer puts it before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id if ids[:1] == [tokenizer.bos_token_id] else None


def _tokenize(texts: Iterable[str], tokenizer: Any, separator: list[int], budget: int) -> array[int]:
    """Token ids of the texts end to end, each followed by `separator`, `budget` of them at most."""
    tokens: array[int] = array("q")
    for group in _groups(texts):
        for ids in tokenizer(group, add_special_tokens=False, verbose=False)["input_ids"]:
            tokens.extend(ids + separator)
            if len(tokens) >= budget:
                return tokens[:budget]
    return tokens


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts gathered to about `PIECE` characters: tokenizers are far faster on many. Empty ones are left out."""
    group: list[str] = []
    size = 0
    for text in filter(None, texts):
        group.append(text)
        size += len(text)
        if size >= PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _as_text(row: Row, options: CalibrationOptions, tokenizer: Any) -> str:
    """The text of one row; a null is an empty text."""
    where, value = row
    if value is None:
        return ""
    if options.chat_template:
        return render(value, where, tokenizer)
    if not isinstance(value, str):
        raise CalibrationError(
            f"column {_column(options)!r} holds a {type(value).__name__}, not text",
            where=where,
            fix="choose another --text-column, or add --chat-template if these are conversations",
        )
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise CalibrationError("not valid Unicode (a lone surrogate)", where=where, fix="repair this text")
    return value


def _column(options: CalibrationOptions) -> str:
    return options.column or ("messages" if options.chat_template else "text")


def _texts(options: CalibrationOptions, tokenizer: Any, ends: LineEnds) -> tuple[Iterator[str], list[int]]:
    """The texts of the source, and the token ids that end each."""
    rows, separator = _open(options, tokenizer)
    texts = (_as_text(row, options, tokenizer) for row in rows)
    if Path(options.name).suffix.lower() == ".txt":
        return ends.parts(texts, options.name), separator
    return (ends.text(text, options.name) for text in texts), separator


def _open(options: CalibrationOptions, tokenizer: Any) -> tuple[Iterator[Row], list[int]]:
    """The rows of the source, and the token ids that end each."""
    path = Path(options.name)
    require_utf8(path)
    suffix = path.suffix.lower()
    eos = tokenizer.eos_token_id
    separator = [] if eos is None or options.chat_template else [eos]
    if not path.exists() and suffix not in FILE_SUFFIXES:
        return _dataset_rows(options), separator
    if not path.is_file() or suffix not in FILE_SUFFIXES:
        kind = "no such file" if not path.exists() else "a folder" if path.is_dir() else "not a kind of file read here"
        raise CalibrationError(kind, where=options.name, fix=f"give a {FILE_KINDS} file or a data set id")
    if suffix == ".jsonl":
        return _jsonl_rows(path, options), separator
    if suffix == ".parquet":
        return _parquet_rows(path, options), separator
    if options.chat_template:
        raise CalibrationError(
            "a .txt file holds no conversations",
            where=options.name,
            fix="leave --chat-template out, or give a .jsonl with a 'messages' column",
        )
    return _text_pieces(path, options.name), []


def _lines(path: Path, source: str, limit: int = -1) -> Iterator[tuple[str, str]]:
    """Decoded lines of a UTF-8 file, and where each stands; a line beyond `limit` bytes comes in several pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    try:
        with path.open("rb") as file:
            while line := file.readline(limit):
                yield f"{source}:{number}", decoder.decode(line)
                number += line.endswith(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CalibrationError(
            f"not UTF-8 (byte 0x{byte:02x})", where=f"{source}:{number}", fix="convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=source) from error


def _text_pieces(path: Path, source: str) -> Iterator[Row]:
    """The file in order, cut at line ends into pieces of about `PIECE` characters."""
    lines: list[str] = []
    size = 0
    for _, line in _lines(path, source, limit=PIECE):
        lines.append(line)
        size += len(line)
        if size >= PIECE:
            yield source, "".join(lines)
            lines, size = [], 0
    yield source, "".join(lines)


def _jsonl_rows(path: Path, options: CalibrationOptions) -> Iterator[Row]:
    for where, line in _lines(path, options.name):
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix(MARK).rstrip())
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise CalibrationError(f"not JSON ({reason})", where=where, fix="every line must be one object") from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise CalibrationError(f"a JSON {kind}, not an object", where=where, fix='write {"text": "..."}')
        yield where, _cell(row, options, where)


def _parquet_rows(path: Path, options: CalibrationOptions) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _cell(dict.fromkeys(file.schema_arrow.names), options, options.name)
            batches = file.iter_batches(batch_size=256, columns=[_column(options)])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            for number, value in enumerate(values, 1):
                yield f"{options.name}: row {number}", value
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise StorageError(f"cannot be read ({error.strerror})", where=options.name) from error
        raise CalibrationError("not a readable parquet file", where=options.name) from error


def _cell(row: dict[str, Any], options: CalibrationOptions, where: str) -> object:
    column = _column(options)
    if column in row:
        return row[column]
    talks = [name for name in TALKS if name in row and not options.chat_template]
    fix = f"choose one with --text-column: {', '.join(map(str, row))}"
    if talks and options.column is None:
        own = "" if talks[0] == "messages" else f" --text-column {talks[0]}"
        fix = f"add --chat-template{own} if its {talks[0]} are conversations, or {fix}"
    raise CalibrationError(f"there is no column {column!r}", where=where, fix=fix)


def _dataset_rows(options: CalibrationOptions) -> Iterator[Row]:
    """Rows of a data set of the Hub, streamed: only what is needed is read."""
    asked = parse_data_set(options.name)
    asked = replace(asked, split=asked.split or options.split)
    for number, row in enumerate(data_set_rows(asked, options.name, kinds=f"a {FILE_KINDS} file"), 1):
        yield f"{options.name}: row {number}", _cell(row, options, options.name)
