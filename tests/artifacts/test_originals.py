"""The archive of originals: what it may hold, what becomes of the rest, and what `decompress` says of it."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from folders import digests
from safetensors.torch import load_file, save

import llmc
from llmc.artifacts.lossless import originals
from llmc.errors import CheckpointError
from llmc.files.manifest import write_manifest
from llmc.files.travel import ARCHIVE

KERNEL = "kernel/build/torch-cpu/"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact, and its coded twin."""
    place = tmp_path_factory.mktemp("originals")
    model = tiny_models.build("llama", place / "model", num_hidden_layers=1)
    llmc.quantize(str(model), place / "artifact", method="rtn", bits=4, group_size=32)
    llmc.lossless(place / "artifact", place / "coded", exact_files=True)
    return place / "artifact", place / "coded"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reseal(folder: Path, **fields: Any) -> Path:
    """What a forger does: a manifest and a seal that agree with each other and with the files."""
    manifest = {**json.loads((folder / "llmc.json").read_text()), **fields}
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("files", "fields", "format_version")})
    return folder


def forged(coded: Path, place: Path, members: dict[str, bytes], **fields: Any) -> Path:
    """A coded folder whose archive holds `members` besides its own, and whose record lists them."""
    shutil.copytree(coded, place)
    recorded = json.loads((coded / "llmc.json").read_text())["original_digests"]
    with zipfile.ZipFile(place / ARCHIVE, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    fields = {"original_digests": recorded | {name: sha256(data) for name, data in members.items()}, **fields}
    return reseal(place, **fields)


def test_an_archive_holds_manifest_and_seal(made: tuple[Path, Path]) -> None:
    artifact, coded = made
    with zipfile.ZipFile(coded / ARCHIVE) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    assert held == {name: (artifact / name).read_bytes() for name in ("llmc.json", "SHA256SUMS")}
    assert json.loads((coded / "llmc.json").read_text())["original_digests"] == digests(artifact)


def test_other_weights_never_come_from_it(made: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, coded = made
    tensors = load_file(artifact / "model.safetensors")
    tensors["model.norm.weight"] *= 100
    weights = save(tensors, {"format": "pt"})
    folder = forged(coded, tmp_path / "forged", {"model.safetensors": weights})
    with pytest.raises(CheckpointError, match=r"holds 'model.safetensors', and weights never come from there"):
        llmc.decompress(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forged"]
    problem = f"{ARCHIVE} holds 'model.safetensors', and weights never come from there"
    assert llmc.verify(folder, against=artifact).problems == (problem,)


OTHERS = {
    "pytorch_model.bin": b"pickle",
    ".git/hooks/post-checkout": b"#!/bin/sh",
    ".env": b"TOKEN=1",
    "custom.py": b"import os",
    "sitecustomize.py": b"import os",
    "kernel/build/torch-cpu/evil.py": b"import os",
    "kernel/build/torch-cpu/__pycache__/bits.cpython-311.pyc": b"code",
    "deep/er/notes.txt": b"text",
    "config.json": b'{"auto_map": {}}',
    "tokenizer.json": b"{}",
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_but_manifest_and_seal_is_taken(made: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    artifact, coded = made
    folder = forged(coded, tmp_path / "forged", {name: OTHERS[name]})
    try:
        done = llmc.decompress(folder, tmp_path / "out")
    except CheckpointError as error:  # a digest of a file that the folder has
        assert name in ("config.json", "tokenizer.json") and f"{name} did not become what it was" in str(error)
        assert not (tmp_path / "out").exists()
        return
    kernel = name.startswith("kernel/")
    wanted = {n: d for n, d in digests(artifact).items() if not (kernel and n.startswith("kernel/"))}
    assert digests(tmp_path / "out") == wanted
    assert any(("kernel/" if kernel else name) in note for note in done.notes)


BROKEN: dict[str, dict[str, bytes]] = {
    "parent": {"../outside": b"x"},
    "absolute": {"/outside": b"x"},
    "backslash": {"..\\outside": b"x"},
    "inner parent": {"a/../../outside": b"x"},
    "weights below": {"sub/MODEL.SafeTensors": b"x"},
    "a folder": {"folder/": b""},
    "case": {"LLMC.json": b"x"},
    "unicode": {"caf\u00e9": b"x", "cafe\u0301": b"x"},
}


@pytest.mark.parametrize("case", BROKEN)
def test_names_that_no_artifact_has_are_refused(made: tuple[Path, Path], tmp_path: Path, case: str) -> None:
    folder = forged(made[1], tmp_path / "forged", BROKEN[case])
    with pytest.raises(CheckpointError) as caught:
        llmc.decompress(folder, tmp_path / "out")
    assert ARCHIVE in str(caught.value) or "original_digests" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forged"]


Write = Callable[[zipfile.ZipFile], object]


def link(archive: zipfile.ZipFile) -> None:
    about = zipfile.ZipInfo("llmc.json")
    about.external_attr = 0o120777 << 16
    archive.writestr(about, "../../private")


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("SHA256SUMS", "a")
    with pytest.warns(UserWarning):
        archive.writestr("SHA256SUMS", "b")


ARCHIVES: dict[str, tuple[Write, str]] = {
    "a link": (link, "holds 'llmc.json', which is no file of a folder"),
    "the same name twice": (twice, "holds 'SHA256SUMS', would take the place of SHA256SUMS"),
    "a bomb": (lambda a: a.writestr("llmc.json", bytes(64 << 20)), "holds 'llmc.json', which claims 67108864 bytes"),
    "another coder": (lambda a: a.writestr("llmc.json", b"x", zipfile.ZIP_LZMA), "packed in another way"),
    "many": (lambda a: [a.writestr(f"{i:0200}", b"") for i in range(6000)], "is damaged: it lists too many files"),
    "a comment": (lambda a: setattr(a, "comment", b"PK"), "is damaged: it does not end as an archive of llmc does"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_llmc_does_not_write_are_refused(made: tuple[Path, Path], tmp_path: Path, case: str) -> None:
    write, line = ARCHIVES[case]
    folder = Path(shutil.copytree(made[1], tmp_path / "forged"))
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        write(archive)
    with pytest.raises(CheckpointError) as caught:
        llmc.decompress(folder, tmp_path / "out")
    assert ARCHIVE in str(caught.value) and line in str(caught.value)
    assert line in str(llmc.verify(reseal(folder)).problems)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forged"]


def test_a_member_that_is_longer_than_it_says(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Its directory claims a few bytes, its stream holds as many as it likes: no more than claimed is unpacked."""
    folder = Path(shutil.copytree(made[1], tmp_path / "forged"))
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llmc.json", bytes(32 << 20))
    data = (folder / ARCHIVE).read_bytes()
    (folder / ARCHIVE).write_bytes(data.replace((32 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=f"{ARCHIVE} is damaged|did not become what it was"):
        llmc.decompress(folder, tmp_path / "out")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.parametrize(
    "fields",
    [
        {"original_digests": []},
        {"original_digests": {"llmc.json": 1}},
        {"original_digests": {"../llmc.json": "0" * 64}},
        {"original_files": []},
        {"original_files": {"config.json": 1}},
        {"original_files": {"evil.py": "import os"}},
        {"original_files": {"../config.json": "{}"}},
        {"holds": ["dense"]},
        {"holds": "no such format"},
    ],
)
def test_records_that_make_no_sense(made: tuple[Path, Path], tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = reseal(Path(shutil.copytree(made[1], tmp_path / "forged")), **fields)
    if fields.get("holds") == "no such format":
        notes = llmc.decompress(folder, tmp_path / "out").notes
        assert notes[0].startswith("left out: kernel/") and not (tmp_path / "out" / "kernel").exists()
        return
    with pytest.raises(CheckpointError, match=r"original_files|original_digests|holds"):
        llmc.decompress(folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forged"]


def as_before(artifact: Path, coded: Path, place: Path) -> Path:
    """A coded folder as llmc wrote it when its archive held the decoders too."""
    shutil.copytree(coded, place)
    with zipfile.ZipFile(place / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in artifact.rglob("*") if p.is_file()):
            name = path.relative_to(artifact).as_posix()
            if name in originals.HELD or name.startswith("kernel/"):
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return reseal(place)


def test_folders_of_older_versions_come_back(made: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, coded = made
    done = llmc.decompress(as_before(artifact, coded, tmp_path / "old"), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(artifact) and done.notes == () and done.exact


def test_decoders_of_another_version_are_left_out_and_named(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, coded = made
    old = as_before(artifact, coded, tmp_path / "old")
    shipped = originals.kernel_files
    monkeypatch.setattr(originals, "kernel_files", lambda names: {n: b"#\n" + d for n, d in shipped(names).items()})
    count = len(list((artifact / KERNEL).iterdir()))
    line = f"left out: kernel/, {count} files that are not those of this llmc; SHA256SUMS lists them still"
    for number, folder in enumerate((coded, old)):
        done = llmc.decompress(folder, out := tmp_path / str(number))
        assert done.notes == (line,) and line in str(done.tables())
        assert not (out / "kernel").exists()
        problems = llmc.verify(out).problems
        assert len(problems) == count and all("listed in SHA256SUMS, and missing" in p for p in problems)
    assert llmc.export(coded, tmp_path / "exported", format="compressed-tensors").notes == (line,)
    noted = llmc.lossless(artifact, tmp_path / "again").notes
    assert len(noted) == 1 and noted[0].startswith(f"left out: {KERNEL}__init__.py (not of this llmc)")


def test_what_an_artifact_has_besides_stays_and_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(made[0], tmp_path / "artifact"))
    for name in (".git/config", "kernel/build/torch-cpu/evil.py", "docs/a.md", "run.py", "notes.txt"):
        (artifact / name).parent.mkdir(parents=True, exist_ok=True)
        (artifact / name).write_text("x")
    result = llmc.lossless(artifact, tmp_path / "coded")
    assert result.notes == (
        "left out: .git/ (hidden), docs/, run.py",
        "left out: kernel/build/torch-cpu/evil.py",
    )
    llmc.decompress(tmp_path / "coded", tmp_path / "back")
    assert {*digests(tmp_path / "back")} == {*digests(made[0]), "notes.txt"}


def test_a_seal_that_is_a_link_makes_no_artifact(made: tuple[Path, Path], tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(made[0], tmp_path / "artifact"))
    (artifact / "SHA256SUMS").unlink()
    (tmp_path / "private").write_text("secret")
    (artifact / "SHA256SUMS").symlink_to("../private")
    result = llmc.lossless(artifact, tmp_path / "coded")
    assert "SHA256SUMS (a link)" in result.notes[0] and not (tmp_path / "coded" / ARCHIVE).exists()


def test_only_what_was_checked_is_said_to_be_the_same(made: tuple[Path, Path], tmp_path: Path) -> None:
    coded = made[1]
    done = llmc.decompress(coded, tmp_path / "whole")
    assert done.exact and done.checked == done.tensors and "byte for byte as they were" in str(done.tables())
    single = llmc.decompress(coded / "model.llmc.safetensors", tmp_path / "single")
    assert not single.exact and single.checked == 0
    assert "0 tensors bit for bit as they were, of the others there is no record" in str(single.tables())
    manifest = json.loads((coded / "llmc.json").read_text())
    fewer = dict(list(manifest["tensors"].items())[1:])
    folder = Path(shutil.copytree(coded, tmp_path / "fewer"))
    done = llmc.decompress(reseal(folder, tensors=fewer), tmp_path / "partly")
    assert not done.exact and done.checked == done.tensors - 1


def test_side_files_are_compared_with_their_seal(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[1], tmp_path / "coded"))
    (folder / "added.txt").write_text("x")
    done = llmc.decompress(folder, tmp_path / "out")
    assert done.notes == ("not checked, for lack of a record: added.txt",)
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"generation_config.json is not as it was sealed"):
        llmc.decompress(folder, tmp_path / "other")


def test_an_index_that_leads_elsewhere(made: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = json.loads((made[1] / "llmc.json").read_text())
    folder = Path(shutil.copytree(made[1], tmp_path / "coded"))
    index = {"weight_map": {"model.norm.weight": "other.safetensors"}}
    kept = {**manifest["original_files"], "model.safetensors.index.json": json.dumps(index)}
    with pytest.raises(CheckpointError, match="leads to other tensors than were decoded"):
        llmc.decompress(reseal(folder, original_files=kept), tmp_path / "out")
    assert not (tmp_path / "out").exists()
