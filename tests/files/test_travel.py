"""What may travel: trees of files, links, hidden and odd names through every verb that copies, archives or uploads."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from folders import digests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llmc
from llmc.artifacts.push import push
from llmc.errors import CheckpointError
from llmc.files.travel import ARCHIVE, JUNK, distinct, inside, note, refuse_secrets, survey

SECRET = b"this must never leave"
TOKENS = {
    "a token of Hugging Face": "hf_" + "aBcDeFgHiJ" * 3 + "kLmN",
    "a token of GitHub": "ghp_" + "a1B2c3D4e5F6" * 3,
    "a token of GitLab": "glpat-" + "a1B2c3D4e5F6-_a1B2c3",
    "a token of Slack": "xoxb-" + "123456789012-abcdefABCDEF",
    "a key of an API": "sk-proj-" + "a1B2c3D4e5F6g7H8i9_-",
    "a key of AWS": "AKIA" + "Q3W4E5R6T7Y8U9I0",
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "a password of a netrc file": "machine huggingface.co\nlogin me\npassword hunter22",
    "a password in an address": "https://me:" + "a1B2c3D4e5F6g7H8@example.org",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("travel") / "model", num_hidden_layers=1)


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    llmc.quantize(str(model), out := model.parent / "artifact", method="rtn", bits=4, group_size=32)
    return out


NAMES = """a.txt b NOTES tokenizer.x LICENSE chat_template.jinja 1_Pooling kernel config.json x Kernel README.md
    readme.md llmc.json SHA256SUMS Sha256Sums original.llmc.zip .git .env .ssh __pycache__ m.pyc m.swp m~ Thumbs.db
    .DS_Store x.llmc-partial a\u202eb a\x1bb"""
PARTS = st.sampled_from(NAMES.split())
KINDS = st.sampled_from(["file", "file", "folder", "link", "link to a folder", "link inside", "FIFO", "hard link"])
TREES = st.lists(st.tuples(st.lists(PARTS, min_size=1, max_size=3), KINDS), min_size=1, max_size=12)


def plant(folder: Path, private: Path, tree: list[tuple[list[str], str]]) -> set[str]:
    """Make a tree; the files of it that may travel: regular, below `folder`, with no hidden part and no junk."""
    allowed = set()
    for number, (parts, kind) in enumerate(tree):
        place = folder.joinpath(*parts)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_symlink() or place.exists() or not place.parent.resolve().is_relative_to(folder.resolve()):
                continue
            _make(place, private, kind, number)
        except (FileExistsError, NotADirectoryError):
            continue
        plain = not any(p.startswith(".") or JUNK.fullmatch(p) or not p.isprintable() for p in parts)
        if kind in ("file", "hard link") and plain:
            allowed.add(place.relative_to(folder).as_posix())
    return allowed


def _make(place: Path, private: Path, kind: str, number: int) -> None:
    if kind == "file":
        hidden = any(part.startswith(".") for part in place.parts[-3:])
        place.write_bytes(SECRET if hidden else b"plain %d" % number)
    elif kind == "folder":
        place.mkdir()
        (place / "inner").write_bytes(b"plain")
    elif kind == "hard link":
        os.link(private.parent / "shared", place)
    elif kind == "FIFO":
        os.mkfifo(place)
    else:
        os.symlink({"link": private / "key", "link to a folder": private}.get(kind, place.parent), place)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_only_regular_files_below_the_folder_travel(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    base = tmp_path_factory.mktemp("tree")
    folder, private = base / "folder", base / "private"
    for place in (folder, private):
        place.mkdir()
    (private / "key").write_bytes(SECRET)
    (base / "shared").write_bytes(b"shared")
    allowed = plant(folder, private, tree)
    found = survey(folder)
    assert allowed <= {*found.files}
    for name in found.files:
        path = folder / name
        assert path.resolve() == folder.resolve() / name and path.is_file()
        assert not any(part.startswith(".") or JUNK.fullmatch(part) for part in Path(name).parts)
    named = {name.rstrip("/") for name, _ in found.left_out}
    for path in folder.rglob("*"):  # each is among the files, or named once with its reason, or its folder is
        name = path.relative_to(folder).as_posix()
        parents = {"/".join(Path(name).parts[: n + 1]) for n in range(len(Path(name).parts))}
        assert (name in found.files) + len(parents & named) == (0 if _real_folder(path) and not parents & named else 1)
    top = survey(folder, deep=False)
    assert {*top.files} == {name for name in found.files if "/" not in name}


def _real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES, quantized=st.booleans())
def test_nothing_else_is_in_the_output_the_archive_or_the_upload(
    tmp_path_factory: pytest.TempPathFactory, model: Path, artifact: Path, tree: Any, quantized: bool
) -> None:
    base = tmp_path_factory.mktemp("verbs")
    folder, private = base / "folder", base / "private"
    shutil.copytree(artifact if quantized else model, folder)
    private.mkdir()
    (private / "key").write_bytes(SECRET)
    (base / "shared").write_bytes(b"shared")
    allowed = plant(folder, private, tree) | {*survey(artifact if quantized else model).files}
    result = llmc.lossless(folder, base / "out")
    assert len(" ".join(result.notes)) < 3000
    check_output(base / "out", allowed)
    llmc.decompress(base / "out", base / "back")
    check_output(base / "back", allowed)
    sent = (
        push(base / "out", "me/x", dry_run=True, verify=lambda path: None)
        if (base / "out/config.json").exists()
        else None
    )
    assert sent is None or {name for name, _ in sent.files} == {*survey(base / "out").files}


def check_output(folder: Path, allowed: set[str]) -> None:
    """A folder that llmc wrote holds what was allowed, and its own."""
    own = {
        "README.md",
        "config.json",
        "llmc.json",
        "SHA256SUMS",
        ARCHIVE,
        "model.llmc.safetensors",
        "model.safetensors",
    }
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        assert not path.is_symlink() and (path.is_file() or path.is_dir())
        assert path.is_dir() or name in allowed | own or name.startswith("kernel/build/torch-cpu/")
        assert path.is_dir() or SECRET not in path.read_bytes()
    if (folder / ARCHIVE).is_file():
        with zipfile.ZipFile(folder / ARCHIVE) as archive:
            assert {*archive.namelist()} == {"llmc.json", "SHA256SUMS"}


def test_links_of_the_cache_travel_and_others_do_not(tmp_path: Path) -> None:
    home = tmp_path / "models--me--x"
    snapshot = home / "snapshots" / "0"
    for place in (snapshot / "sub", home / "blobs"):
        place.mkdir(parents=True)
    (home / "blobs" / "aa").write_text("x")
    (tmp_path / "private").write_text("x")
    links = {
        "config.json": "../../blobs/aa",
        "sub/a.json": "../../../blobs/aa",
        "out": "../../../private",
        "ref": "../../refs",
        "chain": "../../blobs/bb",
        "gone": "../../blobs/cc",
        "all": "../../blobs",
    }
    os.symlink("../../private", home / "blobs" / "bb")
    for name, target in links.items():
        os.symlink(target, snapshot / name)
    found = survey(snapshot)
    assert found.files == ("config.json", "sub/a.json")
    assert found.left_out == tuple((name, "a link") for name in ("all", "chain", "gone", "out", "ref"))
    shutil.move(home / "blobs", tmp_path / "elsewhere")
    os.symlink("../elsewhere", home / "blobs")
    assert survey(snapshot).files == ()


def test_what_stays_is_named_once_and_briefly(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    for name in (".git/config", "onnx/model.onnx", "kernel", "README.MD", *(f"{i}.log~" for i in range(9))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "NOTES").symlink_to("../id_rsa")
    (folder / "tokenizer.extra").symlink_to("config.json")
    os.mkfifo(folder / "LICENSE.pipe")
    result = llmc.lossless(folder, tmp_path / "coded")
    assert result.notes == (
        "left out: .git/ (hidden), 0.log~ (a leftover), 1.log~ (a leftover), 2.log~ (a leftover), 3.log~ (a leftover), "
        "4.log~ (a leftover), 5.log~ (a leftover), 6.log~ (a leftover) and 8 more",
    )
    done = llmc.quantize(str(folder), tmp_path / "small", method="rtn", bits=4, group_size=32)
    assert done.notes == ("left out: LICENSE.pipe (not a file), tokenizer.extra (a link)",)
    line = note("left out", [("a" * 300, "hidden"), ("b\x1b[31m", "")])
    assert line == ("left out: " + "a" * 100 + " (hidden), b\\x1b[31m",)


@pytest.mark.parametrize("kind", TOKENS)
def test_secrets_are_refused_by_name_and_never_shown(model: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    for encoding in ("utf-8", "utf-16"):
        (folder / "setup.txt").write_bytes(f"# mine\nkey: {TOKENS[kind]}\n".encode(encoding))
        with pytest.raises(CheckpointError) as caught:
            llmc.lossless(folder, tmp_path / "out")
        fix = "move it out of the folder, or take it out of the file"
        assert str(caught.value) == f"model/setup.txt: looks like {kind}; {fix}"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["id_ed25519", "server.KEY", "credentials.json", "netrc", "prod.env", "secrets.yaml"])
def test_files_of_keys_are_refused_by_name(model: Path, artifact: Path, tmp_path: Path, name: str) -> None:
    for source in (model, artifact):
        folder = Path(shutil.copytree(source, tmp_path / source.name))
        (folder / name).write_text("x")
        with pytest.raises(
            CheckpointError, match=f"{source.name}/{name}: looks like a file of keys or passwords; move"
        ):
            llmc.lossless(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="looks like a file of keys"):
        push(folder, "me/x", dry_run=True)


def test_every_verb_refuses_a_token_before_any_work(model: Path, artifact: Path, tmp_path: Path) -> None:
    for number, (source, call) in enumerate(
        [
            (model, lambda f, out: llmc.plan(str(f), method="rtn", group_size=32)),
            (model, lambda f, out: llmc.quantize(str(f), out, method="rtn", group_size=32)),
            (model, lambda f, out: llmc.lossless(f, out)),
            (artifact, lambda f, out: llmc.export(f, out, format="dense")),
            (artifact, lambda f, out: push(f, "me/x", dry_run=True)),
        ]
    ):
        folder = Path(shutil.copytree(source, tmp_path / str(number)))
        (folder / "tokenizer_config.json").write_text(json.dumps({"auth_token": TOKENS["a token of Hugging Face"]}))
        with pytest.raises(
            CheckpointError, match=r"tokenizer_config.json: looks like a token of Hugging Face"
        ) as caught:
            call(folder, tmp_path / "out")
        assert "hf_" not in str(caught.value) and not (tmp_path / "out").exists()


def test_what_only_resembles_a_secret_is_none(tmp_path: Path) -> None:
    texts = {
        "README.md": "HF_TOKEN=hf_" + "x" * 34 + " AKIAIOSFODNN7EXAMPLE sk-learn, task-specific-but-long-enough-names",
        "guide.txt": "git clone https://user:password@host/x; https://a.b/c:d; -----BEGIN PUBLIC KEY-----",
        "SHA256SUMS": "0" * 64 + "  config.json",
        "vocab.json": json.dumps({TOKENS["a key of an API"]: 1}),
        "tokenizer.json": json.dumps({TOKENS["a token of GitHub"]: 1}),
        "key.md": "keys",
        "id_rsa.pub": "ssh-rsa AAAA",
        "tokens.txt": "hf_ sk- xoxb- glpat- ghp_ AKIA",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    refuse_secrets(tmp_path, texts)
    (tmp_path / "large.txt").write_bytes(b" " * (9 << 20) + TOKENS["a token of GitHub"].encode())
    refuse_secrets(tmp_path, ["large.txt"])


def test_paths_that_stay_inside() -> None:
    assert inside("a") and inside("a/b.json")
    out = ("", ".", "..", "../a", "/a", "a/../b", "a\\b", "a/", "./a", "a//b", "C:a", "a\0b")
    assert not [name for name in out if inside(name)]


def test_names_that_some_file_system_takes_for_one() -> None:
    names = ["A.txt", "a.txt", "caf\u00e9", "cafe\u0301", "stra\u00dfe", "STRASSE", "b"]
    kept, clashes = distinct([*names, "A.txt"], ["B", "A.txt"])
    assert kept == ["A.txt", "caf\u00e9", "stra\u00dfe"]
    takes = "would take the place of"
    assert clashes[0] == ("a.txt", f"{takes} A.txt")
    assert clashes[-2:] == [("b", f"{takes} B"), ("A.txt", f"{takes} A.txt")]


def test_a_folder_comes_back_without_what_llmc_writes_itself(model: Path, tmp_path: Path) -> None:
    """Names of llmc's own in a model folder, in other spellings and as folders."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    before = digests(folder)
    for name in ("kernel", "Kernel2/x", "Config.JSON", "readme.md", "llmc.json", "sha256sums", "Original.llmc.zip"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "README.md").mkdir()
    (folder / ARCHIVE).mkdir()
    llmc.lossless(folder, tmp_path / "coded", exact_files=True)
    assert llmc.verify(tmp_path / "coded", against=model).problems == ()
    done = llmc.decompress(tmp_path / "coded", tmp_path / "back")
    assert digests(tmp_path / "back") == before and done.exact and done.notes == ()
