"""`export`: an encoded model in another container, the same codes; `dense` gives the plain model back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from llmc.artifacts.artifact import Artifact, Unit
from llmc.artifacts.card import Made, model_card, source_fields
from llmc.artifacts.folder import Folder
from llmc.artifacts.layout import arrange
from llmc.artifacts.lossless.decompress import decompress
from llmc.artifacts.shapes import model_facts, stored_shapes, target_bits
from llmc.artifacts.sidecar import side_notes, write_sidecar
from llmc.artifacts.store import store
from llmc.artifacts.workfolder import check_place
from llmc.encodings.coding.coded_head import TRELLIS
from llmc.encodings.encoded import Encoded, Grid
from llmc.encodings.int_grid import IntGrid
from llmc.encodings.nf4_grid import Nf4Grid
from llmc.encodings.trellis import TrellisGrid
from llmc.errors import InputError, UnsupportedError
from llmc.files.bytes import raw_bytes
from llmc.files.manifest import CARD, read_manifest, write_manifest
from llmc.formats import CONTAINERS
from llmc.formats.container import Container, Spec
from llmc.formats.read import Packed
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.models.config import read_config
from llmc.models.hub import resolve_model
from llmc.public import public
from llmc.results import Progress, Table, silent
from llmc.targets import Target


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    out: Path
    container: str
    weight_bytes: int
    matrices: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "format": self.container,
            "weight_bytes": self.weight_bytes,
            "matrices": self.matrices,
            "notes": list(self.notes),
        }

    def tables(self) -> list[Table]:
        rows = (
            ("format", self.container),
            ("weight files", f"{self.weight_bytes:,} bytes"),
            ("matrices", str(self.matrices)),
            *(("note", note) for note in self.notes),
        )
        return [Table(f"Written to {self.out}", ("what", ""), rows)]


@public()
def export(
    folder: str | Path, out: str | Path, *, format: str, force: bool = False, progress: Progress | None = None
) -> Exported:
    """Write an encoded model into another container, with the same codes and scales.

    A folder whose tensors are coded without loss gives the files that were coded back, where they are of that format.

    Args:
        folder: an artifact, or an encoded folder that another tool wrote.
        format: a container; `dense` decodes to the plain model.

    Raises:
        UnsupportedError: the container cannot hold these codes or these scales exactly.
    """
    out, source = Path(out), resolve_model(str(folder))
    container: Container = CONTAINERS.get(format)()
    check_place(out, force, source)
    checkpoint = Checkpoint(source, encoded=True)
    if checkpoint.coded is not None and format in _held(checkpoint):
        plain = decompress(source, out, force=force, progress=progress)
        return Exported(out, format, plain.weight_bytes, len(checkpoint.packed), plain.notes)
    if not checkpoint.packed and not (format == "dense" and _is_trellis(checkpoint)):
        if checkpoint.coded is not None:
            trellis = _is_trellis(checkpoint)
            fix = "use --format dense" if trellis else "llmc decompress gives them back"
            problem = (
                "no other format holds the codes of a trellis" if trellis else "its tensors are coded without loss"
            )
            raise InputError(problem, where=source.name, fix=fix)
        raise InputError("no encoded matrix in it", where=source.name, fix="export starts from a quantized folder")
    specs = _specs(checkpoint, container)
    facts = model_facts(checkpoint, specs)
    for refusal in container.refusals(list(specs.values()), facts):
        raise UnsupportedError(refusal, where=f"format {container.name}")
    left_out = side_notes(source)
    files = arrange(stored_shapes(checkpoint, container, specs))
    artifact = Artifact(out, {"": files}, {"export": f"{format} of {checkpoint.fingerprint()}"}, inputs=[source])
    artifact.open(fresh=True, force=force)
    try:
        unit = _write(checkpoint, container, specs, artifact.folders[""], progress or silent)
        place = artifact.folders[""]
        place.close()
        write_sidecar(place.path, source, checkpoint.config_dict, container, list(specs.values()), facts, files.index())
        _seal(checkpoint, container, specs, place, unit)
        artifact.finish()
    finally:
        artifact.abandon()
    return Exported(out, format, files.total, len(specs), left_out)


def _is_trellis(checkpoint: Checkpoint) -> bool:
    """Whether matrices are trellis coded: they decode to what was chosen for them, not to what a model had."""
    said = checkpoint.config_dict.get("quantization_config")
    return checkpoint.coded is not None and isinstance(said, dict) and said.get("mode") == "trellis"


def _held(checkpoint: Checkpoint) -> set[str]:
    """The container whose files were coded, when they are of one."""
    found = {p.container for p in checkpoint.packed.values()}
    named = (read_manifest(checkpoint.folder) or {}).get("holds")
    return {str(named)} if named is not None and not found else found if len(found) == 1 else set()


def _specs(checkpoint: Checkpoint, container: Container) -> dict[str, Spec]:
    """Name on disk -> what it is stored as, for every encoded matrix."""
    targets = {t.tensor: t for t in checkpoint.targets}
    out = {}
    if checkpoint.coded is not None and _is_trellis(checkpoint):
        coded, grid = checkpoint.coded, cast("Grid", TrellisGrid())
        return {name: Spec(t, grid) for name, t in targets.items() if coded.head(name).kind == TRELLIS}
    for name, packed in checkpoint.packed.items():
        if name not in targets:
            raise UnsupportedError("no Linear layer of the model is stored there", where=name)
        # Containers whose values come in one dtype (gptq: float16) say nothing of the model's own.
        own = checkpoint.config_dtype if packed.container == "gptq" and container.name != "dense" else packed.dtype
        target = replace(targets[name], dtype=own)
        dtype = container.scale_dtype(target) or str(own).removeprefix("torch.")
        out[name] = Spec(target, grid_of(packed, dtype))
    return out


def grid_of(packed: Packed, scale_dtype: str) -> Any:
    """The grid of a stored matrix."""
    if packed.container == "bitsandbytes":
        return Nf4Grid(packed.group_size)
    return IntGrid(packed.bits, packed.group_size, packed.symmetric, "absmax", (scale_dtype,))


def _write(
    checkpoint: Checkpoint, container: Container, specs: dict[str, Spec], folder: Folder, progress: Progress
) -> Unit:
    before = {row["tensor"]: row for row in (read_manifest(checkpoint.folder) or {}).get("targets", [])}
    tensors: dict[str, str] = {}
    report = []
    for done, name in enumerate(checkpoint.stored):
        progress("export", done, len(checkpoint.stored))
        if name not in specs:
            tensors[name] = folder.write(name, checkpoint.tensor(name))
            continue
        spec, packed = specs[name], checkpoint.packed.get(name)
        values = checkpoint.matrix(spec.target) if packed is None else packed.decode()
        if packed is None or container.name == "dense":
            tensors[name] = folder.write(name, checkpoint.tensor(name))
            row = _dense_row(spec.target, values)
        else:
            stored = store(spec, _encoded(packed, spec), values, [("", container, folder)])
            tensors |= stored.tensors[""]
            row = {**stored.row, "decoded": stored.row["decoded"][container.name]}
        old = before.get(name, {})
        for key in ("snr_db", "bond"):  # measured against the decoded values here, not against the original
            row.pop(key, None)
            if old.get("decoded") == row["decoded"] and key in old:
                row[key] = old[key]
        if packed is not None and "bond" in old and "bond" not in row:  # decoded to another dtype here
            dtype = str(packed.dtype).removeprefix("torch.")
            row["source"] = {"dtype": dtype, **{key: old[key] for key in ("decoded", "snr_db", "bond")}}
        report.append({**row, "method": old.get("method", "unknown"), "notes": old.get("notes", {})})
    return Unit("export", {"": tensors}, report)


def _dense_row(target: Target, values: torch.Tensor) -> dict[str, Any]:
    return {
        "target": target.name,
        "tensor": target.tensor,
        "shape": list(target.shape),
        "transposed": target.transposed,
        "bits_per_weight": 8.0 * values.dtype.itemsize,
        "decoded": hashlib.sha256(raw_bytes(values)).hexdigest(),
    }


def _encoded(packed: Packed, spec: Spec) -> Encoded:
    """The codes and params of a stored matrix. Raises UnsupportedError when another container would change them."""
    container: Container = CONTAINERS.get(packed.container)()
    prefix = spec.target.tensor.removesuffix("weight")
    tensors = {prefix + local: tensor for local, tensor in packed.tensors().items()}
    encoded = container.unpack(Spec(spec.target, grid_of(packed, str(packed.dtype).removeprefix("torch."))), tensors)
    decoded = encoded.dequantize(packed.dtype)
    if not torch.equal(decoded, packed.decode()):
        raise UnsupportedError(
            "its columns are assigned to groups out of order (act-order with g_idx)",
            where=packed.name,
            fix="use --format dense",
        )
    wanted = getattr(torch, getattr(spec.grid, "scale_dtypes", ("float32",))[0])
    scale = encoded.params["scale"]
    if not torch.equal(scale.to(wanted).double(), scale.double()):
        raise UnsupportedError(
            f"its scales are not exact in {wanted}".replace("torch.", ""),
            where=packed.name,
            fix="ask quantize for both formats at once, which chooses scales that fit both",
        )
    return replace(encoded, grid=spec.grid, dtype=spec.target.dtype)


def _seal(checkpoint: Checkpoint, container: Container, specs: dict[str, Spec], folder: Folder, unit: Unit) -> None:
    old = read_manifest(checkpoint.folder) or {}
    elements = sum(checkpoint.entries[n].numel for n in checkpoint.stored)
    payload = sum(s.stop - s.start for s in folder.files.slots.values())
    sizes = {
        "weight_bytes": folder.files.total,
        "original_bytes": old.get("sizes", {}).get("original_bytes", elements * checkpoint.dtype.itemsize),
        "bits_per_weight": round(target_bits(container, list(specs.values())), 6),
        "model_bits_per_weight": round(8 * payload / elements, 6),
    }
    rows = [{**row, "stored": sorted(container.layout(specs[row["tensor"]]))} for row in unit.report]
    facts = model_facts(checkpoint, specs)
    base = old.get("base_model", checkpoint.folder.name)
    runtimes = container.runtimes(list(specs.values()), facts)
    left_out = side_notes(checkpoint.folder)
    notes = [*old.get("notes", []), *checkpoint.notes, *left_out, f"exported from {checkpoint.folder.name}"]
    source = source_fields(checkpoint.folder, artifact=bool(old))
    made = Made(folder.path, base, source, container.name, read_config(folder.path), runtimes)
    (folder.path / CARD).write_text(model_card(made, old.get("recipe", {}), sizes, notes), encoding="utf-8")
    kept: dict[str, Any] = {k: old[k] for k in ("llmc", "recipe", "seed", "versions", "calibration") if k in old}
    tensors = {n: {"file": folder.files.slots[n].file, "sha256": d} for n, d in sorted(unit.tensors[""].items())}
    body = {
        **kept,
        "base_model": base,
        "format": container.name,
        "sizes": sizes,
        "tensors": tensors,
        "targets": rows,
        "notes": notes,
    }
    write_manifest(folder.path, body)
