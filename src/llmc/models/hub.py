"""Models from the Hugging Face Hub.

`resolve_model` fetches what a model is made of and nothing that could run: safetensors, configuration, tokenizer and
processor files, templates, licences.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from llmc.errors import CheckpointError, LlmcError, NetworkError, StorageError, UsageError
from llmc.files.disk import require_utf8
from llmc.files.safetensors import INDEX, SINGLE
from llmc.files.travel import ARCHIVE
from llmc.models.snapshot import check_links, downloading
from llmc.results import Progress, silent

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
OTHER_WEIGHTS = (*PICKLES, ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz", ".mlmodel")


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
        return path if path.is_dir() else folder_of_file(path)
    _check_name(model, cache_dir)
    from huggingface_hub import snapshot_download

    with hub_errors(model, f"neither a folder here nor a model on the Hub that can be read{_at(revision)}"):
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


def _check_name(model: str, cache_dir: Path | None) -> None:
    """Refuse, before the Hub is asked, what can be no id of it. Raises CheckpointError."""
    if _looks_like_path(model) or ("/" not in model and not _cache_of(model, cache_dir).exists()):
        raise CheckpointError("no such folder", where=model, fix="give a model folder or a Hub id like user/name")
    name, at, asked = model.rpartition("@")
    if at:
        fix = f"write {name} --revision {asked}"
        raise CheckpointError("neither a folder here nor a Hub id, which has no @ in it", where=model, fix=fix)


def folder_of_file(path: Path) -> Path:
    """The model folder that a file inside it names: config.json and its like, or the weights that a loader reads.

    Raises CheckpointError for other weights: what would be read is another file.
    """
    suffix = path.suffix.lower()
    if suffix not in (*OTHER_WEIGHTS, ".safetensors"):
        return path.parent
    if suffix == ".safetensors":
        single, index = path.parent / SINGLE, path.parent / INDEX
        if path == single or (index.is_file() and json.dumps(path.name) in index.read_text(errors="replace")):
            return path.parent
    what = "a GGUF file" if suffix == ".gguf" else "a file of weights"
    beside = (path.parent / SINGLE).is_file() or (path.parent / INDEX).is_file()
    fix = f"give the folder {path.parent}, whose {SINGLE} is read" if beside else "give a folder with its safetensors"
    raise CheckpointError(f"{what}, and llmc reads models from folders of safetensors", where=str(path), fix=fix)


def _cache_of(model: str, cache_dir: Path | None) -> Path:
    """Where the Hub's client keeps a model."""
    constants = import_module("huggingface_hub.constants")
    return Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith("/") or "\\" in model or model.count("/") > 1


def _at(revision: str | None) -> str:
    return f" at revision {revision}" if revision else ""


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
def hub_errors(repo: str, missing: str) -> Iterator[None]:
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


def located(path: str | Path) -> Path:
    """A file as it is; a folder, or a Hub id's."""
    place = Path(path)
    return place if place.is_file() else resolve_model(str(path))
