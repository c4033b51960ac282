"""Hubs and networks that do what they should not: redirects to others, cut downloads, names and links that lead out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub, Reply, digest

from llmc.artifacts.push import push
from llmc.errors import CheckpointError, LlmcError, NetworkError
from llmc.models.hub import resolve_model

TOKEN = "hf_test"
WEIGHTS = bytes(range(256)) * 2000
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}
CARD = b"---\nbase_model: someone/original\nbase_model_relation: quantized\n---\n"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[LocalHub, LocalHub]]:
    """A Hub, and a server that is none of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with LocalHub(tokens={TOKEN}) as hub, LocalHub(tokens={TOKEN}) as other:
        yield hub, other


def fetched(hub: LocalHub, tmp_path: Path, **options: Any) -> Path:
    options = {"token": TOKEN, "endpoint": hub.url, "cache_dir": tmp_path / "cache", **options}
    return resolve_model("me/model", **options)


def redirect(target: str, content: bytes, commit: str, status: int = 302) -> Reply:
    """What the Hub answers for a large file: where a storage host has it."""
    about = {"X-Linked-Etag": f'"{digest("x.safetensors", content)}"', "X-Linked-Size": str(len(content))}
    return Reply(b"", status, {"Location": target, "X-Repo-Commit": commit, **about})


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_token_does_not_follow_a_file_to_another_host(
    servers: tuple[LocalHub, LocalHub], tmp_path: Path, status: int
) -> None:
    hub, other = servers
    commit = hub.add("me/model", FILES).commits[-1].oid
    hub.failing = {"model.safetensors": redirect(f"{other.url}/storage/x", WEIGHTS, commit, status)}
    other.failing = {"/storage/": Reply(WEIGHTS)}
    assert (fetched(hub, tmp_path) / "model.safetensors").read_bytes() == WEIGHTS
    assert any(TOKEN in heard for heard in hub.heard)
    assert other.heard and not any(TOKEN in heard for heard in other.heard)


@pytest.mark.parametrize("part", ["GET /api/models", "config.json", "POST /api", "PUT /large", "/objects/batch"])
def test_a_token_does_not_follow_anything_else(servers: tuple[LocalHub, LocalHub], tmp_path: Path, part: str) -> None:
    hub, other = servers
    hub.add("me/model", FILES)
    hub.failing = {part: Reply(b"", 307, {"Location": f"{other.url}/elsewhere"})}
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name, content in {**FILES, "README.md": CARD}.items():
        (folder / name).write_bytes(content)
    for call in (lambda: fetched(hub, tmp_path), lambda: push(folder, "me/small", token=TOKEN, endpoint=hub.url)):
        try:
            call()
        except LlmcError:
            continue
    assert any(TOKEN in heard for heard in hub.heard)
    assert not any(TOKEN in heard for heard in other.heard)


CUTS: dict[str, Reply] = {
    "cut": Reply(WEIGHTS, cut=1000),
    "cut, of unknown length": Reply(WEIGHTS, cut=1000, measured=False),
    "shorter": Reply(WEIGHTS[:-1]),
    "longer": Reply(WEIGHTS + b"x"),
    "empty": Reply(b""),
    "an error page": Reply(b"<html>try later</html>"),
    "other bytes": Reply(bytes(len(WEIGHTS))),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_download_that_was_cut_is_not_taken_as_complete(
    servers: tuple[LocalHub, LocalHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    hub, _ = servers
    oid = hub.add("me/model", FILES).commits[-1].oid
    tag = {"X-Repo-Commit": oid, "ETag": f'"{digest("x.safetensors", WEIGHTS)}"'}
    CUTS[case].headers.update(tag)
    hub.failing = {f"GET /me/model/resolve/{oid}/model.safetensors": CUTS[case]}
    with pytest.raises(LlmcError) as caught:
        fetched(hub, tmp_path)
    assert caught.value.exit_code in (2, 3) and "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LlmcError):
        fetched(hub, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.failing = {}
    assert (fetched(hub, tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_damage_beside_a_failure_is_not_kept(servers: tuple[LocalHub, LocalHub], tmp_path: Path) -> None:
    """One shard comes with other bytes, the other not at all: the next run fetches both."""
    hub, _ = servers
    shards = {f"model-0000{i}-of-00002.safetensors": WEIGHTS[i:] for i in (1, 2)}
    first, second = shards
    oid = hub.add("me/model", {"config.json": b"{}", **shards}).commits[-1].oid
    tag = {"X-Repo-Commit": oid, "ETag": f'"{digest(first, shards[first])}"'}
    hub.failing = {f"GET /me/model/resolve/{oid}/{first}": Reply(bytes(len(shards[first])), headers=tag)}
    hub.failing[f"GET /me/model/resolve/{oid}/{second}"] = Reply(b"", 500)
    with pytest.raises(NetworkError):
        fetched(hub, tmp_path)
    hub.failing = {}
    folder = fetched(hub, tmp_path)
    assert {name: (folder / name).read_bytes() for name in shards} == shards


def test_a_server_that_goes_in_the_middle(servers: tuple[LocalHub, LocalHub], tmp_path: Path) -> None:
    hub, _ = servers
    hub.add("me/model", FILES)
    hub.failing = {"GET /me/model/resolve": Reply(b"", 503)}
    with pytest.raises(NetworkError):
        fetched(hub, tmp_path)
    hub.failing = {}
    assert (fetched(hub, tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


NAMES = {"../out.json": True, "/tmp.json": True, "a/../../out.json": True, "..\\out.json": True, "a//b.json": False}


@pytest.mark.parametrize("name", [*NAMES, "x\0.json"])
def test_names_that_lead_out_of_the_cache(servers: tuple[LocalHub, LocalHub], tmp_path: Path, name: str) -> None:
    hub, _ = servers
    hub.add("me/model", FILES | {name: b"stray"})
    if NAMES.get(name, True):
        with pytest.raises(CheckpointError) as caught:
            fetched(hub, tmp_path)
        assert str(caught.value) == (
            "me/model: the repository has a file whose name leads out of its folder; do not trust this model"
        )
    else:
        fetched(hub, tmp_path)
    inside = tmp_path / "cache" / "models--me--model"
    stray = [p for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes() == b"stray"]
    assert not [p for p in stray if not p.is_relative_to(inside)]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "kernel"])
def test_links_of_a_snapshot_that_lead_elsewhere(servers: tuple[LocalHub, LocalHub], tmp_path: Path, name: str) -> None:
    hub, _ = servers
    hub.add("me/model", FILES)
    folder = fetched(hub, tmp_path)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "file").write_bytes(b"private")
    (folder / name).unlink(missing_ok=True)
    os.symlink(tmp_path / "private" / ("" if name == "kernel" else "file"), folder / name)
    with pytest.raises(CheckpointError) as caught:
        fetched(hub, tmp_path)
    assert str(caught.value) == (
        f"me/model: its copy in the cache has a link that leads elsewhere: {name}; remove {folder} and try again"
    )
