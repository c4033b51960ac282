"""Artifacts to the Hugging Face Hub: `push` makes a repository hold what the folder holds, in one commit or none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from llmc.artifacts.publish import published
from llmc.errors import CheckpointError, UsageError, printable
from llmc.files.travel import refuse_secrets, survey
from llmc.models.hub import PICKLES, hub_errors
from llmc.models.snapshot import is_digest
from llmc.results import Progress, Table, silent

WEIGHTS = re.compile(r"[^/]*\.safetensors(\.index\.json)?")  # at the top of a repository: what a loader would pick up
UNNAMED = "its card names no original on the Hub, so nothing links the two; --base-model user/name does"


@dataclass(frozen=True)
class PushResult:
    """What a push did, or under `dry_run` would do.

    Args:
        repo: the id, `user/name`.
        url: where it can be seen.
        files: (path in the repository, bytes) of everything the folder contributes.
        skipped: files of the folder that are not part of a model (hidden files, caches, leftovers).
        removed: weight files of an earlier push that this folder no longer has.
        commit: the commit that holds this content; "" under `dry_run`.
        committed: whether this push made it; False when the repository held the content already.
        public: whether everybody can read it.
        notes: what its owner may want to mend.
    """

    repo: str
    url: str
    files: tuple[tuple[str, int], ...]
    skipped: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    commit: str = ""
    committed: bool = False
    public: bool = False
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    def to_json(self) -> dict[str, Any]:
        """The result under `--json`."""
        return {**asdict(self), "files": dict(self.files), "bytes": self.bytes}

    def tables(self) -> tuple[Table, ...]:
        """The result for people: the files, then what became of them."""
        rows = [(name, f"{size:,}") for name, size in self.files]
        rows += [(name, "left out") for name in self.skipped] + [(name, "removed there") for name in self.removed]
        state = "would be sent" if self.dry_run else f"commit {self.commit[:12]}" if self.committed else "held already"
        rows.append((f"{len(self.files)} files, {'public' if self.public else 'private'}, {state}", f"{self.bytes:,}"))
        notes = [Table("Notes", ("note",), tuple((note,) for note in self.notes))] if self.notes else []
        return (Table(self.url, ("file", "bytes"), tuple(rows)), *notes)


def push(
    folder: Path | str,
    repo: str,
    *,
    public: bool = False,
    base_model: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    verify: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
) -> PushResult:
    """Make the repository `repo` hold what `folder` holds, in one commit; no commit when it does already.

    Its card is completed: the snippets name the repository, and `base_model` the original. The folder stays as it is.
    Files of the repository that the folder lacks stay, except weight files: a loader would mix them with the new ones.

    Args:
        folder: an artifact.
        repo: `user/name`; created, private unless `public`, when it does not exist.
        base_model: Hub id of the original, where the card does not name it.
        dry_run: list what would be sent and contact nobody.
        token: one that may write; None uses the one `hf auth login` stored.
        endpoint: the Hub's address; None for huggingface_hub's own.
        verify: called first with the folder; raises when the artifact is not what it says.

    Raises:
        CheckpointError: not a model folder, or without a card that can be read.
        UsageError: the repository's visibility is not the one asked for, or the Hub refuses the token.
        NetworkError: the Hub cannot be reached.
    """
    folder = Path(folder)
    _check_id(repo)
    files, skipped = _folder_files(folder)
    changed, fields = published(folder, repo, base_model)
    if verify is not None:
        verify(folder)
    contents = {name: changed.get(name, folder / name) for name in files}
    sizes = tuple((n, len(c) if isinstance(c, bytes) else c.stat().st_size) for n, c in contents.items())
    address = f"{(endpoint or 'https://huggingface.co').rstrip('/')}/{repo}"
    notes = () if fields.get("base_model") else (UNNAMED,)
    result = PushResult(repo, address, sizes, skipped, public=public, dry_run=dry_run, notes=notes)
    if dry_run:
        return result
    with hub_errors(repo, "no repository that this token can write"), _quiet():
        return _upload(contents, result, token, endpoint, progress or silent)


def _upload(
    contents: Mapping[str, Path | bytes],
    result: PushResult,
    token: str | None,
    endpoint: str | None,
    progress: Progress,
) -> PushResult:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint, token=token, library_name="llmc")
    api.create_repo(result.repo, private=not result.public, exist_ok=True)
    info = api.model_info(result.repo)
    _check_visibility(result, bool(info.private))
    tree = api.list_repo_tree(result.repo, recursive=True, revision=info.sha)
    stored = {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in tree if isinstance(f, RepoFile)}
    additions: list[CommitOperationAdd] = []
    for i, (name, content) in enumerate(contents.items()):
        progress("compare with the Hub", i, len(contents))
        if name not in stored or not is_digest(content, stored[name]):
            additions.append(CommitOperationAdd(name, content))
    removed = tuple(sorted(name for name in stored if WEIGHTS.fullmatch(name) and name not in contents))
    if not additions and not removed:
        return replace(result, commit=info.sha or "")
    total = sum(addition.upload_info.size for addition in additions)
    done = 0
    for addition in additions:
        progress(f"upload {addition.path_in_repo}", done, total)
        api.preupload_lfs_files(result.repo, [addition], free_memory=False)
        done += addition.upload_info.size
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [*additions]
    operations += [CommitOperationDelete(name) for name in removed]
    commit = api.create_commit(result.repo, operations, commit_message="Upload with llmc", parent_commit=info.sha)
    progress("upload", total, total)
    return replace(result, removed=removed, commit=commit.oid, committed=True)


def _check_visibility(result: PushResult, private: bool) -> None:
    """A repository that exists keeps its visibility: never publish, or hide, without being told to."""
    if result.public == private:
        now, flag = ("private", "leave --public out") if private else ("public", "pass --public")
        raise UsageError(
            f"the repository exists and is {now}",
            where=result.repo,
            fix=f"{flag}, or change its visibility in its settings on the Hub",
        )


def _folder_files(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths inside the folder, as the repository will name them: those to send, and those left out."""
    if not (folder / "config.json").is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        fix = f"push one of the folders inside: {', '.join(inner)}" if inner else "give the folder of a finished run"
        raise CheckpointError("not a model folder: it has no config.json", where=str(folder), fix=fix)
    found = survey(folder)
    link = next((name.rstrip("/") for name, reason in found.left_out if reason == "a link"), None)
    if link is not None:
        fix = "replace it by the file it points to"
        raise CheckpointError("a link, not a file", where=str(folder / link), fix=fix)
    kept = tuple(name for name in found.files if not name.lower().endswith(PICKLES))
    refuse_secrets(folder, kept)
    skipped = sorted({name for name, _ in found.left_out} | {*found.files} - {*kept})
    return kept, tuple(map(printable, skipped))


def _check_id(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError

    try:
        import_module("huggingface_hub.utils").validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError("not a Hub id", where=repo, fix="write it as user/name") from error
    if "/" not in repo:
        raise UsageError("not a whole Hub id", where=repo, fix=f"put the user before it: user/{repo}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's own progress bars: the caller has one."""
    utils = import_module("huggingface_hub.utils")
    before = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            utils.enable_progress_bars()
