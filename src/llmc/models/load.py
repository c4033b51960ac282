"""What scripts read models with: `read_tensors` and `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.errors import UsageError
from llmc.files.safetensors import load as load_plain
from llmc.files.safetensors import read_folder
from llmc.formats.coded_files import CodedTensors, is_coded
from llmc.late import torch
from llmc.models.config import safe_config
from llmc.models.hub import located, resolve_model
from llmc.public import public
from llmc.results import Progress, silent
from llmc.threads import cores

RESIDENT = ("dense", "compressed")


@public()
def read_tensors(
    path: str | Path, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """All tensors of a folder or file that `llmc lossless` wrote, decoded bit for bit; also of plain .safetensors.

    Args:
        path: a folder, a file, or a Hub id.
        threads: how many decode; None: all cores.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    place = located(path)
    report = progress or silent
    if not is_coded(place):
        return {name: load_plain(entry) for name, entry in read_folder(place).items()}
    coded = CodedTensors(place)
    total, done, out = sum(e.nbytes for e in coded.entries.values()), 0, {}
    for name, tensor in coded.tensors(threads=threads or cores()):
        out[name] = tensor
        done += coded.entries[name].nbytes
        report("decode MB", done / 1e6, total / 1e6)
    return out


@public()
def load(folder: str | Path, *, resident: str = "dense", dtype: torch.dtype | None = None, device: str = "cpu") -> Any:
    """The transformers model in a folder, plain or written by `llmc lossless`, in evaluation mode.

    Args:
        folder: a model folder, or a Hub id.
        resident: `dense`, or `compressed`: weights stay coded in memory and are decoded block by block during each
            forward pass, with the same outputs bit for bit; `model.llmc_memory` says what that takes.
        dtype: None: that of config.json.

    Raises:
        UsageError: there is no such way to keep weights, or the folder is not coded.
        CheckpointError: it cannot be read, or is damaged.
    """
    if resident not in RESIDENT:
        raise UsageError(f"resident={resident!r}", fix=f"choose one of: {', '.join(RESIDENT)}")
    path = resolve_model(str(folder))
    if resident == "compressed":
        from llmc.models.resident import resident_model

        return resident_model(path, dtype, device)
    import llmc.models.hf  # noqa: F401  # registers the format
    from llmc.models.classes import decoding, model_class

    options = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    try:
        reader = model_class(path)
        model = reader.from_pretrained(str(path), dtype=dtype or "auto", **options, **decoding(safe_config(path)))
    except RuntimeError:
        if is_coded(path):  # transformers reports what went wrong with a tensor in a table: here it is one line
            coded = CodedTensors(path)
            for _ in coded.tensors(threads=cores()):
                pass
        raise
    return model.to(device).eval()
