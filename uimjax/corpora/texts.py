"""Documents from files as people keep them: JSON lines (plain, gz, zst), CSV, Parquet, Arrow, text. Nothing is lost in
silence: a row that cannot be used is handed over with its place and the reason.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import csv, ipc, parquet

from uimjax.corpora.documents import clean
from uimjax.errors import DataError, MissingFileError, UnknownNameError

LINE_CAP = 64 << 20  # bytes of one JSON line
BLOCK, BYTES = 1024, 8 << 20  # rows, and of JSON lines the bytes, handed over together


class Text(NamedTuple):
    """One document: its `id` (by default FILE:ROW, rows from 1), where it is from, and itself."""

    id: str
    source: str
    text: str


class Skipped(NamedTuple):
    """A row that is no document: its file, its number from 1 (a line, of JSON lines), and why."""

    path: str
    row: int
    why: str


@dataclass(frozen=True)
class Columns:
    """Which column holds what. "" as `id`: the row's place; as `source`: a column of that name, or the file's name;
    as `label`: there is none."""

    text: str = "text"
    id: str = ""
    source: str = ""
    label: str = ""


Note = Callable[[Skipped], None]


def files_of(paths: Sequence[str | Path], more: Sequence[str] = ()) -> list[Path]:
    """The files that paths name, by name; of a folder every file in it that can be read here. `more`: endings beside
    those of texts.

    Raises:
        MissingFileError: no such path, or nothing to read. DataError: a file of another kind.
    """
    found: list[Path] = []
    known = ", ".join([*_READERS, *more])
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and (_kind(p) or p.suffix in more))
            if not inside:
                raise MissingFileError(f"{path} holds none of {known}")
            found += inside
        elif not path.is_file():
            raise MissingFileError(f"{path} is not there (looked in {path.absolute().parent})")
        elif _kind(path) is None and path.suffix not in more:
            raise DataError(f"{path}: documents come from {known}; convert it first")
        else:
            found.append(path)
    if not found:
        raise MissingFileError("no files of documents were named")
    return found


def called(paths: Iterable[Any]) -> dict[Any, str]:
    """What files are called where their rows are: by name, or by as many folders as tell them apart.

    >>> called([Path("a/en/0.jsonl"), Path("a/de/0.jsonl"), Path("a/de/1.jsonl")]) == {
    ...     Path("a/en/0.jsonl"): "en/0.jsonl", Path("a/de/0.jsonl"): "de/0.jsonl", Path("a/de/1.jsonl"): "1.jsonl"}
    True
    """
    parts = {path: path.absolute().parts for path in paths if isinstance(path, Path)}
    names, length = dict.fromkeys(parts, ""), 0
    while open_ones := [path for path, name in names.items() if not name]:
        length += 1
        ends = {path: "/".join(parts[path][-length:]) for path in parts}
        often = Counter(ends.values())
        for path in open_ones:
            if often[ends[path]] == 1 or length >= len(parts[path]):
                names[path] = ends[path]
    return names


def read_texts(
    paths: Sequence[str | Path], columns: Columns, note: Note, names: Mapping[Any, str] | None = None
) -> Iterator[list[Text]]:  # fmt: skip
    """All documents in the order of the files, some at a time; `note` is told of every row that is none. `names`: what
    the files are called (`called`).

    Raises:
        MissingFileError, DataError: a file is missing, damaged or of another kind. UnknownNameError: no such column.
    """
    files = files_of(paths)
    names = called(files) if names is None else names
    for path in files:
        for block in read_blocks(path, columns, note):
            found = list(documents(path, block, columns, note, names[path]))
            if found:
                yield found


Block = list[tuple[int, dict[str, Any]]]  # (row from 1, its columns)


def read_blocks(path: Path, columns: Columns, note: Note) -> Iterator[Block]:
    """Rows of one file, whatever they hold. Raises as `read_texts`."""
    kind = _kind(path)
    assert kind is not None
    try:
        yield from _READERS[kind](path, columns, note)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def documents(path: Path | str, block: Block, columns: Columns, note: Note, file: str) -> Iterator[Text]:
    """Of rows; those that are none are handed to `note`. `path`: the file, or a dataset's name; `file`: what it is
    called."""
    for number, row in block:
        text = row.get(columns.text)
        if not isinstance(text, str):
            what = "no" if text is None else f"a {type(text).__name__} as"
            note(Skipped(str(path), number, f"{what} {columns.text!r}"))
        elif not text.strip():
            note(Skipped(str(path), number, "empty"))
        else:
            yield Text(*named(file, number, row, columns), clean(text))


def named(file: str, number: int, row: dict[str, Any], columns: Columns) -> tuple[str, str]:
    """(id, source) of a row."""
    name = str(row[columns.id]) if columns.id and row.get(columns.id) is not None else f"{file}:{number}"
    source = row.get(columns.source or "source")
    return clean(name), clean(file if source is None else str(source))


def check_columns(path: Path | str, columns: Columns, names: Iterable[str]) -> None:
    """Raises UnknownNameError, with the nearest column."""
    known = list(names)
    for name in filter(None, (columns.text, columns.id, columns.source, columns.label)):
        if name not in known:
            raise UnknownNameError(f"column of {path}", name, known)


# ---------------------------------------------------------------- kinds of files


def _jsonl(path: Path, columns: Columns, note: Note) -> Iterator[Block]:
    block: Block = []
    checked, size = False, 0
    with pa.input_stream(str(path), compression="detect") as stream:
        for number, line in enumerate(_lines(stream, path), start=1):
            if not line.strip():
                note(Skipped(str(path), number, "empty"))
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                note(Skipped(str(path), number, f"malformed: not JSON ({error})"))
                continue
            if not isinstance(row, dict):
                note(Skipped(str(path), number, f"malformed: a {type(row).__name__}, no object"))
                continue
            if not checked:
                check_columns(path, columns, row)
                checked = True
            block.append((number, row))
            size += len(line)
            if len(block) == BLOCK or size >= BYTES:
                yield block
                block, size = [], 0
    yield block


def _lines(stream: Any, path: Path) -> Iterator[bytes]:
    held = b""
    while piece := stream.read(1 << 20):
        *whole, held = (held + piece).split(b"\n")
        yield from whole
        if len(held) > LINE_CAP:
            raise DataError(f"{path} has a line of more than {LINE_CAP >> 20} MiB; is it JSON lines?")
    if held:
        yield held


def _csv(path: Path, columns: Columns, note: Note) -> Iterator[Block]:
    at = [0]

    def malformed(row: Any) -> str:
        why = f"malformed: {row.actual_columns} fields, {row.expected_columns} wanted"
        note(Skipped(str(path), row.number or 0, why))
        return "skip"

    options = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=malformed)
    read = csv.ReadOptions(use_threads=False)
    kinds = csv.ConvertOptions(column_types={name: pa.string() for name in _wanted(columns)})  # numbers are texts too
    with csv.open_csv(str(path), parse_options=options, read_options=read, convert_options=kinds) as reader:
        check_columns(path, columns, reader.schema.names)
        for batch in reader:
            yield from _blocks(batch, columns, at)


def _parquet(path: Path, columns: Columns, _note: Note) -> Iterator[Block]:
    at = [0]
    file = parquet.ParquetFile(str(path))
    check_columns(path, columns, file.schema_arrow.names)
    wanted = [name for name in _wanted(columns) if name in file.schema_arrow.names]
    for batch in file.iter_batches(BLOCK, columns=wanted):
        yield from _blocks(batch, columns, at)


def _arrow(path: Path, columns: Columns, _note: Note) -> Iterator[Block]:
    at = [0]
    with pa.memory_map(str(path)) as source:
        try:
            reader: Any = ipc.open_stream(source)  # as `datasets` writes its cache
        except pa.ArrowInvalid:
            source.seek(0)
            held = ipc.open_file(source)
            reader = (held.get_batch(k) for k in range(held.num_record_batches))
        for batch in reader:
            if not at[0]:
                check_columns(path, columns, batch.schema.names)
            yield from _blocks(batch, columns, at)


def _text(path: Path, columns: Columns, _note: Note) -> Iterator[Block]:
    yield [(1, {columns.text: path.read_bytes().decode("utf-8"), columns.id: path.name})]


def _wanted(columns: Columns) -> list[str]:
    return [columns.text, *filter(None, (columns.id, columns.source or "source", columns.label))]


def _blocks(batch: Any, columns: Columns, at: list[int]) -> Iterator[Block]:
    """Rows of an Arrow batch, numbered on from `at`."""
    names = [name for name in _wanted(columns) if name in batch.schema.names]
    for first in range(0, batch.num_rows, BLOCK):
        part = batch.slice(first, BLOCK)
        values = [part.column(name).to_pylist() for name in names]
        rows = (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))
        yield [(at[0] + k, row) for k, row in enumerate(rows, start=1)]
        at[0] += part.num_rows


_READERS: dict[str, Callable[[Path, Columns, Note], Iterator[Block]]] = {
    ".jsonl": _jsonl, ".jsonl.gz": _jsonl, ".jsonl.zst": _jsonl, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow,
    ".txt": _text, ".md": _text,
}  # fmt: skip


def _kind(path: Path) -> str | None:
    return next((kind for kind in sorted(_READERS, key=len, reverse=True) if path.name.endswith(kind)), None)
