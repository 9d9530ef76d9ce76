"""Rows from files: JSON lines, Parquet, npz. Nothing that could run code is read."""

from pathlib import Path
from typing import Any

import numpy as np

from uimjax import tables
from uimjax.errors import DataError, MalformedRowError, MissingFileError, ShapeError

LINE_CAP = 16 << 20  # bytes of one JSON line
FILE_CAP = 8 << 30  # bytes that a compressed file may unpack to


def read_rows(path: str | Path) -> dict[str, np.ndarray]:
    """`{column: [N, ...]}` from `.jsonl` (objects of numbers or nested lists), `.parquet` or `.npz`.

    Floats become float32, integers int32.

    Raises:
        MissingFileError; MalformedRowError (JSON lines: the line is named); DataError for other damage or formats.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there (looked in {path.absolute().parent}). Check the path in the config."
        )
    readers = {".jsonl": _jsonl, ".parquet": _parquet, ".npz": _npz}
    if path.suffix not in readers:
        raise DataError(
            f"{path}: rows come from {', '.join(readers)}; convert it first (pickle and .pt are never read)"
        )
    columns = readers[path.suffix](path)
    return {name: _narrow(path, name, values) for name, values in columns.items()}


def _narrow(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype.kind in "iub":
        if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
            raise ShapeError(f"{path}, column {name!r}: integers beyond 32 bits; renumber them, or write floats")
        return values.astype(np.int32)
    raise ShapeError(f"{path}, column {name!r}: dtype {values.dtype}; numbers were wanted")


def _jsonl(path: Path) -> dict[str, np.ndarray]:
    rows: list[dict[str, Any]] = []
    for number, row in tables.lines(path, finite=True, cap=LINE_CAP):
        rows.append(_row(path, number, row, rows[0] if rows else None))
    if not rows:
        raise DataError(f"{path} holds no rows")
    return {name: np.asarray([r[name] for r in rows]) for name in rows[0]}


def _row(path: Path, number: int, found: dict[str, Any], first: dict[str, Any] | None) -> dict[str, Any]:
    if first is not None and set(found) != set(first):
        raise MalformedRowError(path, number, f"keys {sorted(found)}, the first row has {sorted(first)}")
    for name, value in found.items():
        try:
            ok = np.asarray(value).dtype.kind in "ifb"
        except ValueError:
            ok = False
        if not ok:
            raise MalformedRowError(path, number, f"{name!r} is not a number or a rectangular list of numbers")
        if first is not None and np.shape(value) != np.shape(first[name]):
            why = f"{name!r} has shape {np.shape(value)}, the first row {np.shape(first[name])}"
            raise MalformedRowError(path, number, why)
    return found


def _parquet(path: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        declared = sum(file.metadata.row_group(k).total_byte_size for k in range(file.metadata.num_row_groups))
        if max(declared, file.metadata.num_rows * 8 * file.metadata.num_columns) > FILE_CAP:
            raise DataError(f"{path} unpacks to more than {FILE_CAP >> 30} GiB; split it")
        table = file.read()
        return {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > FILE_CAP:
                raise DataError(f"{path} unpacks to more than {FILE_CAP >> 30} GiB; split it")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as npz: {error}") from error
