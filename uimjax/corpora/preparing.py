"""Files of documents, of text or of tokens, to a prepared corpus."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import xxhash

from uimjax import store
from uimjax.corpora import pretokenised
from uimjax.corpora.arrays import as_npy
from uimjax.corpora.hub import PREFIX, Hub, digest, parse_hub, read_hub
from uimjax.corpora.pieces import Piece, kept_pieces, pieces
from uimjax.corpora.prepared import DOCUMENTS, MANIFEST, NOTES, ROWS, Prepared, open_prepared
from uimjax.corpora.pretokenised import Kept, Raw, read_kept
from uimjax.corpora.texts import Columns, Note, Skipped, Text, called, files_of, read_texts
from uimjax.errors import DataError, MismatchError, OutputError, UsageError
from uimjax.progress import Progress, quiet
from uimjax.store.base import make_folder

VERSION = 2
CHARACTERS = 1 << 18  # tokenised together


def prepare(
    paths: Sequence[str | Path],
    tokenizer: tokenizers.Tokenizer,
    folder: str | Path,
    *,
    length: int,
    columns: Columns | None = None,
    raw: Raw | None = None,
    progress: Progress = quiet,
) -> Prepared:
    """Cut documents into rows of `length` tokens and keep them in a folder. One that holds the same already is opened.

    Files of text are tokenised; files of tokens (`pretokenised`, plain arrays of ids as `raw` says) are taken as they
    are, and their text is what the tokenizer makes of them. A hub's dataset is `hub:NAME` (`hub.read_hub`).
    Tokens are those of the tokenizer with its own special ones. `counted` is 1 for a token whose loss counts: all but
    padding (a row's first token has nothing before it, and no loss). Rows that are no document, and documents that are
    the same as one before (they stay: what was trained on twice was trained on twice) are listed in `notes.jsonl`.

    Raises:
        MissingFileError, DataError, UnknownNameError: as `texts.read_texts`, or there is no document at all.
        CorruptError; MismatchError: tokens that the tokenizer does not know.
        UsageError: rows of under two tokens. OutputError: the folder holds something else.
    """
    if length < 2:
        raise UsageError(
            f"rows of {length} token; at least 2 were wanted, as the first of a row is predicted by nothing"
        )
    root, columns, raw, files = Path(folder), columns or Columns(), raw or Raw(), corpus_files(paths)
    made_of = {
        "version": VERSION,
        "files": {str(path): _digest(path) for path in progress(files, "checking files", unit="files")},
        "columns": {key: value for key, value in asdict(columns).items() if key != "label"},  # documents have none
        "raw": asdict(raw),
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
    cuts = _Cutter(columns, raw, tokenizer, length, called(files))
    counts = _written(root, files, cuts, progress)
    store.write_manifest(root / MANIFEST, made_of | counts)  # last: a folder without it was stopped
    return open_prepared(root)


Where = Path | Hub


def corpus_files(paths: Sequence[str | Path]) -> list[Where]:
    """The files of a corpus, of text or of tokens, and datasets of a hub. Raises as `texts.files_of` and
    `hub.parse_hub`; UsageError: files of text and of tokens."""
    hubs = [path for path in paths if str(path).startswith(PREFIX)]
    plain = [path for path in paths if path not in hubs]
    found: list[Where] = [parse_hub(str(path)) for path in hubs]
    found += files_of(plain, pretokenised.KINDS) if plain or not hubs else []
    kept = [path for path in found if _has_tokens(path)]
    if kept and len(kept) < len(found):
        other = next(path for path in found if path not in kept)
        raise UsageError(f"{kept[0]} holds tokens and {other} text: prepare the one or the other")
    return found


def _digest(path: Where) -> str:
    """Of what it holds; of Megatron's tokens with their index."""
    if isinstance(path, Hub):
        return digest(path)
    index = path.with_suffix(".idx")
    beside = [index] if _has_tokens(path) and index.is_file() else []
    return " ".join(store.digest_file(its) for its in (path, *beside))


def _has_tokens(path: Where) -> bool:
    return isinstance(path, Path) and path.suffix in pretokenised.KINDS


def _check_ours(root: Path) -> None:
    """Notes are the first file of a corpus: files of these names without them are somebody's.

    Raises:
        OutputError
    """
    theirs = [name for name in (ROWS, DOCUMENTS, "tokens.npy", "counted.npy") if (root / name).exists()]
    if theirs and not (root / NOTES).exists():
        raise OutputError(f"{root} holds {', '.join(theirs)} and no corpus of ours; choose an empty or a new folder")


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


class _Cutter(NamedTuple):
    """Files to documents, each with its rows."""

    columns: Columns
    raw: Raw
    tokenizer: tokenizers.Tokenizer
    length: int
    names: Mapping[Any, str]  # what the files are called

    def blocks(self, path: Where, note: Note) -> Iterator[list[tuple[Text, list[Piece]]]]:
        if isinstance(path, Path) and _has_tokens(path):
            for kept in read_kept(path, self.raw, note, self.names[path]):
                yield [self.kept(its) for its in kept]
            return
        hub = isinstance(path, Hub)
        for block in read_hub(path, self.columns, note) if hub else read_texts([path], self.columns, note, self.names):
            for few in _together(block):
                codes = self.tokenizer.encode_batch([each.text for each in few])
                yield [(its, list(pieces(code, self.length))) for its, code in zip(few, codes, strict=True)]
                del codes  # or they lie beside the next ones

    def kept(self, its: Kept) -> tuple[Text, list[Piece]]:
        most = self.tokenizer.get_vocab_size(with_added_tokens=True)
        if its.tokens.min() < 0 or its.tokens.max() >= most:
            odd = its.tokens[(its.tokens < 0) | (its.tokens >= most)][0]
            raise MismatchError(
                f"{its.id} holds token {odd}, and the tokenizer has {most} words. It was made with another tokenizer, "
                "or is of another dtype (--token_dtype)."
            )
        text, cut = kept_pieces(its.tokens, self.tokenizer, self.length)
        return Text(its.id, its.source, text), cut


def _together(block: list[Text]) -> Iterator[list[Text]]:
    """Documents in parts of about `CHARACTERS`: their tokens with their places take hundreds of times as much."""
    few, size = [], 0
    for its in block:
        few.append(its)
        size += len(its.text)
        if size >= CHARACTERS:
            yield few
            few, size = [], 0
    if few:
        yield few


def _written(root: Path, files: list[Where], cutter: _Cutter, progress: Progress) -> dict[str, Any]:
    """How many rows, documents and tokens there are, and how many notes of each kind."""
    writer = _Writer(root)
    rows = documents = tokens = cut = 0
    try:
        for path in progress(files, "tokenising", unit="files"):
            for every in cutter.blocks(path, writer.note):
                block = [(its, cut) for its, cut in every if cut]
                for its in (its for its, cut in every if not cut):
                    writer.note(Skipped(str(path), 0, f"no token of {its.id}: the tokenizer makes none"))
                if not block:
                    continue
                texts, its = zip(*block, strict=True)
                writer.files["digests"].write(b"".join(xxhash.xxh3_128_digest(each.text.encode()) for each in texts))
                _rows(writer, [(documents + k, piece) for k, each in enumerate(its) for piece in each], cutter.length)
                writer.table(DOCUMENTS, [list(column) for column in zip(*texts, strict=True)])
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
        as_npy(root, name, (rows, cutter.length), dtype)
    kept = any(map(_has_tokens, files))
    return {"kept tokens": kept, "rows": rows, "documents": documents, "tokens": tokens, "longer than a row": cut,
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
