"""What of a folder may travel, that is be copied, archived or uploaded: one rule for all verbs.

Regular files below the folder travel. Links do not, except those that the Hub's cache is made of
(`snapshots/REVISION/x -> ../../blobs/DIGEST`); hidden files and folders do not, nor what editors, systems and
interpreters leave behind, nor names that a terminal or another file system would take for others. What looks like a
secret is refused: to leave it out in silence would leave it for the next tool.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmc.errors import CheckpointError, printable

ARCHIVE = "original.llmc.zip"
JUNK = re.compile(
    r"__pycache__|__MACOSX|Thumbs\.db|desktop\.ini|nohup\.out|.*~|#.*#|.*\.llmc-(partial|replaced)"
    r"|.*\.(py[cod]|tmp|temp|lock|sw[a-p]|bak|orig|rej|part|incomplete|crdownload)",
    re.IGNORECASE,
)
LISTED = 8
LONGEST = 100
"""Names in a note on what was left out, and letters of one."""
MOST_READ = 8 << 20
"""Bytes of a file that is looked into for secrets: larger ones are data."""
MOVE = "move it out of the folder, or take it out of the file"

SECRET_NAMES = re.compile(
    r"id_(rsa|dsa|ecdsa|ed25519)(_sk)?|.*\.(key|ppk|p12|pfx|jks|keystore|kdbx|env)|_?netrc|_?pypirc|git-credentials"
    r"|credentials?(\.(json|csv|ini|txt|toml|ya?ml))?|(application_default_credentials|client_secrets?.*)\.json"
    r"|service[-_ ]?account.*\.json|secrets?\.(json|txt|toml|ya?ml)|kubeconfig|htpasswd",
    re.IGNORECASE,
)
VOCABULARIES = re.compile(r"tokenizer\.json|vocab\..*|merges\.txt|added_tokens\.json|.*\.(model|tiktoken)|tekken\.json")
"""Files whose words are a tokenizer's: they are not looked into."""
SECRETS = {
    "a private key": rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    rb"|\"private_key\"\s*:\s*\"[^\"]{40}",
    "a token of Hugging Face": rb"(?<![A-Za-z0-9])(?:hf|api_org)_([A-Za-z0-9]{30,})",
    "a token of GitHub": rb"(?<![A-Za-z0-9])(?:gh[pousr]|github_pat)_([A-Za-z0-9_]{36,})",
    "a token of GitLab": rb"(?<![A-Za-z0-9])glpat-([A-Za-z0-9_-]{20,})",
    "a token of Slack": rb"(?<![A-Za-z0-9])xox[abeoprs]-([A-Za-z0-9-]{20,})",
    "a key of an API": rb"(?<![A-Za-z0-9])sk-(?:(?:proj|svcacct|admin|ant-[a-z]+\d\d|or-v1)-([A-Za-z0-9_-]{20,})"
    rb"|([A-Za-z0-9]{20,}))",
    "a key of Google": rb"(?<![A-Za-z0-9_-])AIza([A-Za-z0-9_-]{35})(?![A-Za-z0-9_-])",
    "a key of AWS": rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)([A-Z0-9]{16})(?![A-Za-z0-9])",
    "a password of a netrc file": rb"\bmachine\s+\S+\s+login\s+\S+\s+password\s+(\S+)",
    "a password in an address": rb"\bhttps?://[^\s/:@\"'<>]{1,64}:([A-Za-z0-9_.~%+-]{16,})@",
}
"""Kind -> what it looks like in a file; a group is the part that is random."""
_SECRETS = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}


@dataclass(frozen=True)
class Found:
    """The files below a folder.

    Attributes:
        files: those that travel, as paths relative to the folder.
        left_out: name and reason of what does not; of a folder whose files all stay, its own, with a slash.
    """

    files: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def survey(folder: Path, *, deep: bool = True) -> Found:
    """What of a folder travels, and what stays.

    Args:
        deep: look into folders too; otherwise they are not mentioned unless they are hidden, links or leftovers.

    Raises OSError when a folder cannot be listed.
    """
    files: list[str] = []
    left: list[tuple[str, str]] = []
    waiting = [""]
    while waiting:
        place = waiting.pop()
        for entry in os.scandir(folder / place):
            name, is_folder = place + entry.name, entry.is_dir(follow_symlinks=False)
            reason = _reason(entry)
            if reason:
                left.append((name + "/" * is_folder, reason))
            elif not is_folder:
                files.append(name)
            elif deep:
                waiting.append(f"{name}/")
    return Found(tuple(sorted(files)), tuple(sorted(left)))


