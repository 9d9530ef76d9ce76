"""Labelled examples from files as people keep them: folders of pictures, and tables of pictures, texts or features.

What is read here is as it stands in the files; `labelled.prepare_examples` makes rows of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from uimjax.corpora.documents import clean
from uimjax.corpora.texts import BLOCK, Columns, Note, Skipped, called, files_of, named, read_blocks
from uimjax.errors import DataError, MissingFileError, ShapeError, UsageError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ARRAYS = (".npy",)
Kind = Literal["image", "text", "features"]


class Example(NamedTuple):
    """One labelled example: its `value` is a picture's file or bytes, a text, or a vector; the `label` as written."""

    id: str
    source: str
    value: Any
    label: str


def examples_of(paths: Sequence[str | Path], kind: Kind, labels: str | Path = "") -> list[Path]:
    """The files and folders of pictures that hold examples.

    Raises:
        MissingFileError, DataError: as `texts.files_of`. UsageError: labels in a file of their own, and no array that
        they are of.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if kind == "image" and path.is_dir() and any(_pictures(path)):
            _check_alone(path)
            found.append(path)
        else:
            found += files_of([path], ARRAYS if kind == "features" else ())
    if not found:
        raise MissingFileError("no files of examples were named")
    arrays = [path for path in found if path.suffix in ARRAYS]
    if bool(labels) != bool(arrays) or (labels and len(found) > 1):
        raise UsageError(
            "labels in a file of their own are those of one .npy of features: --corpus FEATURES.npy --labels "
            "LABELS.npy; a table has them in a column (--label_column)"
        )
    if labels:
        _need(Path(labels))
    return found


def _need(path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(f"{path} is not there (looked in {path.absolute().parent})")


def _check_alone(folder: Path) -> None:
    """Raises UsageError: a table lies among the pictures, and either could be meant."""
    table = next((path for path in sorted(folder.rglob("*")) if path.suffix in (".jsonl", ".csv", ".parquet")), None)
    if table is not None:
        raise UsageError(
            f"{folder} holds pictures and {table.name}: name the table itself, with the column of the pictures "
            "(--column file_name), or a folder without it, whose folders are the classes"
        )


def read_examples(
    paths: Sequence[str | Path], kind: Kind, columns: Columns, note: Note, labels: str | Path = "",
    names: Mapping[Any, str] | None = None,
) -> Iterator[list[Example]]:  # fmt: skip
    """All examples in the order of the files, some at a time; `note` is told of every row that is none. `columns.text`
    names the column of the value: a text, a vector, or of pictures the path (beside the table) or the bytes. `names` as
    of `read_texts`.

    Raises:
        MissingFileError, DataError, UnknownNameError: as `texts.read_texts`. ShapeError: arrays that do not fit.
    """
    files = examples_of(paths, kind, labels)
    names = called(files) if names is None else names
    for path in files:
        if path.is_dir():
            yield from _of_folder(path, note, names[path])
        elif path.suffix in ARRAYS:
            yield from _of_array(path, Path(labels), note)
        else:
            for block in read_blocks(path, columns, note):
                found = [
                    its
                    for number, row in block
                    if (its := _of_row(path, names[path], number, row, kind, columns, note))
                ]
                if found:
                    yield found


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())


def _of_folder(folder: Path, note: Note, source: str) -> Iterator[list[Example]]:
    """A picture's label is the name of the folder that it lies in, as `datasets` reads image folders."""
    block: list[Example] = []
    for path in sorted(_pictures(folder)):
        name = path.relative_to(folder).as_posix()
        if path.parent == folder:
            note(Skipped(str(path), 0, "no label: it lies in no folder of a class"))
            continue
        block.append(Example(clean(name), clean(source), path, clean(path.parent.name)))
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _of_array(path: Path, labels: Path, note: Note) -> Iterator[list[Example]]:
    values, own = _array(path), _array(labels) if labels.suffix in ARRAYS else _lines(labels)
    if values.ndim != 2 or values.dtype.kind not in "fiu" or own.shape != (len(values),):
        told = f"{path} is {values.dtype}{list(values.shape)} and {labels} {list(own.shape)}"
        raise ShapeError(f"{told}; features [N, D] and labels [N] were wanted")
    for first in range(0, len(values), BLOCK):
        part = range(first, min(first + BLOCK, len(values)))
        block = []
        for k in part:
            label = label_of(own[k])
            if label is None:
                note(Skipped(str(path), k + 1, "no label"))
            else:
                block.append(Example(f"{path.name}:{k + 1}", path.name, np.asarray(values[k]), label))
        if block:
            yield block


def _array(path: Path) -> np.ndarray:
    _need(path)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} holds several arrays (.npz); one was wanted")
    return found


def _lines(path: Path) -> np.ndarray:
    """A label a line."""
    _need(path)
    try:
        return np.array(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as lines of UTF-8 text: {error}") from error


def label_of(value: Any) -> str | None:
    """As text: whole numbers without a point, whatever type they came in; None where there is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None if value != value else value
    return None if value is None or not str(value).strip() else clean(str(value))


def _of_row(
    path: Path, file: str, number: int, row: dict[str, Any], kind: Kind, columns: Columns, note: Note
) -> Example | None:  # fmt: skip
    value, label = row.get(columns.text), label_of(row.get(columns.label))
    why = ""
    if label is None:
        why = f"no {columns.label!r}"
    elif value is None:
        why = f"no {columns.text!r}"
    elif kind == "text" and not isinstance(value, str):
        why = f"a {type(value).__name__} as {columns.text!r}"
    elif kind == "text" and not value.strip():
        why = "empty"
    if kind == "image" and not why:
        value, why = picture_of(value, path.parent)
    if why:
        note(Skipped(str(path), number, why))
        return None
    if isinstance(value, str):
        value = clean(value)
    return Example(*named(file, number, row, columns), value, str(label))


def picture_of(value: Any, folder: Path) -> tuple[Any, str]:
    """(a picture's bytes or file, why there is none): as a path, as bytes, or as `datasets` keeps both."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value, ""
    if not isinstance(value, str):
        return None, f"a {type(value).__name__} as a picture; a path or bytes were wanted"
    path = folder / value
    try:
        return (path, "") if path.is_file() else (None, f"no file: {value}")
    except OSError as error:  # too long a name
        return None, f"no file: {error.strerror}"
