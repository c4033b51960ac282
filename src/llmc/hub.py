"""Models from the Hugging Face Hub, and artifacts to it.

`resolve_model` fetches what a model is made of and nothing that could run: safetensors, configuration, tokenizer and
processor files, templates, licences. `push` makes a repository hold what the folder holds, in one commit or none.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from llmc.disk import require_utf8
from llmc.errors import CheckpointError, LlmcError, NetworkError, StorageError, UsageError, printable
from llmc.publishing import published
from llmc.snapshot import check_links, downloading, is_digest
from llmc.structure import Progress, Table, silent
from llmc.travel import ARCHIVE, refuse_secrets, survey

ALLOWED = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "*.spm",
    "*.txt",
]
ALLOWED += ["chat_template*", "vocab.*", "USE_POLICY*"]
ALLOWED += [
    "kernel/*",
    ARCHIVE,
    "README.md",
    "SHA256SUMS",
    "[Ll][Ii][Cc][Ee][Nn][SsCc][Ee]*",
    "[Nn][Oo][Tt][Ii][Cc][Ee]*",
]
# A second copy of the weights in the maker's own layout, or of another model kept in a subfolder.
REFUSED = ["consolidated*.safetensors", "tokenizer*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"]
REFUSED += ["[!0-9]*/*.safetensors", "?[!_]*/*.safetensors", "*/*/*.safetensors"]  # all but modules such as 2_Dense/
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
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


def resolve_model(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The local folder of a model, downloaded if need be.

    Args:
        model: a folder, a file inside one, or a Hub id `user/name`.
        revision: branch, tag or commit on the Hub; a local folder takes none.
        token: for private and gated models; None uses the one `hf auth login` stored.
        endpoint: the Hub's address, cache_dir: where downloads are kept; None for huggingface_hub's own.

    Raises:
        CheckpointError: neither a folder nor a readable model of the Hub, or one with pickled weights only.
        NetworkError: the Hub cannot be reached and the cache does not hold the model.
    """
    path = Path(model)
    if path.exists():
        if revision is not None:
            raise UsageError("a local folder has no revisions", where=model, fix="leave --revision out")
        require_utf8(path)
        return path if path.is_dir() else path.parent
    if _looks_like_path(model):
        raise CheckpointError("no such folder", where=model, fix="give a model folder or a Hub id like user/name")
    from huggingface_hub import snapshot_download

    with _hub_errors(model, f"neither a folder here nor a model on the Hub that can be read{_at(revision)}"):
        with downloading(model, _cache_of(model, cache_dir)):
            place = snapshot_download(
                model,
                revision=revision,
                token=token,
                endpoint=endpoint,
                cache_dir=cache_dir,
                allow_patterns=ALLOWED,
                ignore_patterns=REFUSED,
                tqdm_class=_bars(progress or silent),
            )
        folder = Path(place)
        check_links(model, folder)
        if not any(folder.glob("*.safetensors")):
            raise _no_weights(model, folder, revision, token, endpoint)
    return folder


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
    with _hub_errors(repo, "no repository that this token can write"), _quiet():
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


def _cache_of(model: str, cache_dir: Path | None) -> Path:
    """Where the Hub's client keeps a model."""
    constants = import_module("huggingface_hub.constants")
    return Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith("/") or "\\" in model or model.count("/") > 1


def _at(revision: str | None) -> str:
    return f" at revision {revision}" if revision else ""


def _check_id(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError

    try:
        import_module("huggingface_hub.utils").validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError("not a Hub id", where=repo, fix="write it as user/name") from error
    if "/" not in repo:
        raise UsageError("not a whole Hub id", where=repo, fix=f"put the user before it: user/{repo}")


def _no_weights(
    model: str, folder: Path, revision: str | None, token: str | None, endpoint: str | None
) -> CheckpointError:
    from huggingface_hub import HfApi

    names = HfApi(endpoint=endpoint, token=token).list_repo_files(model, revision=revision or folder.name)
    pickled = sorted(name for name in names if name.endswith(PICKLES))
    if not pickled:
        return CheckpointError("the repository holds no safetensors weights", where=model)
    target = model.split("/")[-1]
    return CheckpointError(
        f"weights are pickled ({pickled[0]}), which can run code when opened",
        where=model,
        fix=f"fetch them with `hf download {model} --local-dir {target}`; for that folder llmc names the command "
        "that converts them",
    )


@contextmanager
def _hub_errors(repo: str, missing: str) -> Iterator[None]:
    """Failures of the Hub's client as one line about `repo`; `missing` says what it means when it is not found."""
    try:
        yield
    except LlmcError:
        raise
    except Exception as error:
        explained = _explain(error, repo, missing)
        if explained is None:
            raise
        raise explained from error


def _explain(error: Exception, repo: str, missing: str) -> LlmcError | None:
    from huggingface_hub import errors

    client = cast("type[Exception]", errors.HfHubHTTPError.__mro__[1])  # of httpx or its successor, as installed
    if isinstance(error, errors.HFValidationError):
        return CheckpointError("neither a folder here nor a Hub id", where=repo, fix="write a Hub id as user/name")
    if isinstance(error, errors.GatedRepoError):
        fix = f"accept its terms at https://huggingface.co/{repo} and pass a token that may read it"
        return CheckpointError("its owner has to grant access", where=repo, fix=fix)
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return CheckpointError(missing, where=repo, fix="check the name; a private one needs a token (hf auth login)")
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) else error
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else 0
    if status in (401, 403):
        fix = "pass one that may do this, or run hf auth login"
        return UsageError(f"the Hub refuses the token (HTTP {status})", where=repo, fix=fix)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return StorageError(
            f"cannot be stored ({error.strerror})", where=repo, fix="free some space for the Hub's cache"
        )
    if isinstance(error, UnicodeEncodeError):  # of a header
        fix = "copy it again, or run hf auth login"
        return UsageError("the token has letters that no token has", where=repo, fix=fix)
    if isinstance(error, ValueError) and "README.md" in str(error):  # the Hub's own check of the card
        return CheckpointError(" ".join(str(error).split()), where=repo)
    if isinstance(error, ValueError) and re.search("pointer path|null byte|Invalid filename", str(error)):
        message = "the repository has a file whose name leads out of its folder"
        return CheckpointError(message, where=repo, fix="do not trust this model")
    if isinstance(cause, OSError | client) or isinstance(error, errors.LocalEntryNotFoundError):
        reason = f"HTTP {status}" if status else type(cause or error).__name__
        return NetworkError(f"the Hub cannot be reached ({reason})", where=repo, fix="check the network and try again")
    if isinstance(error, RuntimeError):  # how the client's storage backend fails
        return NetworkError(f"the transfer failed ({' '.join(str(error).split())})", where=repo, fix="try again")
    return None


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


def _bars(progress: Progress) -> type[Any]:
    """A class in tqdm's shape that hands the bytes downloaded to `progress` and draws nothing."""
    tqdm = import_module("tqdm.auto").tqdm

    def start(bar: Any, *args: Any, **options: Any) -> None:
        bar.counts_bytes = options.get("unit") == "B"
        options.pop("name", None)
        tqdm.__init__(bar, *args, **{**options, "disable": True})

    def update(bar: Any, n: float | None = 1) -> None:
        bar.n += n or 0
        if bar.counts_bytes and bar.total:
            progress("download", min(bar.n, bar.total), bar.total)

    return type("Bar", (tqdm,), {"__init__": start, "update": update})
