"""Labelled examples that were made ready: rows on disk as a model takes them, and where each came from.

*Guarantee*: no example is left out without a line in `notes.jsonl`; one that repeats another byte for byte stays, and
is listed there too.
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
from uimjax.corpora.texts import Columns, Skipped
from uimjax.errors import CorruptError, DataError, MismatchError, MissingFileError, OutputError, UnknownNameError
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
    classes: Sequence[str] = (),
    labels: str | Path = "",
    progress: Progress = quiet,
) -> Labelled:
    """Encode examples and keep them in a folder. One that holds the same already is opened.

    `classes`: their names, in the order of the model's outputs; labels are names, or numbers from 0. Where the model
    names none ("LABEL_0", or nothing at all) they are those of the examples, sorted.

    Raises:
        MissingFileError, DataError, UnknownNameError, ShapeError: as `examples.read_examples`, or there is no example
        at all. MismatchError: a label that is none of the classes. OutputError: the folder holds something else.
    """
    root, files = Path(folder), examples_of(paths, encoder.kind, labels)
    made_of = {
        "version": VERSION,
        "files": {str(path): _digest(path) for path in progress(files, "checking files", unit="files")},
        "labels": store.digest_file(Path(labels)) if labels else "",
        "columns": asdict(columns),
        "encoder": encoder.name,
        "model's classes": list(classes),
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


def _digest(path: Path) -> str:
    if path.is_file():
        return store.digest_file(path)
    whole = xxhash.xxh3_128()  # of a folder: names and bytes
    for each in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(each.relative_to(path).as_posix().encode() + each.read_bytes())
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
        self.firsts: dict[bytes, tuple[int, str]] = {}
        self.labels: dict[str, str] = {}  # each with the first example that has it
        self.codes = array("i")  # of each example, its label's place in `labels`

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
        same, first = self.firsts.setdefault(digest.digest(), (number, its.id))
        if same != number:
            told = {"example": number, "id": its.id, "why": f"duplicate of {first} (kept)"}
            self.notes.write(json.dumps(told) + "\n")
            self.counts["duplicate"] += 1
        self.labels.setdefault(its.label, its.id)
        self.codes.append(list(self.labels).index(its.label))
        self.lines.append((its.id, its.source, its.label, its.value if isinstance(its.value, str) else "", same))

    def close(self) -> None:
        self.flush()
        for each in (*self.files.values(), self.table, self.notes):
            each.close()


def _written(
    root: Path, files: list[Path], encoder: Encoder, columns: Columns, labels: str | Path, known: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    writer = _Writer(root)
    try:
        for path in progress(files, "encoding examples", unit="files"):
            for block in read_examples([path], encoder.kind, columns, writer.note, labels):
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


def numbered(labels: Mapping[str, str], known: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """(the classes' names, each label's number). `labels`: each with the example that is named where it is none.

    Raises:
        MismatchError
    """
    own = sorted(set(labels), key=lambda x: (not x.isdigit(), int(x) if x.isdigit() else 0, x))
    if not known:
        known = own
    elif all(name.startswith(GENERIC) for name in known) and not own[0].isdigit() and len(own) == len(known):
        known = own
    return tuple(known), [class_number(label, known, where) for label, where in labels.items()]


def class_number(label: str, known: Sequence[str], where: str) -> int:
    """By name, or by number from 0. Raises MismatchError."""
    if label in known:
        return list(known).index(label)
    if label.isdigit() and int(label) < len(known):
        return int(label)
    raise MismatchError(f"{where}: {UnknownNameError('class', label, known)} Are these the model's own classes?")
