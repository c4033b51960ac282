"""A Hub in memory: the part of the Hugging Face Hub's HTTP protocol that its Python client uses to create a repository,
upload (regular and large files), commit, look up and download. For tests: one process, no pages, no xet."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
LARGE = re.compile(r".*\.(safetensors|bin|parquet)$")


@dataclass
class Commit:
    oid: str
    message: str
    files: Files


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def commit(self, message: str, files: Files) -> Commit:
        seed = f"{len(self.commits)}{message}{sorted(files)}".encode()
        self.commits.append(Commit(hashlib.sha1(seed).hexdigest(), message, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Reply:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # close the connection after so many bytes of the body
    measured: bool = True  # say how long the body is


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **names})


class LocalHub:
    """The server and what it holds. `with LocalHub(tokens={"t"}) as hub: ... hub.url`"""

    def __init__(self, tokens: set[str]) -> None:
        self.tokens = tokens
        self.repos: dict[str, Repo] = {}  # "user/name" or "datasets/user/name"
        self.large: dict[str, bytes] = {}  # SHA-256 -> content of a large file
        self.log: list[tuple[str, str, str]] = []  # method, path, authorization
        self.heard: list[str] = []  # the same requests, with all their headers
        self.failing: dict[str, Reply] = {}  # part of a path, or "METHOD path" -> what to answer instead
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: Files, *, private: bool = False) -> Repo:
        """Put a repository there without the protocol."""
        self.repos[name] = Repo(private)
        self.repos[name].commit("initial commit", files)
        return self.repos[name]

    def answer(self, method: str, path: str, token: str, body: bytes) -> Reply:
        for part, reply in self.failing.items():
            if part in f"{method} {path}":
                return reply
        if token and token not in self.tokens:
            message = "Invalid credentials in Authorization header"
            return as_json({"error": message}, 401, X_Error_Message=message)
        for verb, pattern, respond in ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method.replace("HEAD", "GET") and match:
                return respond(self, [unquote(part or "") for part in match.groups()], token, body)
        return as_json({"error": f"not spoken here: {method} {path}"}, 404)


def _handler(hub: LocalHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            path = urlsplit(self.path).path
            authorization = self.headers.get("Authorization", "")
            hub.log.append((self.command, path, authorization))
            hub.heard.append(f"{self.command} {self.path}\n{self.headers}")
            reply = hub.answer(self.command, path, authorization.removeprefix("Bearer "), self.body())
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.measured:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut])
            self.close_connection = self.close_connection or reply.cut is not None or not reply.measured

        do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815 (http.server's names)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def digest(name: str, content: bytes) -> str:
    """What the Hub knows a file by: SHA-256 of large ones, git's blob id of the others."""
    if LARGE.match(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _readable(hub: LocalHub, name: str, token: str) -> Repo | Reply:
    repo = hub.repos.get(name)
    if repo is not None and (token or not repo.private):
        return repo
    if not token:  # the real one does not tell strangers what exists
        return as_json({"error": "Invalid username or password."}, 401, X_Error_Code="RepoNotFound")
    return as_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")


def _key(kind: str, name: str) -> str:
    return f"datasets/{name}" if kind.startswith("datasets") else name


def _at(hub: LocalHub, name: str, revision: str, token: str) -> tuple[Repo, Commit] | Reply:
    repo = _readable(hub, name, token)
    if isinstance(repo, Reply):
        return repo
    commit = repo.at(revision)
    if commit is None:
        return as_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
    return repo, commit


def _create(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if not token:
        return as_json({"error": "Invalid username or password."}, 401)
    if name in hub.repos:
        return as_json({"error": "You already created this repository", "url": f"{hub.url}/{name}"}, 409)
    hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=asked.get("visibility") == "private")
    return as_json({"url": f"{hub.url}/{name}", "id": name})


def _info(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    kind, name, revision = parts
    found = _at(hub, _key(kind, name), revision or "main", token)
    if isinstance(found, Reply):
        return found
    repo, commit = found
    siblings = [{"rfilename": path} for path in commit.files]
    return as_json({"id": name, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": []})


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": digest(path, content)}
    if LARGE.match(path):
        entry["lfs"] = {"oid": digest(path, content), "size": len(content), "pointerSize": 134}
    return entry


def _tree(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    kind, name, revision, under = parts
    found = _at(hub, _key(kind, name), revision, token)
    if isinstance(found, Reply):
        return found
    files = found[1].files
    return as_json([_entry(path, files[path]) for path in files if path.startswith(under and f"{under}/")])


def _paths(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    kind, name, revision = parts
    found = _at(hub, _key(kind, name), revision, token)
    if isinstance(found, Reply):
        return found
    asked = json.loads(body)["paths"]
    return as_json([_entry(path, content) for path, content in found[1].files.items() if path in asked])


def _preupload(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    kind, name, revision = parts
    found = _at(hub, _key(kind, name), revision, token)
    if isinstance(found, Reply):
        return found
    answers = []
    for file in json.loads(body)["files"]:
        path = file["path"]
        held = found[1].files.get(path)
        mode = "lfs" if LARGE.match(path) else "regular"
        oid = None if held is None else digest(path, held)
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return as_json({"files": answers})


def _batch(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    answers: list[dict[str, object]] = []
    for item in json.loads(body)["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in hub.large:
            answer["actions"] = {"upload": {"href": f"{hub.url}/large/{item['oid']}"}}
        answers.append(answer)
    return as_json({"transfer": "basic", "objects": answers})


def _store(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    if hashlib.sha256(body).hexdigest() != parts[0]:
        return as_json({"error": "content does not match its digest"}, 400)
    hub.large[parts[0]] = body
    return as_json({})


def _commit(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    kind, name, revision = parts
    found = _at(hub, _key(kind, name), revision, token)
    if isinstance(found, Reply):
        return found
    repo, parent = found
    files, message = dict(parent.files), ""
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            message = value["summary"]
            if value.get("parentCommit", parent.oid) != parent.oid:
                return as_json({"error": "A commit has happened since"}, 412)
        elif item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = hub.large[value["oid"]]
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    commit = repo.commit(message, files)
    return as_json({"commitOid": commit.oid, "commitUrl": f"{hub.url}/{name}/commit/{commit.oid}"})


def _resolve(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    kind, name, revision, path = parts
    found = _at(hub, _key(kind, name), revision, token)
    if isinstance(found, Reply):
        return found
    commit = found[1]
    headers = {"X-Repo-Commit": commit.oid}
    if path not in commit.files:
        return Reply(b"{}", 404, {**headers, "X-Error-Code": "EntryNotFound"})
    content = commit.files[path]
    return Reply(content, 200, {**headers, "ETag": f'"{digest(path, content)}"', "Accept-Ranges": "bytes"})


def _valid(hub: LocalHub, parts: list[str], token: str, body: bytes) -> Reply:
    if "license: no-such-licence" in json.loads(body)["content"]:
        return as_json({"errors": [{"message": '"license" must be one of the known ones'}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


Respond = Callable[[LocalHub, list[str], str, bytes], Reply]
_REPO = "/api/(models|datasets)/([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Respond]] = [
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _valid),
    ("GET", f"{_REPO}(?:/revision/([^/]+))?", _info),
    ("GET", f"{_REPO}/tree/([^/]+)(?:/(.*))?", _tree),
    ("POST", f"{_REPO}/paths-info/([^/]+)", _paths),
    ("POST", f"{_REPO}/preupload/([^/]+)", _preupload),
    ("POST", f"{_REPO}/commit/([^/]+)", _commit),
    ("POST", r"/.*\.git/info/lfs/objects/batch", _batch),
    ("PUT", "/large/(.*)", _store),
    ("GET", "/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)", _resolve),
]
