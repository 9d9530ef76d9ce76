"""Build once, ask forever: sketched gradients of every training row, in checked shards, resumable to the byte.

Files: `manifest.json` (digests of everything the rows follow from), `journal.jsonl` (one line a finished shard) and
`shards/`. *Guarantee*: for a fixed batch size, a build that was killed at any moment and started again gives the same
bytes as one that was not; a shard that exists is never trusted unless the journal lists it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import programs, store
from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax.errors import (
    CorruptError,
    MismatchError,
    MissingFileError,
    OutputError,
    UimError,
    UnknownNameError,
    UsageError,
)
from uimjax.interpret import base
from uimjax.mesh import shard_batch
from uimjax.progress import Progress, quiet
from uimjax.sketch import AnySketch, Sketch
from uimjax.store.base import TEMPORARY, make_folder
from uimjax.store.shards import DTYPES, VERSION
from uimjax.taps import Sites, check_budget
from uimjax.task import Task


@dataclass(frozen=True)
class Index:
    """An index on disk. `manifest` says what it was built from; `entries` are its finished shards."""

    folder: Path
    manifest: dict[str, Any]
    entries: tuple[store.Entry, ...]

    @property
    def rows(self) -> int:
        return self.manifest["rows"]

    @property
    def sketch(self) -> AnySketch:
        return sketching.from_record(self.manifest["sketch"])

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        return tuple((a, b) for a, b in self.manifest["blocks"])

    def shards(self) -> Iterator[store.Shard]:
        """Every shard in order, its CRCs verified."""
        for entry in self.entries:
            yield self.shard(entry)

    def shard(self, entry: store.Entry) -> store.Shard:
        path = self.folder / "shards" / entry.file
        return store.read_shard(path, entry.stop - entry.start, self.manifest["width"], self.manifest["dtype"])


def build_index(
    task: Task,
    params: Any,
    data: Any,
    folder: str | Path,
    *,
    sketch: AnySketch | None = None,
    batch_size: int = 64,
    shard_rows: int = 1024,
    dtype: str = "float32",
    mesh: Any = None,
    progress: Progress = quiet,
) -> Index:
    """Sketch every row's gradient into shards; shards that the journal lists are kept.

    `sketch` defaults to rank 16 on both sides. `dtype` is that of the stored unit vectors (norms are always float32).
    With a `mesh`, a batch is split over its data axis.

    Raises:
        NonFiniteError, ShapeError, TapError: from the parameters, rows or loss, before anything is compiled or written.
        MismatchError: the folder holds an index of other parameters, rows or choices.
        OutputError: the folder cannot be written. CorruptError: what it holds is damaged.
    """
    sketch = Sketch() if sketch is None else sketch
    if dtype not in DTYPES:
        raise UnknownNameError("dtype of an index", dtype, DTYPES)
    if batch_size < 1 or shard_rows < 1:
        raise UsageError(f"batch_size {batch_size} and shard_rows {shard_rows} should be at least 1")
    found = base.training_sites(task, params, data)
    devices = 1 if mesh is None else mesh.size
    if batch_size % devices:
        raise UsageError(f"batch_size {batch_size} does not divide over {devices} devices; choose a multiple")
    check_budget(found, batch_size)
    wanted = describe(found, params, data, sketch, batch_size, shard_rows, dtype, devices)
    root = Path(folder)
    if not (root / "manifest.json").exists() and (root / "shards").exists() and any((root / "shards").iterdir()):
        raise OutputError(f"{root}/shards holds files and {root} no index; choose another folder")
    make_folder(make_folder(root) / "shards")
    _agree(root / "manifest.json", wanted)
    with store.Journal(root / "journal.jsonl") as journal:
        _sweep(root, journal.entries)
        held = {entry.shard: entry for entry in journal.entries}
        starts = range(0, wanted["rows"], shard_rows)
        spans = [(k, start, min(start + shard_rows, wanted["rows"])) for k, start in enumerate(starts)]
        check_order(journal.entries, journal.path)
        program = base.row_program(found, found, sketch)
        drawn = sketching.drawn(found, sketch)
        for number, start, stop in progress(spans, "sketching gradients", unit="shards", skip=len(held)):
            name = f"{number:06d}.parquet"
            path = root / "shards" / name
            if number in held and _intact(path, held[number]):
                continue
            shard = _compute(program, params, drawn, data, start, stop, batch_size, mesh)
            store.write_shard(path, shard, dtype)
            entry = store.Entry(number, start, stop, name, path.stat().st_size, store.digest_file(path))
            _record(journal, held.get(number), entry, path)
        return Index(root, wanted, tuple(journal.entries))


def _record(journal: store.Journal, before: store.Entry | None, entry: store.Entry, path: Path) -> None:
    """Append a new shard; one that was damaged must have come back as it was."""
    if before is None:
        journal.append(entry)
    elif entry != before:
        raise CorruptError(f"{path} was damaged and computing it again gave other bytes; build into a new folder")


def _compute(program, params, drawn, data, start, stop, batch_size, mesh) -> store.Shard:
    losses, norms, vectors = [], [], []
    for batch in row.batches(data, batch_size, start, stop):
        rows = batch.rows if mesh is None else shard_batch(mesh, batch.rows)
        loss, found = program(params, rows, drawn)
        norm, unit = _unit(found)
        real = int(batch.mask.sum())
        losses.append(np.asarray(loss, np.float32)[:real])
        norms.append(np.asarray(norm)[:real])
        vectors.append(np.asarray(unit)[:real])
    joined = [np.concatenate(parts) for parts in (losses, norms, vectors)]
    base.finite(joined[1], f"gradients of training rows {start} to {stop - 1}")
    return store.Shard(np.arange(start, stop), *joined)


@jax.jit
def _unit(rows):
    norm = jnp.linalg.norm(rows, axis=1)
    return norm, rows / jnp.where(norm > 0, norm, 1.0)[:, None]


def describe(found: Sites, params, data, sketch, batch_size, shard_rows, dtype, devices) -> dict[str, Any]:
    """The manifest: everything that the bytes of the rows follow from."""
    blocks = sketching.columns(found, sketch)
    return {
        "version": VERSION,
        "rows": row.count(data),
        "width": blocks[-1][1],
        "dtype": dtype,
        "shard_rows": shard_rows,
        "batch_size": batch_size,
        "devices": devices,
        "sketch": sketching.record(sketch),
        "blocks": [list(block) for block in blocks],
        "leaves": [[leaf.path, list(leaf.shape)] for leaf in found.used],
        "params": store.digest_tree(params),
        "data": store.digest_tree(data),
        "task": task_digest(found),
        "jax": jax.__version__,
    }


def task_digest(found: Sites) -> str:
    """Of the loss's own program, the constants it closes over, and the parameters left out."""
    excluded = str(found.excluded) if found.excluded else ""
    return programs.digest(found.program, found.constants, excluded + programs.own_rules(found.program))