def inside(name: str) -> bool:
    """Whether a path, as an archive or a record spells it, is one of a file below the folder it is relative to."""
    path = PurePosixPath(name)
    plain = bool(path.parts) and not path.is_absolute() and str(path) == name and not re.match("[A-Za-z]:", name)
    return plain and ".." not in path.parts and "\\" not in name and "\0" not in name


def folded(name: str) -> str:
    """What a file system that ignores case and ways of writing letters takes a name for."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> tuple[list[str], list[tuple[str, str]]]:
    """Names that are different everywhere, and those that some file system takes for another one.

    Args:
        taken: names that no other spelling may take.
    """
    known = {folded(name): name for name in taken}
    kept: dict[str, None] = {}
    clashes = []
    for name in names:
        other = known.setdefault(folded(name), name)
        if other == name and name not in kept:
            kept[name] = None
        else:
            clashes.append((name, f"would take the place of {other}"))
    return list(kept), clashes


def left_out_note(left: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """One line on what stays behind, by name and reason, or none."""
    return note("left out", left)


def note(what: str, named: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """One line of moderate length on these files, or none when there are none."""
    if not named:
        return ()
    shown = [f"{name[:LONGEST]} ({reason})" if reason else name[:LONGEST] for name, reason in named[:LISTED]]
    more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return (printable(f"{what}: {', '.join(shown)}{more}"),)


def refuse_secrets(folder: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError naming the first of these files that looks like a secret or holds one, not the secret."""
    found = [(name, kind) for name in names if (kind := secret(folder / name))]
    if found:
        (name, kind), more = found[0], len(found) - 1
        others = f", and so {'does' if more == 1 else 'do'} {more} more" if more else ""
        raise CheckpointError(f"looks like {kind}{others}", where=f"{folder.name}/{name}", fix=MOVE)


def secret(path: Path) -> str:
    """The kind of secret that a file looks like or holds; "" for none."""
    if SECRET_NAMES.fullmatch(path.name):
        return "a file of keys or passwords"
    if VOCABULARIES.fullmatch(path.name) or path.stat().st_size > MOST_READ:
        return ""
    data = path.read_bytes().replace(b"\0", b"")  # letters of UTF-16 too
    return next((kind for kind, pattern in _SECRETS.items() if any(map(_random, pattern.finditer(data)))), "")


def _random(match: re.Match[bytes]) -> bool:
    """Whether what was found is no placeholder, such as hf_xxxx or AKIA...EXAMPLE."""
    body = b"".join(filter(None, match.groups())).lower()
    return not body or not (set(body) <= set(b"x0_-.") or body.isdigit() or b"example" in body)


def _reason(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder stays; "" when it travels."""
    reason = _named(entry.name)
    if reason:
        return reason
    if entry.is_symlink():
        return "" if of_cache(Path(entry.path)) else "a link"
    mode = entry.stat(follow_symlinks=False).st_mode
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "not a file"


def _named(name: str) -> str:
    """Why a file or folder of this name stays; "" when it may travel."""
    if not name.isprintable() or "\\" in name:
        return "its name"
    if name.startswith("."):
        return "hidden"
    return "a leftover" if JUNK.fullmatch(name) else ""


def of_cache(link: Path) -> bool:
    """Whether a link is of the Hub's cache: below models--X/snapshots, to a file in models--X/blobs."""
    real = Path(os.path.realpath(link))
    for parent in Path(os.path.realpath(link.parent)).parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return real.parent == parent.parent / "blobs" and stat.S_ISREG(_mode(real))
    return False


def _mode(path: Path) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
