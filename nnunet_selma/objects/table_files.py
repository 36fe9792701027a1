"""Tables of numbers as CSV or Parquet files; an empty cell is NaN."""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes.base import Array

Columns = Mapping[str, Array]
"""Name of each column to its values, (rows,)."""
_ROWS = 2**16  # written together


def check_writable(path: Path) -> None:
    """Check that a table of that name can be written.

    Raises:
        SelmaError: its ending is unknown, its folder is missing or protected, or the library for Parquet is missing.
    """
    _check_ending(path)
    if path.is_dir():
        raise SelmaError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise SelmaError(f"{path.parent}: there is no such folder; make it first")
    if not os.access(path.parent, os.W_OK):
        raise SelmaError(f"{path.parent}: cannot be written to; choose another folder")
    if path.suffix == ".parquet":
        _import_parquet(path)


def write_table(path: Path, columns: Columns) -> None:
    """Write a table; an earlier one of that name is replaced when the new one is complete.

    Raises:
        SelmaError: as for `check_writable`.
    """
    check_writable(path)
    with whole_file(path) as partial:
        _WRITERS[path.suffix](partial, columns)


def read_table(path: Path, names: Sequence[str]) -> Columns:
    """Read columns of numbers, as float64.

    Raises:
        SelmaError: there is no such table, a column is missing, or a cell is no number.
    """
    _check_ending(path)
    if not path.is_file():
        raise SelmaError(f"{path}: there is no such file; write it with nnunet-selma objects")
    try:
        return _READERS[path.suffix](path, names)
    except (ValueError, IndexError, csv.Error) as error:
        raise SelmaError(
            f"{path}: is no table of numbers ({error}); write it again with nnunet-selma objects"
        ) from error


def _check_ending(path: Path) -> None:
    if path.suffix not in _WRITERS:
        raise SelmaError(f"{path}: a table of objects is .csv or .parquet; choose one of these endings")


def _check_names(path: Path, names: Sequence[str], present: Sequence[str]) -> None:
    missing = [name for name in names if name not in present]
    if missing:
        raise SelmaError(f"{path}: has no column {', '.join(missing)}; give the table that nnunet-selma objects wrote")


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


def _read_csv(path: Path, names: Sequence[str]) -> Columns:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        _check_names(path, names, header)
        places = [header.index(name) for name in names]

        def numbers() -> Iterator[tuple[float, ...]]:
            return (tuple(float(row[place] or "nan") for place in places) for row in rows if row)

        values = np.fromiter(numbers(), np.dtype((float, len(places))))
    return dict(zip(names, values.T, strict=True))


def _write_parquet(path: Path, columns: Columns) -> None:
    arrow, parquet = _import_parquet(path)

    def piece(start: int) -> Any:
        values = {name: column[start : start + _ROWS] for name, column in columns.items()}
        return arrow.table({name: arrow.array(column, from_pandas=True) for name, column in values.items()})

    schema = piece(0).schema
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, _length(columns), _ROWS):
            writer.write_table(piece(start).cast(schema))


def _read_parquet(path: Path, names: Sequence[str]) -> Columns:
    _, parquet = _import_parquet(path)
    _check_names(path, names, parquet.read_schema(path).names)
    table = parquet.read_table(path, columns=list(names))
    return {name: np.asarray(table[name], float) for name in names}


def _import_parquet(path: Path) -> tuple[Any, Any]:
    """The two libraries for Parquet."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise SelmaError(
            f"{path}: Parquet needs pyarrow; install it with: pip install 'nnunet-selma[brains]', or use .csv"
        ) from error
    return pyarrow, parquet


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values()), np.zeros(0)))


_WRITERS: Mapping[str, Callable[[Path, Columns], None]] = {".csv": _write_csv, ".parquet": _write_parquet}
_READERS: Mapping[str, Callable[[Path, Sequence[str]], Columns]] = {".csv": _read_csv, ".parquet": _read_parquet}