_MEANING = {
    "params": "other parameters",
    "data": "other training rows",
    "task": "another loss",
    "sketch": "another sketch",
    "jax": "another version of JAX",
}


def _agree(path: Path, wanted: dict[str, Any]) -> None:
    if not path.exists():
        store.write_manifest(path, wanted)
        return
    held = store.read_manifest(path)
    differing = [key for key in wanted if held.get(key) != wanted[key]]
    if differing:
        what = ", ".join(_MEANING.get(key, f"{key} {held.get(key)} (asked for: {wanted[key]})") for key in differing)
        raise MismatchError(f"{path.parent} holds an index of {what}. Choose another folder, or remove that one.")


def _sweep(root: Path, entries: list[store.Entry]) -> None:
    """Remove what a crash left: temporary files and shards that no journal line vouches for."""
    listed = {entry.file for entry in entries}
    for path in [*root.iterdir(), *(root / "shards").iterdir()]:
        orphan = bool(re.fullmatch(r"\d{6}\.parquet", path.name)) and path.name not in listed
        if path.name.startswith(TEMPORARY) or orphan:
            path.unlink()


def _intact(path: Path, entry: store.Entry) -> bool:
    return path.exists() and path.stat().st_size == entry.size and store.digest_file(path) == entry.xxh3


def check_order(entries: list[store.Entry], path: Path) -> None:
    """A journal lists shards 0, 1, ... of adjoining rows; anything else has lost or gained a line."""
    for number, entry in enumerate(entries):
        if entry.shard != number or entry.start != (entries[number - 1].stop if number else 0):
            raise CorruptError(f"{path} lists shard {entry.shard} where {number} was due; build the index again")


def open_index(folder: str | Path) -> Index:
    """Read the manifest and journal; shards are read when asked for.

    Raises:
        MissingFileError: there is no index there, or it is not finished. CorruptError: it is damaged.
    """
    root = Path(folder)
    if not (root / "manifest.json").exists():
        raise MissingFileError(f"{root} holds no index (no manifest.json). Build one with `uimjax index build`.")
    manifest = store.read_manifest(root / "manifest.json")
    entries = tuple(store.Journal.read(root / "journal.jsonl"))
    check_order(list(entries), root / "journal.jsonl")
    covered = entries[-1].stop if entries else 0
    if covered != manifest["rows"]:
        raise MissingFileError(
            f"{root} holds {covered} of {manifest['rows']} rows: its build was stopped. "
            "Run the same `uimjax index build` again; it continues where it stopped."
        )
    return Index(root, manifest, entries)


def verify_index(folder: str | Path, progress: Progress = quiet) -> list[str]:
    """What is wrong with an index, in words; empty when every digest, size and CRC is right."""
    index = open_index(folder)
    problems = []
    for entry in progress(index.entries, "verifying", unit="shards"):
        path = index.folder / "shards" / entry.file
        if not path.exists():
            problems.append(f"shard {entry.shard}: {path} is missing")
        elif not _intact(path, entry):
            problems.append(f"shard {entry.shard}: {path} differs from what was written")
        else:
            try:
                ids = index.shard(entry).ids
                if not np.array_equal(ids, np.arange(entry.start, entry.stop)):
                    problems.append(f"shard {entry.shard}: {path} holds other rows than the journal says")
            except UimError as error:
                problems.append(f"shard {entry.shard}: {error}")
    return problems
