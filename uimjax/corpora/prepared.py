"""A corpus that was made ready: rows of tokens on disk, and for each the characters it came from.

A document longer than a row goes on in the next one. The tokens lie in plain arrays that are mapped, not read, so
memory does not grow with the corpus. *Guarantee*: `text[start:stop]` of a row's document is what the row's tokens say;
no document is left out or merged without a line in `notes.jsonl`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from uimjax import store
from uimjax.corpora.pieces import Piece, pieces, placed
from uimjax.errors import CorruptError, MismatchError, MissingFileError, ShapeError

MANIFEST, ROWS, DOCUMENTS, NOTES = "corpus.json", "rows.parquet", "documents.parquet", "notes.jsonl"
_NAMES = ["id", "source"]


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

    def names(self) -> pa.Table:
        """`id` and `source` of every document, by number."""
        return self._table(DOCUMENTS, _NAMES)

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
        if self.manifest["kept tokens"]:
            return self._kept(rows, tokenizer)
        whole, length = self._documents({int(owner[row]) for row in rows}), self.manifest["length"]
        cut = {number: list(pieces(tokenizer.encode(text), length)) for number, text in whole.items()}
        return [cut[int(owner[row])][row - int(np.searchsorted(owner, owner[row]))] for row in rows]

    def _kept(self, rows: Sequence[int], tokenizer: tokenizers.Tokenizer) -> list[Piece]:
        """Rows whose tokens are not what the tokenizer would make of their text."""
        held, places = self.rows, self._table(ROWS).take(pa.array(rows)).to_pylist()
        made = []
        for row, its in zip(rows, places, strict=True):
            tokens = held["tokens"][row][: int(held["counted"][row].sum())].tolist()
            made.append(placed(Piece(tokens, its["start"], its["stop"], []), tokenizer))
        return made

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
