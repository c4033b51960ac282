"""Rows of tasks that are no JSONL file: parquet files, data sets of the Hub and local folders of data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmc.calibration.data_sets import data_set_rows, parse_data_set
from llmc.errors import CalibrationError, StorageError

FILE_SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".parquet")
KINDS = "a .jsonl or .parquet file"


def is_table(source: str | Path) -> bool:
    """Whether `source` names a parquet file or a data set; else it is a JSONL file, there or not."""
    path = Path(source)
    if path.is_dir() or path.suffix.lower() == ".parquet":
        return True
    return not path.exists() and path.suffix.lower() not in FILE_SUFFIXES


def table_rows(source: str) -> Iterator[dict[str, Any]]:
    """The rows of a source of which `is_table` holds.

    Raises:
        CalibrationError: there is no such thing, or it cannot be read as one. NetworkError: the Hub cannot be reached.
    """
    if Path(source).suffix.lower() == ".parquet" and not Path(source).is_dir():
        return _parquet_rows(source)
    return data_set_rows(parse_data_set(source), source, kinds=KINDS)


def _parquet_rows(source: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except FileNotFoundError as error:
        raise CalibrationError("no such file", where=source, fix=f"give {KINDS} or a data set id") from error
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise StorageError(f"cannot be read ({error.strerror})", where=source) from error
        raise CalibrationError("not a readable parquet file", where=source) from error
