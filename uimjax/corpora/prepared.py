"""A corpus made ready to train on or to trace in: rows of tokens on disk, and for each the characters it came from.

A document longer than a row goes on in the next one. The tokens lie in plain arrays that are mapped, not read, so
memory does not grow with the corpus. *Guarantee*: `text[start:stop]` of a row's document is what the row's tokens say;
no document is left out or merged without a line in `notes.jsonl`.
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import xxhash

from uimjax import store
from uimjax.corpora.texts import Columns, Skipped, files_of, read_texts
from uimjax.errors import (
    CorruptError,
    DataError,
    MismatchError,
    MissingFileError,
    OutputError,
    ShapeError,
    UsageError,
)
from uimjax.progress import Progress, quiet
from uimjax.store.base import make_folder

MANIFEST, ROWS, DOCUMENTS, NOTES = "corpus.json", "rows.parquet", "documents.parquet", "notes.jsonl"
VERSION = 1
_NAMES = ["id", "source"]


class Piece(NamedTuple):
    """A row: its tokens, characters `[start, stop)` of its document, and those of each token."""

    tokens: list[int]
    start: int
    stop: int
    places: list[tuple[int, int]]


@dataclass(frozen=True)
class Prepared:
    """`rows`: `{"tokens": [N, T] int32, "counted": [N, T] uint8}`, mapped from disk; `manifest`: what it was made of
    and how many of what there were."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def rows(self) -> dict[str, np.ndarray]:
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "counted")}

    def metadata(self) -> pa.Table:
        """A line a row: `document` (its number), `id`, `source`, `start` and `stop` (characters of its document)."""
        rows, documents = self._table(ROWS), self._table(DOCUMENTS, _NAMES)
        own = rows["document"]
        return rows.append_column("id", documents["id"].take(own)).append_column(
            "source", documents["source"].take(own)
        )

    def _table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        with _undamaged(self.folder / name) as path:
            return pq.read_table(path, columns=columns, page_checksum_verification=True)

    def texts(self, rows: Sequence[int]) -> list[str]:
        """The characters that rows came from."""
        places = self._table(ROWS).take(pa.array(rows)).to_pylist()
        whole = self._documents({place["document"] for place in places})
        return [whole[place["document"]][place["start"] : place["stop"]] for place in places]

    def every_text(self) -> Iterator[tuple[int, str]]:
        """(number, text) of every document, a part of the file at a time."""
        number = 0
        with _undamaged(self.folder / DOCUMENTS) as path, pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.metadata.num_row_groups):
                for text in file.read_row_group(group, columns=["text"])["text"].to_pylist():
                    yield number, text
                    number += 1

    def documents(self, numbers: Sequence[int]) -> list[str]:
        """Whole texts, by number."""
        found = self._documents(set(numbers))
        return [found[number] for number in numbers]

    @property
    def text_bytes(self) -> int:
        """Of all texts, about."""
        with _undamaged(self.folder / DOCUMENTS) as path, pq.ParquetFile(path) as file:
            held = file.metadata
            return sum(held.row_group(k).total_byte_size for k in range(held.num_row_groups))

    def spelled(self, rows: Sequence[int], tokenizer: tokenizers.Tokenizer) -> list[Piece]:
        """Rows again as they were cut, with the characters of each of their tokens.

        Raises:
            MismatchError: another tokenizer than the one that the corpus was prepared with.
        """
        if self.manifest["tokenizer"] != store.digest_text(tokenizer.to_str()):
            raise MismatchError(f"{self.folder} was prepared with another tokenizer than this one")
        owner = self._table(ROWS, ["document"])["document"].to_numpy()
        whole, length = self._documents({int(owner[row]) for row in rows}), self.manifest["length"]
        cut = {number: list(pieces(tokenizer.encode(text), length)) for number, text in whole.items()}
        return [cut[int(owner[row])][row - int(np.searchsorted(owner, owner[row]))] for row in rows]

    def _documents(self, wanted: set[int]) -> dict[int, str]:
        """Their texts by number; only the parts of the file that hold them are read."""
        found: dict[int, str] = {}
        with _undamaged(self.folder / DOCUMENTS) as path, pq.ParquetFile(path, page_checksum_verification=True) as file:
            sizes = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes)])
            for number in sorted(wanted):
                group = int(np.searchsorted(starts, number, side="right")) - 1
                if number not in found:
                    text = file.read_row_group(group, columns=["text"])["text"]
                    ours = (n for n in wanted if starts[group] <= n < starts[group + 1])
                    found |= {n: text[n - int(starts[group])].as_py() for n in ours}
        return found


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[Path]:
    """Raises CorruptError: a checksum does not fit, or the file is cut short."""
    try:
        yield path
    except (OSError, pa.ArrowException) as error:
        raise CorruptError(f"{path} is damaged ({error}); prepare it again into a new folder") from error


