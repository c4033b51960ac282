"""One model of an evaluation: what it is called, what it weighs, and the model itself from when it is needed."""

from __future__ import annotations

import gc
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llmc.artifacts.card import method_line
from llmc.embedded.names import resolve_model as embedded_or_id
from llmc.errors import LlmcError
from llmc.eval.measures.embeddings import open_encoder
from llmc.eval.measures.seq2seq import open_seq2seq
from llmc.eval.measures.sizes import Sizes, folder_sizes
from llmc.eval.reports.report import Source
from llmc.files.manifest import read_manifest
from llmc.late import torch
from llmc.models.config import open_config, read_config
from llmc.models.hub import resolve_model
from llmc.models.open import model_kind, open_model
from llmc.models.tokenizer import open_tokenizer
from llmc.results import Progress

Opener = Callable[[Path], tuple[Any, Any]]
"""`opener(folder) -> (model, tokenizer)`; the model is used in the dtype it comes in."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

TOKENIZER_PARTS = re.compile(r"token|vocab|merges|spiece|\.model$")


def folder_of(model: str | Path, progress: Progress | None) -> Path:
    """The local folder of a folder, a Hub id or `tiny`. Raises as `llmc.models.hub.resolve_model` does."""
    return resolve_model(embedded_or_id(str(model)), progress=progress)


class Subject:
    """A model folder to be judged, or its original.

    Attributes:
        name: folder name or Hub id: a report goes to others, to whom paths of this machine say nothing.
        kind: `decoder`, `encoder` or `encoder_decoder`.
        sizes: of its weight files.
        load_seconds: how long opening took; None before it.

    Raises InputError for what can be told without weights.
    """

    def __init__(
        self, model: str | Path, opener: Opener | None, device: str, dtype: torch.dtype, progress: Progress
    ) -> None:
        self.folder = folder_of(model, progress)
        local = Path(embedded_or_id(str(model))).exists()
        self.name = self.folder.resolve().name if local else str(model)
        self.kind = model_kind(self.folder)
        self.sizes: Sizes = folder_sizes(self.folder)
        self.device, self.dtype = device, dtype
        self.load_seconds: float | None = None
        own = {"decoder": open_model, "encoder": open_encoder, "encoder_decoder": open_seq2seq}[self.kind]
        self._opener: Opener = opener or partial(own, dtype=dtype)
        self._own_opener = opener is not None
        self._opened: tuple[Any, Any] | None = None
        self._tokenizer: Any = None

    @property
    def model(self) -> Any:
        return self._open()[0]

    @property
    def tokenizer(self) -> Any:
        """Opened without the model where that is possible."""
        if self._opened is not None or self._own_opener:
            return self._open()[1]
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(self.folder)
        return self._tokenizer

    @property
    def config(self) -> Any:
        """Of transformers: the opened model's own, or what its folder says."""
        if self._opened is not None:
            return self._opened[0].config
        return open_config(self.folder)

    @property
    def made(self) -> tuple[str, ...]:
        """What was done to it, as its manifest says: method, width, groups, format, calibration; none without one."""
        manifest = self._manifest
        try:
            parts = [method_line(manifest["recipe"], manifest["sizes"]), f"format {manifest['format']}"]
            text = manifest.get("calibration")
            if text:
                parts.append(f"calibrated on {text['source']}, {text['samples']} x {text['sequence_length']} tokens")
            return ("; ".join(parts),) if manifest["recipe"].get("stages") else ()
        except (LookupError, TypeError, ValueError, AttributeError):  # of a manifest that says no such thing
            return ()

    @property
    def matrix_error(self) -> dict[str, dict[str, float]]:
        """Name of a matrix -> `output_error` and `snr_db`, as its manifest says; empty without one."""
        found: dict[str, dict[str, float]] = {}
        try:
            for row in self._manifest["targets"]:
                figures = {"output_error": row["notes"].get("relative_error"), "snr_db": row["snr_db"]}
                found[str(row["target"])] = {k: float(v) for k, v in figures.items() if v is not None}
        except (LookupError, TypeError, ValueError, AttributeError):  # of a manifest that says no such thing
            return {}
        return found

    @cached_property
    def _manifest(self) -> Mapping[str, Any]:
        """What the run that wrote the folder says of it; empty where it says nothing that can be read."""
        try:
            return read_manifest(self.folder) or {}
        except LlmcError:
            return {}

    @property
    def tokenizer_source(self) -> Source:
        file = next((self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()), None)
        if file is None:
            return Source(f"of {len(self.tokenizer):,} tokens", None)
        return Source(f"{file.name} ({len(self.tokenizer):,} tokens)", hashlib.sha256(file.read_bytes()).hexdigest())

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of all files that the tokenizer is made of: where it is the same, so are the tokens. None with an opener."""
        if self._own_opener:
            return None
        whole = hashlib.sha256(str(read_config(self.folder).get("model_type")).encode())  # says which class reads them
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and TOKENIZER_PARTS.search(path.name):
                whole.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
        return whole.hexdigest()

    def close(self) -> None:
        """Give the model's memory back."""
        self._opened = None
        gc.collect()

    def _open(self) -> tuple[Any, Any]:
        if self._opened is None:
            started = time.perf_counter()
            model, tokenizer = self._opener(self.folder)
            self._opened = model.to(self.device).eval(), tokenizer
            self.dtype = model.dtype
            self.load_seconds = time.perf_counter() - started
        return self._opened
