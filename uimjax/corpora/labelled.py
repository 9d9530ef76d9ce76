"""Labelled examples that were made ready: rows on disk as a model takes them, and where each came from.

*Guarantee*: no example is left out without a line in `notes.jsonl`; one that repeats another, as
the model sees it, stays and is listed there too.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from uimjax import store
from uimjax.corpora.arrays import as_npy
from uimjax.corpora.examples import Example, Kind, examples_of, read_examples
from uimjax.corpora.texts import Columns, Skipped, called
from uimjax.errors import (
    CorruptError,
    DataError,
    MismatchError,
    MissingFileError,
    OutputError,
    UnknownNameError,
    UsageError,
)
from uimjax.progress import Progress, quiet
from uimjax.store.base import make_folder

MANIFEST, TABLE, NOTES = "examples.json", "examples.parquet", "notes.jsonl"
VERSION = 1
SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("label", pa.string()), ("value", pa.string()), ("same", pa.int64())]
)
GENERIC = "LABEL_"  # how a config names classes that nobody named
Row = dict[str, np.ndarray]


class Encoder(NamedTuple):
    """`encode(value) -> (one row, a remark or "")` of pictures, texts or features, the same shapes for all; it raises
    ValueError with the reason where a value is none. `name`: all that it depends on."""

    kind: Kind
    encode: Callable[[Any], tuple[Row, str]]
    name: str


@dataclass(frozen=True)
class Labelled:
    """`rows`: what the encoder made, and `"label"` `[N] int32`, mapped from disk; `classes`: their names, by number."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def rows(self) -> Row:
        names = [*self.manifest["inputs"], "label"]
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names}

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest["classes"])

    def table(self) -> pa.Table:
        """A line an example: `id`, `source`, `label` (its name), `value` (a text; of others empty), `same`: the number
        of the first example that is the same."""
        try:
            return pq.read_table(self.folder / TABLE, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise CorruptError(f"{self.folder / TABLE} is damaged ({error}); prepare it again elsewhere") from error


def prepare_examples(
    paths: Sequence[str | Path],
    encoder: Encoder,
    folder: str | Path,
    *,
    columns: Columns,
    classes: Sequence[str] | None = (),
    labels: str | Path = "",
    progress: Progress = quiet,
) -> Labelled:
    """Encode examples and keep them in a folder. One that holds the same already is opened.

    `classes`: their names, in the order of the model's outputs; labels are names, or all of them numbers from 0. None:
    labels are numbers of outputs that have no names. (): the classes are those of the examples, sorted.

    Raises:
        MissingFileError, DataError, UnknownNameError, ShapeError: as `examples.read_examples`, or there is no example
        at all. MismatchError: a label that is none of the classes. OutputError: the folder holds something else.
    """
    root, files = Path(folder), examples_of(paths, encoder.kind, labels)
    made_of = {
        "version": VERSION,
        "files": {
            str(path): _digest(path, encoder.kind, columns) for path in progress(files, "checking files", unit="files")
        },
        "labels": store.digest_file(Path(labels)) if labels else "",
        "columns": asdict(columns),
        "encoder": encoder.name,
        "model's classes": None if classes is None else list(classes),
    }
    if (root / MANIFEST).is_file():
        held = open_labelled(root)
        if all(held.manifest.get(key) == value for key, value in made_of.items()):
            return held
        raise OutputError(f"{root} holds examples of other files or choices; choose another folder, or remove that one")
    if root.is_dir() and any(root.iterdir()) and not (root / NOTES).exists():
        raise OutputError(f"{root} holds files and no examples of ours; choose an empty or a new folder")
    make_folder(root)
    counts = _written(root, files, encoder, columns, labels, classes, progress)
    store.write_manifest(root / MANIFEST, made_of | counts)  # last: a folder without it was stopped
    return open_labelled(root)


def open_labelled(folder: str | Path) -> Labelled:
    """Raises MissingFileError, CorruptError (the manifest was changed, or an array is of another length)."""
    root = Path(folder)
    if not (root / MANIFEST).is_file():
        raise MissingFileError(f"{root} holds no examples (no {MANIFEST}), or was stopped; prepare it again")
    made = Labelled(root, store.read_manifest(root / MANIFEST))
    for name, values in made.rows.items():
        if len(values) != made.manifest["rows"]:
            raise CorruptError(f"{root}: {name} has {len(values)} rows; prepare it again into a new folder")
    return made


def _digest(path: Path, kind: Kind, columns: Columns) -> str:
    """Of a file; of the names and bytes of a folder's; of a table of pictures with those that it names."""
    if path.is_file() and kind != "image":
        return store.digest_file(path)
    whole = xxhash.xxh3_128(b"" if path.is_dir() else path.read_bytes())
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    else:
        blocks = read_examples([path], kind, columns, lambda _: None)
        files = [its.value for block in blocks for its in block if isinstance(its.value, Path)]
    for each in files:
        whole.update(str(each.relative_to(path) if path.is_dir() else each).encode() + each.read_bytes())
    return whole.hexdigest()


class _Writer:
    """Rows and lines as they come."""

    def __init__(self, root: Path):
        self.root, self.notes = root, (root / NOTES).open("w")
        self.files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self.counts: Counter[str] = Counter()
        self.table = pq.ParquetWriter(root / TABLE, SCHEMA, write_page_checksum=True)
        self.lines: list[tuple[Any, ...]] = []
        self.firsts: dict[bytes, int] = {}  # of each row, with its label and without
        self.labels: dict[str, tuple[int, str]] = {}  # each with its place, and the first example that has it
        self.codes = array("i")  # of each example, its label's place

    def note(self, row: Skipped) -> None:
        self.notes.write(json.dumps(row._asdict()) + "\n")
        self.counts[row.why.split(":")[0].split(" of ")[0]] += 1

    def flush(self) -> None:
        if self.lines:
            self.table.write_table(pa.table([list(x) for x in zip(*self.lines, strict=True)], schema=SCHEMA))
            self.lines = []

    def add(self, its: Example, row: Row) -> None:
        shapes = {name: (x.shape, x.dtype) for name, x in row.items()}
        if self.shapes and shapes != self.shapes:
            told = " and ".join(f"{name} {list(shape)}" for name, (shape, _) in shapes.items())
            want = " and ".join(f"{name} {list(shape)}" for name, (shape, _) in self.shapes.items())
            raise ValueError(f"another shape: {told}, and {want} before")
        self.shapes = shapes
        number, digest = len(self.codes), xxhash.xxh3_128()
        for name, x in row.items():
            if name not in self.files:
                self.files[name] = (self.root / f"{name}.raw").open("wb")
            raw = np.ascontiguousarray(x).tobytes()
            self.files[name].write(raw)
            digest.update(raw)
        alike = self.firsts.setdefault(digest.digest(), number)
        digest.update(its.label.encode())
        same = self.firsts.setdefault(digest.digest(), number)
        if alike != number:
            what, how = ("duplicate", "") if same != number else ("other label", ", which is labelled otherwise")
            told = {"example": number, "id": its.id, "why": f"{what} of example {min(same, alike)}{how} (kept)"}
            self.notes.write(json.dumps(told) + "\n")
            self.counts[what] += 1
        self.codes.append(self.labels.setdefault(its.label, (len(self.labels), its.id))[0])
        self.lines.append((its.id, its.source, its.label, its.value if isinstance(its.value, str) else "", same))

    def close(self) -> None:
        self.flush()
        for each in (*self.files.values(), self.table, self.notes):
            each.close()


def _written(
    root: Path, files: list[Path], encoder: Encoder, columns: Columns, labels: str | Path,
    known: Sequence[str] | None,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """How many rows there are, of which inputs and classes, and how many notes of each kind."""
    writer = _Writer(root)
    try:
        for path in progress(files, "encoding examples", unit="files"):
            for block in read_examples([path], encoder.kind, columns, writer.note, labels, called(files)):
                for its in block:
                    try:
                        row, remark = encoder.encode(its.value)
                        writer.add(its, row)
                    except ValueError as error:
                        remark = f"not used: {error}"
                    if remark:
                        writer.note(Skipped(f"{path}, {its.id}", 0, remark))
                writer.flush()
    finally:
        writer.close()
    rows = len(writer.codes)
    if not rows:
        told = f" ({dict(sorted(writer.counts.items()))}; see {root / NOTES})" if writer.counts else ""
        raise DataError(f"no example was found in {', '.join(map(str, files[:3]))}{told}")
    classes, numbers = numbered(writer.labels, known)
    np.save(root / "label.npy", np.array(numbers, np.int32)[np.array(writer.codes)])
    for name, (shape, dtype) in writer.shapes.items():
        as_npy(root, name, (rows, *shape), dtype)
    return {"rows": rows, "inputs": list(writer.shapes), "classes": list(classes), "notes": dict(writer.counts)}


def numbered(
    labels: Mapping[str, tuple[int, str]], known: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:  # fmt: skip
    """(the classes' names, each label's number). `labels`: each with the example that is named where it is none;
    `known` as `prepare_examples`'s classes.

    Raises:
        MismatchError: a label is none of them. UsageError: they are numbers and could be names, or the model's names
        say nothing.
    """
    if known is not None and not known:
        own = tuple(sorted(labels, key=lambda x: (not _is_number(x), int(x) if _is_number(x) else 0, x)))
        return own, [own.index(label) for label in labels]
    numbers = all(map(_is_number, labels))
    if known is None or all(name.startswith(GENERIC) for name in known) and not set(labels) <= set(known):
        if not numbers:
            word = next(label for label in labels if not _is_number(label))
            raise UsageError(
                f"{labels[word][1]} is labelled {word!r}, and the model's outputs have no names: give theirs in order, "
                "--classes NAME NAME ..., or name them in the config's id2label"
            )
        most = max(map(int, labels))
        known = tuple(map(str, range(most + 1))) if known is None else known
    places = {name: k for k, name in enumerate(known)}
    if numbers and set(labels) <= set(places) and any(places[x] != int(x) for x in labels):
        raise UsageError(
            f"the classes are called {', '.join(list(known)[:6])} and the labels are numbers as well: whether they are "
            "names or places is not to be told. Write names that are no numbers (--classes)"
        )
    by_place = numbers and not set(labels) <= set(places)
    return tuple(known), [
        _place(label, places, by_place, where) for label, (_, where) in labels.items()
    ]  # fmt: skip


def class_number(label: str, classes: Sequence[str], where: str, names: bool = False) -> int:
    """Of one label: by name, or where it is none of them by number from 0 (with `names`: never).

    Raises:
        MismatchError
    """
    places = {name: k for k, name in enumerate(classes)}
    return _place(label, places, not names and label not in places and _is_number(label), where)


def _place(label: str, places: Mapping[str, int], by_place: bool, where: str) -> int:
    if by_place and int(label) < len(places):
        return int(label)
    if not by_place and label in places:
        return places[label]
    raise MismatchError(f"{where}: {UnknownNameError('class', label, places)} Are these the model's own classes?")


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal()
