"""Push and download with the real client against a local server that speaks the Hub's protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub, Reply

from llmc.artifacts.push import push
from llmc.errors import CheckpointError, LlmcError, NetworkError, UsageError, VerifyError
from llmc.files.manifest import write_manifest
from llmc.models.hub import resolve_model

CARD = "---\nbase_model: someone/original\nbase_model_relation: quantized\n---\n# A smaller model\n"
TOKEN = "hf_test"
WEIGHTS = {"model.safetensors": b"weights", "2_Dense/model.safetensors": b"of a module"} | dict.fromkeys(
    ("original/model.safetensors", "4bit/model.safetensors", "2_Dense/old/model.safetensors"), b"a copy"
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with LocalHub(tokens={TOKEN}) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "artifact"
    files = {
        "config.json": b'{"model_type": "llama"}',
        "model-00001-of-00002.safetensors": bytes(range(256)) * 5000,
        "model-00002-of-00002.safetensors": b"second shard",
        "model.safetensors.index.json": b"{}",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "LICENSE": b"Apache",
        "original.llmc.zip": b"files of what was coded",
        "README.md": CARD.encode(),
        "kernel/build/torch-cpu/__init__.py": b"def dequantize(): ...",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    write_manifest(root, {})
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failure(kind: type[LlmcError], call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def test_push_then_download_gives_the_same_bytes(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    result = push(folder, "me/small", token=TOKEN, endpoint=hub.url, progress=lambda *step: seen.append(step))
    stored = hub.repos["me/small"]
    assert {k: v for k, v in stored.commits[-1].files.items() if k != ".gitattributes"} == contents(folder)
    assert stored.private and not result.public
    assert result.committed and result.commit == stored.commits[-1].oid and len(stored.commits) == 2
    assert result.url == f"{hub.url}/me/small" and result.bytes == sum(map(len, contents(folder).values()))
    assert seen[-1][1] == seen[-1][2] == result.bytes
    assert hub.large.keys() and all(len(name) == 64 for name in hub.large)

    seen.clear()
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.url, "cache_dir": cache}
    local = resolve_model("me/small", **options, progress=lambda *step: seen.append(step))
    assert {p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()} == contents(
        folder
    )
    assert seen and seen[-1][0] == "download" and seen[-1][1] == seen[-1][2]
    assert resolve_model("me/small", revision=result.commit, **options) == local
    assert resolve_model(str(local)) == local
    assert resolve_model(str(local / "config.json")) == local


def test_the_same_content_again_makes_no_commit_and_sends_nothing(hub: LocalHub, folder: Path) -> None:
    first = push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    hub.log.clear()
    second = push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    assert not second.committed and second.commit == first.commit
    assert len(hub.repos["me/small"].commits) == 2
    assert {method for method, path, _ in hub.log if "create" not in path} == {"GET"}


def test_only_what_changed_is_sent_and_stale_weights_go(hub: LocalHub, folder: Path) -> None:
    push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    repo = hub.repos["me/small"]
    repo.commit("by hand", repo.commits[-1].files | {"notes.md": b"mine", "sub/model.safetensors": b"mine"})
    (folder / "model-00002-of-00002.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes(b'{"new": 1}')
    hub.log.clear()
    result = push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    assert result.removed == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    files = repo.commits[-1].files
    assert len(repo.commits) == 4
    assert files["notes.md"] == b"mine" and files["sub/model.safetensors"] == b"mine"
    assert {k: files[k] for k in contents(folder)} == contents(folder)
    assert not [path for method, path, _ in hub.log if method == "PUT"]  # the shard's bytes were there already


def test_dry_run_contacts_nobody(hub: LocalHub, folder: Path) -> None:
    result = push(folder, "me/small", dry_run=True, token=TOKEN, endpoint=hub.url)
    assert result.dry_run and not result.committed and result.commit == ""
    assert dict(result.files) == {name: len(data) for name, data in contents(folder).items()}
    assert hub.log == [] and hub.repos == {}
    document = result.to_json()
    assert json.loads(json.dumps(document)) == document | {"skipped": [], "removed": [], "notes": []}
    assert document["bytes"] == result.bytes and document["files"]["LICENSE"] == 6
    (table,) = result.tables()
    assert table.title == f"{hub.url}/me/small"
    assert table.rows[0] == ("LICENSE", "6")
    assert table.rows[-1] == ("12 files, private, would be sent", f"{result.bytes:,}")


def test_public_and_private_are_never_changed_silently(hub: LocalHub, folder: Path) -> None:
    assert push(folder, "me/open", public=True, token=TOKEN, endpoint=hub.url).public
    assert not hub.repos["me/open"].private
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.url}
    assert failure(UsageError, push, folder, "me/open", **options) == (
        "me/open: the repository exists and is public; "
        "pass --public, or change its visibility in its settings on the Hub"
    )
    push(folder, "me/small", **options)
    assert failure(UsageError, push, folder, "me/small", public=True, **options) == (
        "me/small: the repository exists and is private; "
        "leave --public out, or change its visibility in its settings on the Hub"
    )


def test_the_token_is_sent_with_every_request(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    resolve_model("me/small", token=TOKEN, endpoint=hub.url, cache_dir=tmp_path / "cache")
    storage = [entry for entry in hub.log if entry[1].startswith("/large/")]  # a signed address on the real Hub
    assert storage and {entry[2] for entry in hub.log if entry not in storage} == {f"Bearer {TOKEN}"}


def test_leftovers_are_not_sent(hub: LocalHub, folder: Path) -> None:
    for name in (".git/HEAD", ".DS_Store", "__pycache__/a.pyc", "model.safetensors.tmp", "notes~", "optimizer.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    result = push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    assert set(result.skipped) == {
        ".DS_Store",
        ".git/",
        "__pycache__/",
        "model.safetensors.tmp",
        "notes~",
        "optimizer.pt",
    }
    assert not set(result.skipped) & hub.repos["me/small"].commits[-1].files.keys()


def test_verification_comes_first(hub: LocalHub, folder: Path) -> None:
    def refuse(path: Path) -> None:
        assert path == folder
        raise VerifyError("a bit flipped")

    assert failure(VerifyError, push, folder, "me/small", verify=refuse, endpoint=hub.url) == "a bit flipped"
    assert hub.log == []


def test_a_card_that_names_no_original_is_mentioned(hub: LocalHub, folder: Path) -> None:
    (folder / "README.md").write_text("# no fields\n")
    result = push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    note = "its card names no original on the Hub, so nothing links the two; --base-model user/name does"
    assert result.notes == (note,) and result.tables()[1].rows == ((note,),)
    result = push(folder, "me/small", base_model="a/b", token=TOKEN, endpoint=hub.url)
    head = b"---\nbase_model: a/b\nbase_model_relation: quantized\n---\n"
    assert not result.notes and hub.repos["me/small"].commits[-1].files["README.md"] == head + b"# no fields\n"
    assert (folder / "README.md").read_text() == "# no fields\n"
    assert not push(folder, "me/small", base_model="a/b", token=TOKEN, endpoint=hub.url).committed
    assert failure(UsageError, push, folder, "me/small", base_model="b", dry_run=True) == (
        "--base-model b: not a Hub id; write it as user/name"
    )


def test_folders_that_cannot_be_pushed(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "several" / "gptq").mkdir(parents=True)
    (tmp_path / "several" / "gptq" / "config.json").write_text("{}")
    several = tmp_path / "several"
    assert failure(CheckpointError, push, several, "me/small") == (
        f"{several}: not a model folder: it has no config.json; push one of the folders inside: gptq"
    )
    assert failure(CheckpointError, push, tmp_path / "none", "me/small") == (
        f"{tmp_path}/none: not a model folder: it has no config.json; give the folder of a finished run"
    )
    assert failure(UsageError, push, folder, "a/b/c") == "a/b/c: not a Hub id; write it as user/name"
    assert failure(UsageError, push, folder, "small") == (
        "small: not a whole Hub id; put the user before it: user/small"
    )
    (folder / "README.md").write_text(CARD.replace("---\nbase", "---\nlicense: no-such-licence\nbase", 1))
    assert failure(CheckpointError, push, folder, "me/small", token=TOKEN, endpoint=hub.url) == (
        'me/small: Invalid metadata in README.md. - "license" must be one of the known ones'
    )
    (folder / "README.md").unlink()
    line = failure(CheckpointError, push, folder, "me/small")
    assert line == f"{folder}/README.md: there is no model card; write one, or quantize again"
    (folder / "link").symlink_to("/etc/hostname")
    line = failure(CheckpointError, push, folder, "me/small")
    assert line == f"{folder}/link: a link, not a file; replace it by the file it points to"


def test_a_server_that_is_gone(folder: Path, tmp_path: Path) -> None:
    with LocalHub(tokens=set()) as server:
        gone = server.url
    line = "me/small: the Hub cannot be reached (ConnectError); check the network and try again"
    assert failure(NetworkError, push, folder, "me/small", token=TOKEN, endpoint=gone) == line
    assert failure(NetworkError, resolve_model, "me/small", endpoint=gone, cache_dir=tmp_path) == line


def test_a_server_that_fails(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.failing = {"/commit/": Reply(b"{}", 500)}
    line = "me/small: the Hub cannot be reached (HTTP 500); check the network and try again"
    assert failure(NetworkError, push, folder, "me/small", token=TOKEN, endpoint=hub.url) == line
    assert len(hub.repos["me/small"].commits) == 1
    hub.large.clear()
    hub.failing = {"/large/": Reply(b"{}", 403)}
    assert failure(UsageError, push, folder, "me/small", token=TOKEN, endpoint=hub.url) == (
        "me/small: the Hub refuses the token (HTTP 403); pass one that may do this, or run hf auth login"
    )
    hub.failing = {"/api/models": Reply(b"{}", 500)}
    assert failure(NetworkError, resolve_model, "me/small", token=TOKEN, endpoint=hub.url, cache_dir=tmp_path) == line


def test_offline_with_and_without_a_cached_copy(
    hub: LocalHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, "me/small", token=TOKEN, endpoint=hub.url)
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    local = resolve_model("me/small", **options)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_model("me/small", **options) == local
    assert failure(NetworkError, resolve_model, "me/other", **options) == (
        "me/other: the Hub cannot be reached (OfflineModeIsEnabled); check the network and try again"
    )


def test_models_that_cannot_be_read(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add("me/secret", {"config.json": b"{}"}, private=True)
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    missing = (
        "neither a folder here nor a model on the Hub that can be read; "
        "check the name; a private one needs a token (hf auth login)"
    )
    assert failure(CheckpointError, resolve_model, "me/nothing", **options, token=TOKEN) == f"me/nothing: {missing}"
    assert failure(CheckpointError, resolve_model, "me/secret", **options) == f"me/secret: {missing}"
    assert failure(CheckpointError, resolve_model, "me/secret", **options, token=TOKEN, revision="v2") == (
        f"me/secret: {missing.replace('read;', 'read at revision v2;')}"
    )
    assert failure(CheckpointError, resolve_model, "me/secret", **options, token=TOKEN) == (
        "me/secret: the repository holds no safetensors weights"
    )
    assert failure(UsageError, resolve_model, "me/secret", **options, token="stale") == (
        "me/secret: the Hub refuses the token (HTTP 401); pass one that may do this, or run hf auth login"
    )
    assert failure(UsageError, push, folder, "me/secret", endpoint=hub.url, token="stale") == (
        "me/secret: the Hub refuses the token (HTTP 401); pass one that may do this, or run hf auth login"
    )
    hub.failing = {"/api/models": Reply(b"{}", 403, {"X-Error-Code": "GatedRepo"})}
    assert failure(CheckpointError, resolve_model, "me/gated", **options, token=TOKEN) == (
        "me/gated: its owner has to grant access; "
        "accept its terms at https://huggingface.co/me/gated and pass a token that may read it"
    )
    for path in ("./nothing", "/no/such/model", "a/b/c", "out/"):
        assert failure(CheckpointError, resolve_model, path) == (
            f"{path}: no such folder; give a model folder or a Hub id like user/name"
        )
    assert failure(CheckpointError, resolve_model, "what is this") == (
        "what is this: no such folder; give a model folder or a Hub id like user/name"
    )
    assert failure(CheckpointError, resolve_model, "user/what is this") == (
        "user/what is this: neither a folder here nor a Hub id; write a Hub id as user/name"
    )
    assert failure(CheckpointError, resolve_model, "user/name@v1.0") == (
        "user/name@v1.0: neither a folder here nor a Hub id, which has no @ in it; write user/name --revision v1.0"
    )
    assert failure(UsageError, resolve_model, str(folder), revision="main") == (
        f"{folder}: a local folder has no revisions; leave --revision out"
    )


def test_pickles_and_programs_are_never_fetched(hub: LocalHub, tmp_path: Path) -> None:
    code = {"modeling.py": b"import os", "pytorch_model.bin": b"pickle", "config.json": b"{}"}
    hub.add("me/pickled", code)
    hub.add("me/both", code | WEIGHTS)
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    local = resolve_model("me/both", **options)
    files = sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
    assert files == ["2_Dense/model.safetensors", "config.json", "model.safetensors"]
    assert failure(CheckpointError, resolve_model, "me/pickled", **options) == (
        "me/pickled: weights are pickled (pytorch_model.bin), which can run code when opened; fetch them with "
        "`hf download me/pickled --local-dir pickled`; for that folder llmc names the command that converts them"
    )
    fetched = [path for method, path, _ in hub.log if "/resolve/" in path]
    assert fetched and not [path for path in fetched if path.endswith((".py", ".bin"))]


def test_whatever_an_artifact_carries_is_downloaded_too() -> None:
    """One that lacked a file after a download would fail its own seal."""
    from fnmatch import fnmatchcase

    from llmc.artifacts.sidecar import CARRIED
    from llmc.models.hub import ALLOWED, REFUSED

    endings = ("", ".json", ".txt", ".bpe", ".md")
    names = {p.replace("*", e) if p.endswith("*") else p.replace("*", "x" + e) for p in CARRIED for e in endings}
    names = {name for name in names if not any(fnmatchcase(name, pattern) for pattern in REFUSED)}
    assert sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in ALLOWED)) == []
