"""Rows of data sets, of the Hub or of a local folder, streamed: only what is asked for is read.

A source is `name[:configuration][@split]`. Nothing in a data set is executed: `datasets` refuses scripts since 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llmc.errors import CalibrationError, NetworkError, first_line

FILE_SUFFIXES = (".txt", ".jsonl", ".parquet")
HUB_TIMEOUT = 10.0  # seconds
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder


@dataclass(frozen=True)
class DataSetName:
    """`name[:configuration][@split]`; a name is an id of the Hub or a folder."""

    name: str
    configuration: str = ""
    split: str = ""


def parse_data_set(source: str) -> DataSetName:
    """Read `name[:configuration][@split]`; a folder whose own name has such marks comes first.

    >>> parse_data_set("allenai/ai2_arc:ARC-Easy@test")
    DataSetName(name='allenai/ai2_arc', configuration='ARC-Easy', split='test')
    """
    if Path(source).exists():
        return DataSetName(source)
    rest, at, split = source.rpartition("@")
    rest, split = (rest, split) if at and "/" not in split else (source, "")
    name, colon, configuration = rest.rpartition(":")
    if not colon or "/" in configuration or Path(rest).exists():
        name, configuration = rest, ""
    return DataSetName(name, configuration, split)


def data_set_rows(asked: DataSetName, source: str, *, kinds: str) -> Iterator[dict[str, Any]]:
    """The rows in order. Without a split, those of `test`, or of the only one there is.

    Args:
        asked: what to read.
        source: as the user wrote it, for messages.
        kinds: which files could be given in its place, for messages.

    Raises:
        CalibrationError: no such data set, configuration or split; files in it that cannot be read.
        NetworkError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    client = cast("type[Exception]", HfHubHTTPError.__mro__[1])  # the HTTP client's base error, whichever is installed
    local = Path(asked.name).is_dir()
    try:
        if not local:  # fails at once where load_dataset retries for half a minute
            HfApi().dataset_info(asked.name, timeout=HUB_TIMEOUT)
        yield from _rows(asked, source)
    except (HFValidationError, RepositoryNotFoundError, FileNotFoundError) as error:
        if local:
            raise CalibrationError("a folder that holds no data set", where=source, fix=f"give {kinds}") from error
        raise CalibrationError(
            "neither a file here nor a data set that can be read from the Hub",
            where=source,
            fix=f"give {kinds}, or check the id and your access to it",
        ) from error
    except (ValueError, RuntimeError) as error:  # datasets names the splits or configurations there are
        raise CalibrationError(" ".join(str(error).split()), where=source) from error
    except (OSError, client) as error:
        if local:
            raise CalibrationError(f"cannot be read ({type(error).__name__})", where=source) from error
        raise NetworkError(
            f"the data set cannot be reached ({type(error).__name__})",
            where=source,
            fix="check the network, or give a local file",
        ) from error
    except (LookupError, TypeError, AttributeError, NotImplementedError) as error:  # datasets, over what the files hold
        raise CalibrationError(f"no data set that can be read ({first_line(error)})", where=source) from error


def _rows(asked: DataSetName, source: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset, load_from_disk

    if any((Path(asked.name) / file).is_file() for file in SAVED):
        found: Any = load_from_disk(asked.name)
    else:
        found = load_dataset(asked.name, asked.configuration or None, split=asked.split or None, streaming=True)
    yield from found if not isinstance(found, dict) else found[_split(list(found), asked.split, source)]


def _split(splits: list[str], asked: str, source: str) -> str:
    names = ", ".join(map(str, splits))
    if asked in splits or (not asked and "test" in splits):
        return asked or "test"
    if asked:
        raise CalibrationError(f"no split {asked!r}", where=source, fix=f"choose one of: {names}")
    if len(splits) > 1:
        raise CalibrationError(
            "several splits, and none is called test", where=source, fix=f"add @ and one of: {names}"
        )
    return splits[0]
