"""`verify --against`: what an artifact says is held against what is there, and what is not compared is listed."""

from __future__ import annotations

import json
import py_compile
import shutil
import sys
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import llmc
from llmc.artifacts import layout
from llmc.artifacts.verify import verify
from llmc.files.manifest import MANIFEST, dump_json, write_manifest

Change = tuple[list[Any], Any]  # path of keys, and what is put there


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("against") / "model")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    """Several small shards, so that there is an index too."""
    out = model.parent / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout.arrange, "__defaults__", (30_000,))
        llmc.quantize(str(model), out, method="rtn", bits=4, group_size=32)
    return out


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copied"))


def edited(folder: Path, name: str, *changes: Change) -> Path:
    """The folder with a JSON file changed as its writer spells it, and sealed again."""
    document = json.loads((folder / name).read_text())
    for keys, value in changes:
        part = document
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
    (folder / name).write_bytes(dump_json(document))
    body = json.loads((folder / MANIFEST).read_text())
    write_manifest(folder, {k: v for k, v in body.items() if k not in ("format_version", "files", "fields")})
    return folder


INDEX = "model.safetensors.index.json"
TOLD: list[tuple[str, Change, str]] = [
    ("config.json", (["of_others"], ""), "config.json: of_others is not what llmc writes for model"),
    ("config.json", (["pad_token_id"], ""), "config.json: pad_token_id is not what llmc writes for model"),
    (
        "config.json",
        (["quantization_config", "more"], ""),
        "config.json: quantization_config.more is not what llmc writes for model",
    ),
    (INDEX, (["metadata", "total_size"], 1), f"{INDEX}: lists other tensors, files or sizes than there are"),
    (INDEX, (["more"], 1), f"{INDEX}: lists other tensors, files or sizes than there are"),
    (
        MANIFEST,
        (["format"], "dense"),
        f"{MANIFEST}: format is 'dense', its matrices are stored as compressed-tensors",
    ),
    (MANIFEST, (["holds"], "gptq"), f"{MANIFEST}: holds is 'gptq', its matrices are stored as compressed-tensors"),
    (MANIFEST, (["format"], "x"), f"{MANIFEST}: format is 'x', its matrices are stored as compressed-tensors"),
]


@pytest.mark.parametrize(("name", "change", "line"), TOLD, ids=range(len(TOLD)))
def test_what_a_file_says_is_held_against_what_is_there(
    copied: Path, model: Path, name: str, change: Change, line: str
) -> None:
    assert line in verify(edited(copied, name, change), model).problems


def test_a_field_that_is_there_twice(copied: Path, model: Path) -> None:
    """Other readers than Python's may take the first one."""
    config = copied / "config.json"
    config.write_text(config.read_text().replace("{", '{\n  "rms_norm_eps": 0.5,', 1))
    edited(copied, MANIFEST)
    (problem,) = verify(copied, model).problems
    assert problem == "config.json: not spelled as llmc does: other readers may find other values in it"


def test_fields_that_nobody_compares_are_listed(copied: Path, model: Path) -> None:
    result = verify(edited(copied, MANIFEST, (["of\x1b"], 1), (["targets", 0, "more"], 1)), model)
    assert result.problems == ()
    listed = [what for what in result.not_compared if what.startswith(MANIFEST)]
    assert len(listed) == 2 and "of\\x1b" in listed[0] and "more" in listed[1]


def test_a_row_without_a_bond(copied: Path, model: Path) -> None:
    rows = json.loads((copied / MANIFEST).read_text())["targets"]
    name = rows[0].pop("target")
    bare = {key: value for key, value in rows[0].items() if key != "bond"}
    changed = edited(copied, MANIFEST, (["targets", 0], {"target": name, **bare}))
    assert verify(changed, model).problems == (f"target {name}: no bond with {rows[0]['tensor']} is recorded",)


def test_sizes_that_a_lossless_folder_records(model: Path, tmp_path: Path) -> None:
    llmc.lossless(model, tmp_path / "coded")
    assert verify(tmp_path / "coded", model).ok
    changed = edited(tmp_path / "coded", MANIFEST, (["originals", "model.safetensors", "bytes"], 5))
    assert verify(changed, model).problems == (f"{MANIFEST}: originals is not what llmc writes for model",)


def test_an_artifact_in_the_cache_of_the_hub(artifact: Path, model: Path, tmp_path: Path) -> None:
    """All its files are links, to where the Hub's client keeps their content; other links are differences."""
    home = tmp_path / "models--user--artifact"
    snapshot = home / "snapshots" / "abc"
    (home / "blobs").mkdir(parents=True)
    for number, file in enumerate(p for p in sorted(artifact.rglob("*")) if p.is_file()):
        shutil.copyfile(file, home / "blobs" / f"{number}")
        link = snapshot / file.relative_to(artifact)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(home / "blobs" / f"{number}")
    assert verify(snapshot, model).problems == ()
    (tmp_path / "README.md").write_text("elsewhere")
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to(tmp_path / "README.md")
    assert verify(snapshot).problems[0] == "README.md: neither a file nor a folder: delete it"


def test_bytecode_beside_a_decoder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run instead of the source: verify names it, and the setting of docs/verify.md keeps Python from it."""
    source = next(copied.glob("kernel/build/torch-cpu/compressed_tensors.py"))
    planted = Path(cache_from_source(str(source)))
    other = copied.parent / "other.py"
    other.write_text("raise SystemExit('planted')")
    py_compile.compile(str(other), str(planted), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    edited(copied, MANIFEST)  # sealed or not: what is not a decoder of llmc's is named against an original
    monkeypatch.setattr(sys, "pycache_prefix", str(copied.parent / "elsewhere"))
    assert "sys.pycache_prefix" in (Path(__file__).parents[2] / "docs" / "verify.md").read_text()
    kernels = pytest.importorskip("kernels")
    kernel = kernels.get_local_kernel(copied / "kernel", backend="cpu")
    assert kernel.compressed_tensors.dequantize
    assert [p.name for p in copied.rglob("*.pyc")] == [planted.name]


def test_bytecode_that_was_sealed(copied: Path, model: Path) -> None:
    name = "kernel/build/torch-cpu/__pycache__/bits.cpython-311.pyc"
    (copied / name).parent.mkdir()
    (copied / name).write_bytes(b"code")
    line = f"{name}: not listed in SHA256SUMS: delete it, it may run in place of the source beside it"
    assert verify(copied).problems == (line,)
    assert verify(edited(copied, MANIFEST), model).problems[0].startswith(f"{name}: not the decoder that llmc")
