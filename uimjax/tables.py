"""Tables from files: CSV, TSV, Parquet and JSON lines as columns, and the first row that cannot be read named."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uimjax.errors import DataError, MalformedRowError, MissingFileError, UsageError

JSON_LINES = ("jsonl", "ndjson")
Columns = dict[str, list[Any]]


def kind(path: Path) -> str:
    """The ending of a file's name in small letters, without its dot; that of `runs.CSV.gz` is "csv"."""
    return Path(path.name.removesuffix(".gz")).suffix[1:].lower()


def read(path: Path, wanted: str = "a table", commas: Sequence[str] = ("csv",), text: Sequence[str] = ()) -> Columns:
    """`{column: [N values]}` of a .csv, .tsv, .parquet, .jsonl or .ndjson file; those of text may be gzipped (.gz).

    What a row lacks is None, and so is an empty or NaN field of a CSV. `wanted` says in messages what the file should
    be; `commas` are the endings that are read as CSV; of these and of .tsv, the columns `text` stay as they are
    written (007 would be 7).

    Raises:
        MissingFileError. MalformedRowError: a row with too few or too many fields, or a line that is no JSON object,
            with its line number. UsageError: another ending. DataError: other damage, or two columns of one name.
    """
    from pyarrow import ArrowException, ArrowInvalid, csv, parquet, string

    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; {wanted} (.csv, .tsv, .parquet, .jsonl) was wanted")
    ending, odd = kind(path), []
    handler: Any = lambda row: odd.append(row) or "error"  # noqa: E731  # what it raises itself is lost in C
    if ending in JSON_LINES:
        rows = [row for _, row in lines(path)]
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}
    if ending not in ("parquet", "tsv", *commas):
        shown = Path(path.name.removesuffix(".gz")).suffix
        raise UsageError(f"{path}: {wanted} ends in .csv, .tsv, .parquet or .jsonl, not in {shown!r}")
    try:
        if ending == "parquet":
            return _columns(path, parquet.read_table(path))
        parse = csv.ParseOptions(delimiter="\t" if ending == "tsv" else ",", invalid_row_handler=handler)
        kinds = csv.ConvertOptions(column_types={name: string() for name in text})
        return _columns(path, csv.read_csv(path, csv.ReadOptions(use_threads=False), parse, kinds))  # in one thread,
    except (ArrowException, OSError, UnicodeDecodeError) as error:  # rows have numbers
        if odd and isinstance(error, ArrowInvalid):
            fields = f"{odd[0].actual_columns} fields for {odd[0].expected_columns} columns"
            raise MalformedRowError(path, _line_of(path, odd[0].number or 0), fields) from error
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def lines(path: Path, finite: bool = False, cap: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line of JSON lines, gzipped or not, that is not blank. `finite` refuses NaN and
    infinities, which JSON has not and Python writes; `cap`, lines of more bytes.

    Raises:
        MissingFileError. MalformedRowError: a line that is no object. DataError: a file that cannot be read.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; JSON lines were wanted")
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if cap is not None and len(line) > cap:
                    raise MalformedRowError(path, number, f"the line is longer than {cap >> 20} MiB")
                if line.strip():
                    yield number, _object(path, number, line, finite)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read beyond line {number}: {error}") from error


def _object(path: Path, number: int, line: bytes, finite: bool) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse if finite else None)
    except UnicodeDecodeError as error:
        raise MalformedRowError(path, number, f"it cannot be read as UTF-8 text ({error})") from error
    except (ValueError, RecursionError) as error:
        raise MalformedRowError(path, number, f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise MalformedRowError(path, number, f"a JSON object was wanted, {type(found).__name__} arrived")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number that a model can use")


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _columns(path: Path, table: Any) -> Columns:
    import pyarrow as pa

    names = table.column_names
    again = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if again is not None:
        raise DataError(f"{path} has two columns {again!r}; rename one")
    if kind(path) != "parquet":  # bytes are what a CSV's text is taken for that is not UTF-8
        odd = [field.name for field in table.schema if pa.types.is_binary(field.type)]
        if odd:
            raise DataError(f"{path}: column {odd[0]!r} is no UTF-8 text; save the file as UTF-8")
    return table.to_pydict()


def _line_of(path: Path, row: int) -> int:
    """Where the row of that number stands: empty lines were not counted."""
    left = row
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            left -= bool(line.strip(b"\r\n"))
            if not left:
                return number
    return row


def no_number(values: Sequence[Any]) -> int:
    """The place of the first that is there and is no number; 0 where all are."""
    for k, value in enumerate(values):
        try:
            float(0 if value is None else value)
        except (TypeError, ValueError):
            return k
    return 0