def pieces(encoded: tokenizers.Encoding, length: int) -> Iterator[Piece]:
    """A document's tokens cut into rows. A row never begins inside a character of several tokens."""
    ids, places = encoded.ids, encoded.offsets
    first = 0
    while first < len(ids):
        stop = min(first + length, len(ids))
        while stop < len(ids) and stop > first + 1 and places[stop][0] < places[stop - 1][1]:
            stop -= 1
        said = [place for place in places[first:stop] if place[1] > place[0]]  # special tokens stand for no character
        yield Piece(ids[first:stop], said[0][0] if said else 0, said[-1][1] if said else 0, places[first:stop])
        first = stop


def prepare(
    paths: Sequence[str | Path],
    tokenizer: tokenizers.Tokenizer,
    folder: str | Path,
    *,
    length: int,
    columns: Columns | None = None,
    progress: Progress = quiet,
) -> Prepared:
    """Tokenise documents into rows of `length` and keep them in a folder. One that holds the same already is opened.

    Tokens are those of the tokenizer with its own special ones. `counted` is 1 for a token whose loss counts: all but
    padding (a row's first token has nothing before it, and no loss). Rows that are no document, and documents that are
    the same as one before (they stay: what was trained on twice was trained on twice) are listed in `notes.jsonl`.

    Raises:
        MissingFileError, DataError, UnknownNameError: as `texts.read_texts`, or there is no document at all.
        UsageError: rows of under two tokens. OutputError: the folder holds something else.
    """
    if length < 2:
        raise UsageError(
            f"rows of {length} token; at least 2 were wanted, as the first of a row is predicted by nothing"
        )
    root, columns, files = Path(folder), columns or Columns(), files_of(paths)
    made_of = {
        "version": VERSION,
        "files": {str(path): store.digest_file(path) for path in progress(files, "checking files", unit="files")},
        "columns": asdict(columns),
        "tokenizer": store.digest_text(tokenizer.to_str()),
        "length": length,
    }
    if (root / MANIFEST).is_file():
        held = open_prepared(root)
        if all(held.manifest.get(key) == value for key, value in made_of.items()):
            return held
        raise OutputError(f"{root} holds a corpus of other files or choices; choose another folder, or remove that one")
    _check_ours(root)
    make_folder(root)
    counts = _written(root, files, columns, tokenizer, length, progress)
    store.write_manifest(root / MANIFEST, made_of | counts)  # last: a folder without it was stopped
    return open_prepared(root)


def _check_ours(root: Path) -> None:
    """Notes are the first file of a corpus: files of these names without them are somebody's.

    Raises:
        OutputError
    """
    theirs = [name for name in (ROWS, DOCUMENTS, "tokens.npy", "counted.npy") if (root / name).exists()]
    if theirs and not (root / NOTES).exists():
        raise OutputError(f"{root} holds {', '.join(theirs)} and no corpus of ours; choose an empty or a new folder")


def open_prepared(folder: str | Path) -> Prepared:
    """Raises MissingFileError, CorruptError (the manifest was changed), ShapeError (arrays of another size)."""
    root = Path(folder)
    if not (root / MANIFEST).is_file():
        raise MissingFileError(
            f"{root} holds no prepared corpus (no {MANIFEST}), or one that was stopped; prepare it again"
        )
    made = Prepared(root, store.read_manifest(root / MANIFEST))
    for name, values in made.rows.items():
        if values.shape != (made.manifest["rows"], made.manifest["length"]):
            raise ShapeError(f"{root}: {name} is {list(values.shape)}; prepare it again into a new folder")
    return made


