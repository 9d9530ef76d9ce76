"""An index on disk: what it was built from, its shards, and whether every byte is still right.

Files: `manifest.json` (digests of everything the rows follow from), `journal.jsonl` (one line a finished shard),
`shards/`, and `price.json` (what its coding costs). Rows may have come in several parts (built, then appended or
merged); their ids run on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import programs, store
from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax.errors import CorruptError, MismatchError, MissingFileError, UimError
from uimjax.progress import Progress, quiet
from uimjax.sketch import AnySketch
from uimjax.store.coding import Shapes
from uimjax.store.shards import VERSION
from uimjax.taps import Sites

MANIFEST, JOURNAL, SHARDS, PRICE = "manifest.json", "journal.jsonl", "shards", "price.json"


@dataclass(frozen=True)
class Index:
    """An index on disk. `manifest` says what it was built from; `entries` are its finished shards."""

    folder: store.Place
    manifest: dict[str, Any]
    entries: tuple[store.Entry, ...]

    @property
    def rows(self) -> int:
        return count(self.manifest)

    @property
    def sketch(self) -> AnySketch:
        return sketching.from_record(self.manifest["sketch"])

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        return tuple((a, b) for a, b in self.manifest["blocks"])

    @property
    def shapes(self) -> Shapes:
        """Of the matrices that the blocks hold."""
        return tuple((p, q) for p, q in self.manifest["shapes"])

    @property
    def coding(self) -> store.Coding:
        return store.Coding.parse(self.manifest["coding"])

    @property
    def row_bytes(self) -> int:
        """Of one stored vector; id, loss and norm take 16 more."""
        return store.row_bytes(self.coding, self.shapes)

    @property
    def price(self) -> dict[str, Any] | None:
        """What the coding costs, measured when it was built; None before the build has ended."""
        path = self.folder / PRICE
        return store.read_manifest(path) if path.exists() else None

    def shards(self, entries: Sequence[store.Entry] | None = None) -> Iterator[store.Shard]:
        """Every shard in order (or those of `entries`), its CRCs verified; the next are read while one is looked at."""
        return store.ahead(self.entries if entries is None else entries, self.shard)

    def shard(self, entry: store.Entry) -> store.Shard:
        path = self.folder / SHARDS / entry.file
        return store.read_shard(path, entry.stop - entry.start, self.coding, self.shapes)

    def vectors(self, shard: store.Shard) -> Any:
        """What the coding left of a shard's unit vectors, float32 `[n, D]`."""
        return store.unpack(self.coding, self.shapes, shard.vectors)


def count(manifest: dict[str, Any]) -> int:
    """Rows of all parts."""
    return sum(part["rows"] for part in manifest["parts"])


def describe(
    found: Sites, params: Any, sketch: AnySketch, coding: store.Coding, choices: dict[str, Any]
) -> dict[str, Any]:
    """The manifest but for its parts: everything else that the bytes of the rows follow from. `choices`: batch_size,
    shard_rows, devices."""
    blocks = sketching.columns(found, sketch)
    return {
        "version": VERSION,
        "width": blocks[-1][1],
        "coding": str(coding),
        **choices,
        "sketch": sketching.record(sketch),
        "blocks": [list(block) for block in blocks],
        "shapes": [list(shape) for shape in sketching.shapes(found, sketch)],
        "leaves": [[leaf.path, list(leaf.shape)] for leaf in found.used],
        "params": store.digest_tree(params),
        "task": task_digest(found),
        "jax": jax.__version__,
    }


def part(data: Any) -> dict[str, Any]:
    """How a manifest knows rows."""
    return {"rows": row.count(data), "data": store.digest_tree(data)}


def task_digest(found: Sites) -> str:
    """Of the loss's own program, the constants it closes over, and the parameters left out."""
    excluded = str(found.excluded) if found.excluded else ""
    return programs.digest(found.program, found.constants, excluded + programs.own_rules(found.program))


def check_order(entries: list[store.Entry], path: store.Place) -> None:
    """A journal lists shards 0, 1, ... of adjoining rows; anything else has lost or gained a line."""
    for number, entry in enumerate(entries):
        if entry.shard != number or entry.start != (entries[number - 1].stop if number else 0):
            raise CorruptError(
                f"{path} lists shard {entry.shard} where {number} was due; run `uimjax index repair` with its config"
            )


def intact(path: store.Place, entry: store.Entry) -> bool:
    return path.exists() and path.stat().st_size == entry.size and store.digest_file(path) == entry.xxh3


def read_manifest(root: store.Place) -> dict[str, Any]:
    """Raises MissingFileError, CorruptError, or MismatchError where another version wrote it."""
    if not (root / MANIFEST).exists():
        raise MissingFileError(f"{root} holds no index (no {MANIFEST}). Build one with `uimjax index build`.")
    found = store.read_manifest(root / MANIFEST)
    if found.get("version") != VERSION:
        raise MismatchError(
            f"{root} holds an index of format {found.get('version')}; this version reads format {VERSION}. Build it "
            "again into another folder."
        )
    return found


def open_index(folder: str | store.Place) -> Index:
    """Read the manifest and journal; shards are read when asked for, at a URL (s3://, gs://, https:// ...) where they
    are, through fsspec.

    Raises:
        MissingFileError: there is no index there, or it is not finished. CorruptError: it is damaged. MismatchError:
        another version wrote it.
    """
    root = store.place(folder)
    return finished(root, read_manifest(root))


def finished(root: store.Place, manifest: dict[str, Any]) -> Index:
    """An index by a manifest that was read. Raises as `open_index`."""
    entries = tuple(store.Journal.read(root / JOURNAL))
    check_order(list(entries), root / JOURNAL)
    covered, wanted = entries[-1].stop if entries else 0, count(manifest)
    if covered != wanted:
        raise MissingFileError(
            f"{root} holds {covered} of {wanted} rows: its build was stopped. "
            "Run the same `uimjax index build` again; it continues where it stopped."
        )
    return Index(root, manifest, entries)


def verify_index(folder: str | Path, progress: Progress = quiet) -> list[str]:
    """What is wrong with an index, in words that name the file and the shard; empty when every digest, size and CRC is
    right."""
    root = store.place(folder)
    if not (root / MANIFEST).exists():
        raise MissingFileError(f"{root} holds no index (no {MANIFEST}). Build one with `uimjax index build`.")
    try:
        index = open_index(root)
        problems = [] if index.price else [f"{root / PRICE} is missing"]
    except (CorruptError, MissingFileError) as error:
        return [str(error)]
    for entry in progress(index.entries, "verifying", unit="shards"):
        path = index.folder / SHARDS / entry.file
        if not path.exists():
            problems.append(f"shard {entry.shard}: {path} is missing")
        elif not intact(path, entry):
            problems.append(f"shard {entry.shard}: {path} differs from what was written")
        else:
            try:
                ids = index.shard(entry).ids
                if not np.array_equal(ids, np.arange(entry.start, entry.stop)):
                    problems.append(f"shard {entry.shard}: {path} holds other rows than the journal says")
            except UimError as error:
                problems.append(f"shard {entry.shard}: {error}")
    return problems
