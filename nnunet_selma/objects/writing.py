"""Tables as CSV or Parquet, written piece by piece under a temporary name and renamed; NaN becomes an empty cell."""

import csv
import os
from collections.abc import Callable, Mapping
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes.base import Array

Columns = Mapping[str, Array]
"""Name to values; all of one length."""
_ROWS = 2**16  # written together


def check_writable(path: Path) -> None:
    """Raise `SelmaError` unless a table of that name can be written: its ending, the folder, the library."""
    if path.suffix not in _WRITERS:
        raise SelmaError(f"{path}: a table is written as .csv or .parquet; choose one of these endings")
    if path.is_dir():
        raise SelmaError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise SelmaError(f"{path.parent}: there is no such folder; make it first")
    if not os.access(path.parent, os.W_OK):
        raise SelmaError(f"{path.parent}: cannot be written to; choose another folder")
    if path.suffix == ".parquet":
        _parquet(path)


def write_table(path: Path, columns: Columns) -> None:
    """Write a table; what was there is replaced when the new one is whole.

    Raises:
        SelmaError: as `check_writable`.
    """
    check_writable(path)
    with whole_file(path) as partial:
        _WRITERS[path.suffix](partial, columns)


def _write_csv(path: Path, columns: Columns) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for start in range(0, _length(columns), _ROWS):
            writer.writerows(zip(*(_cells(c[start : start + _ROWS]) for c in columns.values()), strict=True))


def _cells(values: Array) -> list[Any]:
    if values.dtype.kind == "f":
        return ["" if isnan(value) else value for value in values.tolist()]
    cells: list[Any] = values.tolist()
    return cells


def _write_parquet(path: Path, columns: Columns) -> None:
    arrow, parquet = _parquet(path)

    def piece(start: int) -> Any:
        values = {name: column[start : start + _ROWS] for name, column in columns.items()}
        return arrow.table({name: arrow.array(column, from_pandas=True) for name, column in values.items()})

    schema = piece(0).schema
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, _length(columns), _ROWS):
            writer.write_table(piece(start).cast(schema))


def _parquet(path: Path) -> tuple[Any, Any]:
    """The libraries that write Parquet."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise SelmaError(
            f"{path}: writing Parquet needs pyarrow; install it with: pip install 'nnunet-selma[brains]', or write .csv"
        ) from error
    return pyarrow, parquet


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values()), np.zeros(0)))


_WRITERS: Mapping[str, Callable[[Path, Columns], None]] = {".csv": _write_csv, ".parquet": _write_parquet}
