"""Model folders: index against shards, links, things that are no files, pickles; each refusal with its exact line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmc.errors import CheckpointError, LlmcError
from llmc.files import safetensors as safetensors_file
from llmc.files.safetensors import INDEX, SINGLE, load, read_file, read_folder

DAMAGED = "; the file is damaged: download it again"
MISMATCH = "; index and shards are not of one model: download both again"
LEADS = "; a weight_map must not lead elsewhere: do not trust this model"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(7)}


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": WEIGHTS["a"]}, folder / ONE)
    save_file({"b": WEIGHTS["b"], "c": WEIGHTS["c"]}, folder / TWO)
    write_index(folder, {"c": TWO, "a": ONE, "b": TWO})
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_folder(folder)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_shards_single_file_and_path_of_a_file_read_alike(sharded: Path, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / SINGLE)
    for place in (sharded, tmp_path, tmp_path / SINGLE):
        entries = read_folder(place)
        assert entries.keys() == WEIGHTS.keys()
        for name, weight in WEIGHTS.items():
            assert torch.equal(load(entries[name]), weight)
    write_index(tmp_path, dict.fromkeys(WEIGHTS, SINGLE))
    assert read_folder(tmp_path).keys() == WEIGHTS.keys()
    write_index(tmp_path, dict.fromkeys(WEIGHTS, ONE))
    assert refusal(tmp_path) == (
        f"{tmp_path / INDEX}: stands beside {SINGLE} but names {ONE}; remove the one that does not belong to the model"
    )


BAD_INDEXES: dict[str, tuple[str, str]] = {
    "empty": ("", "index is not a JSON object" + DAMAGED),
    "not JSON": ('{"weight_map": {"a"', "index is not JSON at byte 15" + DAMAGED),
    "list": ("[]", "index is not a JSON object" + DAMAGED),
    "no map": ("{}", "index has no weight_map, or an empty one" + DAMAGED),
    "empty map": ('{"weight_map": {}}', "index has no weight_map, or an empty one" + DAMAGED),
    "two maps": (f'{{"weight_map": {{"a": "{ONE}"}}, "weight_map": {{}}}}', "weight_map is listed twice" + DAMAGED),
    "map is a list": ('{"weight_map": []}', "weight_map is not an object of tensor and file names" + DAMAGED),
    "more after it": (f'{{"weight_map": {{"a": "{ONE}"}}}}}}', "index goes on after its end, at byte 57" + DAMAGED),
    "deep": ('{"x": ' + "[" * 100_000, "index is nested more than 32 deep" + DAMAGED),
    "duplicate": (
        f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}',
        "tensor a: listed twice in the weight_map" + DAMAGED,
    ),
    "number": ('{"weight_map": {"a": 1}}', "tensor a: its shard's name is not a string" + DAMAGED),
    "null": ('{"weight_map": {"a": null}}', "tensor a: its shard's name is not a string" + DAMAGED),
    "nested": ('{"weight_map": {"a": {"b": "c"}}}', "tensor a: its shard's name is not a string" + DAMAGED),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_a_bad_index_is_refused_in_one_line(case: str, sharded: Path) -> None:
    text, line = BAD_INDEXES[case]
    (sharded / INDEX).write_text(text)
    assert refusal(sharded) == f"{sharded / INDEX}: {line}"


@pytest.mark.parametrize(
    ("shard", "shown"),
    [
        ("../secret/model.safetensors", "../secret/model.safetensors"),
        ("/etc/model.safetensors", "/etc/model.safetensors"),
        ("sub/model.safetensors", "sub/model.safetensors"),
        ("..\\model.safetensors", "..\\model.safetensors"),
        ("m\0.safetensors", r"m\x00.safetensors"),
        ("..", ".."),
        ("", ""),
        ("pytorch_model.bin", "pytorch_model.bin"),
    ],
)
def test_an_index_leads_nowhere_else(shard: str, shown: str, sharded: Path) -> None:
    (sharded / "sub").mkdir()
    for place in (sharded / "sub", sharded.parent / "secret"):
        place.mkdir(exist_ok=True)
        save_file(WEIGHTS, place / SINGLE)
    write_index(sharded, {"a": shard})
    line = f"tensor a: its shard {shown} is not the name of a .safetensors file in the folder{LEADS}"
    assert refusal(sharded) == f"{sharded / INDEX}: {line}"


def test_index_and_shards_must_agree(sharded: Path) -> None:
    at = sharded / INDEX
    write_index(sharded, {"a": ONE, "b": TWO, "c": TWO, "d": ONE})
    assert refusal(sharded) == f"{at}: tensor d: not in its shard {ONE}{MISMATCH}"
    write_index(sharded, {"a": ONE, "b": TWO})
    assert refusal(sharded) == f"{sharded / TWO}: tensor c: not listed in the index{MISMATCH}"
    write_index(sharded, {"a": ONE, "b": TWO, "c": ONE})
    assert refusal(sharded) == f"{sharded / TWO}: tensor c: in {ONE} by the index{MISMATCH}"
    write_index(sharded, {"a": ONE, "b": TWO, "c": TWO})
    save_file({"a": WEIGHTS["a"], "b": WEIGHTS["b"]}, sharded / ONE)
    assert refusal(sharded) == (
        f"{sharded / ONE}: tensor b: also in {TWO}, where the index takes it from; "
        "readers differ in which copy counts; "
        "write the shards again with one copy of it, for example by save_pretrained of transformers"
    )
    (sharded / TWO).unlink()
    assert refusal(sharded) == f"{at}: tensor b: its shard {TWO} is missing; finish the download"
    (sharded / TWO).write_bytes(b"")
    assert refusal(sharded) == f"{sharded / TWO}: empty file{DAMAGED}"


def test_an_index_beyond_the_limits(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "LISTED_LIMIT", 2)
    assert refusal(sharded) == f"{sharded / INDEX}: weight_map has more than 2 members{DAMAGED}"
    os.truncate(sharded / INDEX, 100_000_001)
    assert refusal(sharded) == f"{sharded / INDEX}: 100000001 bytes long; the limit of an index is 100000000"


def test_things_that_are_no_files_do_not_block(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sharded)  # the address of a socket is short
    expected = "where a regular file is expected"
    for name in (TWO, INDEX):
        path = sharded / name
        path.unlink()
        os.mkfifo(path)
        assert refusal(sharded) == f"{path}: a FIFO {expected}"
        path.unlink()
        path.mkdir()
        assert refusal(sharded) == f"{path}: a folder {expected}"
        path.rmdir()
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(name)
            assert refusal(sharded) == f"{path}: a socket {expected}"
        path.unlink()
        path.symlink_to("/dev/zero")
        assert refusal(sharded) == (
            f"{path}: a symbolic link to /dev/zero, outside of its folder; put the file itself in its place"
        )
    with pytest.raises(CheckpointError) as caught:
        read_file(Path("/dev/zero"))
    assert str(caught.value) == f"/dev/zero: a device {expected}"


def test_links_may_stay_in_the_folder_only(sharded: Path, tmp_path: Path) -> None:
    (sharded / TWO).rename(sharded / "kept")
    (sharded / TWO).symlink_to("kept")
    assert read_folder(sharded).keys() == WEIGHTS.keys()
    (tmp_path / "alias").symlink_to(sharded)
    assert read_folder(tmp_path / "alias").keys() == WEIGHTS.keys()
    (sharded / "kept").rename(tmp_path / "kept")
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to("../kept")
    fix = "put the file itself in its place"
    outside = f"a symbolic link to {tmp_path / 'kept'}, outside of its folder; {fix}"
    assert refusal(sharded) == f"{sharded / TWO}: {outside}"
    (sharded / "between").symlink_to("../kept")
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to("between")
    assert refusal(sharded) == f"{sharded / TWO}: {outside}"
    (tmp_path / "kept").unlink()
    assert refusal(sharded) == f"{sharded / TWO}: cannot be read: No such file or directory"
    (sharded / "between").unlink()
    (sharded / "between").symlink_to(TWO)
    assert refusal(sharded) == f"{sharded / TWO}: cannot be read: Too many levels of symbolic links"


def test_a_link_swapped_in_after_the_header_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(WEIGHTS, folder / SINGLE)
    entry = read_folder(folder)["a"]
    (folder / SINGLE).rename(tmp_path / "elsewhere")
    (folder / SINGLE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load(entry)


def test_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot, blobs, other = repository / "snapshots" / "0123abcd", repository / "blobs", tmp_path / "hub" / "blobs"
    for folder in (snapshot / "sub", blobs, other):
        folder.mkdir(parents=True)
    save_file(WEIGHTS, blobs / "cafe")
    save_file(WEIGHTS, other / "cafe")
    (snapshot / SINGLE).symlink_to("../../blobs/cafe")
    (snapshot / "sub" / SINGLE).symlink_to("../../../blobs/cafe")
    for folder in (snapshot, snapshot / "sub"):
        assert torch.equal(load(read_folder(folder)["a"]), WEIGHTS["a"])
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to("../../../blobs/cafe")
    assert "outside of its folder" in refusal(snapshot)
    plain = tmp_path / "org" / "snapshots" / "r"
    plain.mkdir(parents=True)
    (plain / SINGLE).symlink_to("../../blobs/cafe")
    (tmp_path / "org" / "blobs").symlink_to(blobs)
    assert "outside of its folder" in refusal(plain)


def test_folders_without_weights(tmp_path: Path) -> None:
    fix = "give a folder that holds one of them"
    assert refusal(tmp_path) == f"{tmp_path}: no weights: neither {SINGLE} nor {INDEX}; {fix}"
    (tmp_path / "training_args.bin").touch()
    assert refusal(tmp_path) == f"{tmp_path}: no weights: neither {SINGLE} nor {INDEX}; {fix}"
    (tmp_path / ONE).touch()
    (tmp_path / "model.gguf").touch()
    found = f"only {ONE}, model.gguf"
    assert refusal(tmp_path) == f"{tmp_path}: no weights: neither {SINGLE} nor {INDEX}, {found}; {fix}"
    none = tmp_path / "none"
    assert refusal(none) == f"{none}: cannot be read: No such file or directory"
    (tmp_path / "notes.txt").touch()
    notes = tmp_path / "notes.txt"
    assert refusal(notes) == f"{notes}: neither a model folder nor a .safetensors file"


CODE = (
    "import sys,torch;from safetensors.torch import save_file;t={};"
    "[t.update(torch.load(f,'cpu',weights_only=True)) for f in sys.argv[2:]];"
    "save_file({k:v.clone().contiguous() for k,v in t.items()},sys.argv[1],{'format':'pt'})"
)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["pytorch_model-1.bin", "pytorch_model-2.bin"]])
def test_pickles_are_refused_with_a_command_that_converts_them(names: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "my model's"
    folder.mkdir()
    tied = torch.arange(6.0).reshape(2, 3)
    parts: list[dict[str, torch.Tensor]] = [{"head": tied, "embed": tied, "t": tied.t()}, {"z": torch.ones(2)}]
    for name, part in zip(names, parts, strict=False):
        torch.save(part, folder / name)
    torch.save({}, folder / "optimizer.pt")
    line = refusal(folder)
    quoted = str(folder).replace("'", "'\"'\"'")
    inputs = f"'{quoted}/{names[0]}'" if len(names) == 1 else f"'{quoted}'/pytorch_model-*.bin"
    assert line == (
        f"{folder}: weights are pickled ({names[0]}), which can run code when opened; "
        f"convert them: python -c \"{CODE}\" '{quoted}/model.safetensors' {inputs}"
    )
    command = line.split("convert them: ")[1].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, timeout=120)
    entries = read_folder(folder)
    wanted = {k: v for part in parts[: len(names)] for k, v in part.items()}
    assert entries.keys() == wanted.keys() == load_file(folder / SINGLE).keys()
    assert all(torch.equal(load(entries[name]), weight) for name, weight in wanted.items())


def test_a_pickle_named_itself_and_pickles_of_no_known_rule(tmp_path: Path) -> None:
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        (tmp_path / name).touch()
    pickled = "weights are pickled (consolidated.00.pth), which can run code when opened"
    assert refusal(tmp_path) == f"{tmp_path}: {pickled}; convert them with the program that wrote them"
    assert refusal(tmp_path / "consolidated.00.pth").startswith(f"{tmp_path}: {pickled}; convert them: python -c")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 86), st.integers(0, 255)), max_size=4), st.integers(0, 87))
def test_damage_of_an_index_raises_nothing_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    save_file({"a": WEIGHTS["a"]}, folder / "x.safetensors")
    text = b'{"metadata": {"total_size": 24}, "weight_map": {"a": "x.safetensors"}, "more": [1, {}]}'
    content = bytearray(text)
    for at, value in flips:
        content[at] = value
    for damaged in (content, content[:cut]):
        (folder / INDEX).write_bytes(damaged)
        try:
            assert read_folder(folder).keys() == {"a"}
        except LlmcError as error:
            assert str(error).isprintable()