class _Writer:
    """What is written as it comes: raw arrays, tables in groups of rows, notes."""

    def __init__(self, root: Path):
        self.notes = (root / NOTES).open("w")
        self.files = {name: (root / f"{name}.raw").open("wb") for name in ("tokens", "counted", "digests")}
        of = {ROWS: [("document", pa.int64()), ("start", pa.int64()), ("stop", pa.int64())],
              DOCUMENTS: [("id", pa.string()), ("source", pa.string()), ("text", pa.string())]}  # fmt: skip
        self.schemas = {name: pa.schema(fields) for name, fields in of.items()}
        self.tables = {
            name: pq.ParquetWriter(root / name, schema, write_page_checksum=True)
            for name, schema in self.schemas.items()
        }
        self.counts: Counter[str] = Counter()

    def note(self, row: Skipped) -> None:
        self.notes.write(json.dumps(row._asdict()) + "\n")
        self.counts[row.why.split(":")[0].split(" of ")[0]] += 1

    def table(self, name: str, columns: list[list[Any]]) -> None:
        self.tables[name].write_table(pa.table(columns, schema=self.schemas[name]))

    def close(self) -> None:
        for each in (*self.files.values(), *self.tables.values(), self.notes):
            each.close()


def _written(
    root: Path, files: list[Path], columns: Columns, tokenizer: tokenizers.Tokenizer, length: int, progress: Progress
) -> dict[str, Any]:
    """How many rows, documents and tokens there are, and how many notes of each kind."""
    writer = _Writer(root)
    rows = documents = tokens = cut = 0
    try:
        for path in progress(files, "tokenising", unit="files"):
            for block in read_texts([path], columns, writer.note):
                writer.files["digests"].write(b"".join(xxhash.xxh3_128_digest(each.text.encode()) for each in block))
                its = [list(pieces(code, length)) for code in tokenizer.encode_batch([each.text for each in block])]
                _rows(writer, [(documents + k, piece) for k, each in enumerate(its) for piece in each], length)
                writer.table(DOCUMENTS, [list(column) for column in zip(*block, strict=True)])
                documents, rows = documents + len(block), rows + sum(map(len, its))
                tokens += sum(len(piece.tokens) for each in its for piece in each)
                cut += sum(len(each) > 1 for each in its)
    finally:
        writer.close()
    copies = _note_copies(root)
    if not rows:
        told = f" ({dict(sorted(writer.counts.items()))}; see {root / NOTES})" if writer.counts else ""
        raise DataError(f"no document was found in {', '.join(map(str, files[:3]))}{told}")
    for name, dtype in (("tokens", np.int32), ("counted", np.uint8)):
        _as_npy(root, name, (rows, length), dtype)
    return {"rows": rows, "documents": documents, "tokens": tokens, "longer than a row": cut,
            "notes": dict(sorted(writer.counts.items())) | ({"duplicate": copies} if copies else {})}  # fmt: skip


def _note_copies(root: Path) -> int:
    """Documents whose text is that of one before, in the notes; how many there are."""
    raw = root / "digests.raw"
    digests = np.frombuffer(raw.read_bytes(), np.uint64).reshape(-1, 2)
    raw.unlink()
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    same = np.concatenate([[False], (digests[order[1:]] == digests[order[:-1]]).all(1)]) if len(order) else []
    firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))  # of each run of copies
    copies = {int(order[k]): int(order[firsts[k]]) for k in np.flatnonzero(same)}
    ids = pq.read_table(root / DOCUMENTS, columns=["id"])["id"] if copies else []
    with (root / NOTES).open("a") as notes:
        for copy, first in sorted(copies.items()):
            told = {"document": copy, "id": ids[copy].as_py(), "why": f"duplicate of {ids[first].as_py()} (kept)"}
            notes.write(json.dumps(told) + "\n")
    return len(copies)


def _rows(writer: _Writer, its: list[tuple[int, Piece]], length: int) -> None:
    tokens, counted = np.zeros((len(its), length), np.int32), np.zeros((len(its), length), np.uint8)
    for row, (_, piece) in enumerate(its):
        tokens[row, : len(piece.tokens)], counted[row, : len(piece.tokens)] = piece.tokens, 1
    writer.files["tokens"].write(tokens.tobytes())
    writer.files["counted"].write(counted.tobytes())
    writer.table(ROWS, [[number for number, _ in its], [p.start for _, p in its], [p.stop for _, p in its]])


def _as_npy(root: Path, name: str, shape: tuple[int, int], dtype: Any) -> None:
    """Raw bytes behind a header, as `np.load` maps them."""
    raw, path = root / f"{name}.raw", root / f"{name}.npy"
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as out, raw.open("rb") as held:
        np.lib.format.write_array_header_1_0(out, header)
        shutil.copyfileobj(held, out, 1 << 20)
    raw.unlink()
