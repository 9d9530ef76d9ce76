"""Build once, ask forever: sketched gradients of every training row, in checked shards, resumable to the byte.

*Guarantee*: for a fixed batch size and devices, a build that was killed at any moment and started again gives the same
bytes as one that was not; a shard that exists is never trusted unless the journal lists it. Repairing recomputes what
is broken, and nothing else.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax import store
from uimjax.errors import CorruptError, MismatchError, MissingFileError, OutputError, UsageError
from uimjax.interpret import base, fits, price
from uimjax.interpret.fill import ALONE, Maker, Share, Span, fill, kept, priced, spans, sweep, written
from uimjax.interpret.index import (
    JOURNAL,
    MANIFEST,
    PRICE,
    SHARDS,
    Index,
    check_order,
    count,
    describe,
    finished,
    intact,
    open_index,
    part,
    read_manifest,
)
from uimjax.progress import Progress, quiet
from uimjax.sketch import AnySketch, Sketch
from uimjax.store.base import make_folder
from uimjax.taps import check_budget
from uimjax.task import Task


def build_index(
    task: Task,
    params: Any,
    data: Any,
    folder: str | Path,
    *,
    sketch: AnySketch | None = None,
    batch_size: int = 64,
    shard_rows: int = 1024,
    coding: str | store.Coding = "float32",
    target_recall: float | None = None,
    mesh: Any = None,
    share: Share = ALONE,
    progress: Progress = quiet,
) -> Index:
    """Sketch every row's gradient into shards; shards that the journal lists are kept.

    `sketch` defaults to rank 16 on both sides. `coding`: how unit vectors are stored (`store.Coding`; norms are always
    float32); with `target_recall` the smallest one that keeps that share of top-20 lists on a sample. What it costs is
    measured and kept (`Index.price`). With a `mesh`, a batch is split over its data axis. `share`: this process is one
    of several that build it together, each on devices of its own, in a folder that all can write to; the bytes are
    those of one.

    Raises:
        NonFiniteError, ShapeError, TapError: from the parameters, rows or loss, before anything is compiled or written.
        MismatchError: the folder holds an index of other parameters, rows or choices. UnknownNameError: no such coding.
        OutputError: the folder cannot be written. NoRoomError: memory or disk are too small. CorruptError: what it
        holds is damaged (see `repair_index`).
        LostProcessError: another process of the job is gone, or stalled.
    """
    root = store.on_disk(folder)
    maker = made(task, params, data, root, sketch, batch_size, shard_rows, coding, target_recall, mesh)
    parts = _parts(root, data)
    if not (root / MANIFEST).exists() and (root / SHARDS).exists() and any((root / SHARDS).iterdir()):
        raise OutputError(f"{root / SHARDS} holds files and {root} no index; choose another folder")
    fits.check(maker, data, root)
    make_folder(make_folder(root) / SHARDS)
    _agree(root, maker.described | {"parts": parts})
    return fill(root, maker, data, 0, share, progress)


def append_index(
    task: Task, params: Any, data: Any, folder: str | Path, *, mesh: Any = None, share: Share = ALONE,
    progress: Progress = quiet,
) -> Index:  # fmt: skip
    """Add rows to a finished index, with the choices it was built with; their ids go on from its last row. Started
    again after it was stopped, it goes on; rows that are the last part already are not added twice.

    Raises: as `build_index`; MissingFileError where there is no finished index.
    """
    root = store.on_disk(folder)
    held = read_manifest(root)
    maker = _as_built(held, task, params, data, root, mesh)
    new = part(data)
    if held["parts"][-1] != new:
        finished(root, held)  # or this is no moment to add to it; by what was read, as others may be adding it too
        held["parts"].append(new)
    _same(root, held, maker.described | {"parts": held["parts"]})
    fits.check(maker, data, root, more=True)
    store.write_manifest(root / MANIFEST, held)
    return fill(root, maker, data, count(held) - new["rows"], share, progress)


def repair_index(
    task: Task,
    params: Any,
    data: Any,
    folder: str | Path,
    *,
    mesh: Any = None,
    progress: Progress = quiet,
    **choices: Any,
) -> list[str]:
    """Recompute what is broken, in words; the bytes are those that were lost. `data`: the rows of all parts. `choices`
    of `build_index` are needed only where the manifest itself is damaged.

    Raises: as `build_index`; CorruptError where computing again gives other bytes than the journal vouches for.
    """
    root = store.on_disk(folder)
    if not (root / MANIFEST).exists():
        raise MissingFileError(f"{root} holds no index (no {MANIFEST}). Build one with `uimjax index build`.")
    with store.Journal.locked(root / JOURNAL):
        return _repair(root, task, params, data, mesh, progress, choices)


def _repair(root, task, params, data, mesh, progress, choices) -> list[str]:
    done: list[str] = []
    try:
        held = read_manifest(root)
        maker = _as_built(held, task, params, data, root, mesh)
        _same(root, held, maker.described | {"parts": _parts(root, data)})
    except CorruptError:
        defaults = {"sketch": None, "batch_size": 64, "shard_rows": 1024, "coding": "float32", "target_recall": None}
        maker = made(task, params, data, root / "none", mesh=mesh, **(defaults | choices))
        held = maker.described | {"parts": [part(data)]}  # its rows are taken for one part
        _check_witness(root, maker, data, spans(held))
        store.write_manifest(root / MANIFEST, held)
        done.append(f"{root / MANIFEST}: written again")
    known = {entry.shard: entry for entry in store.Journal.salvage(root / JOURNAL)}
    entries = []
    for span in progress(spans(held), "repairing", unit="shards"):
        entry = known.get(span.number)
        if entry is None or not intact(root / SHARDS / entry.file, entry):
            entry = written(root, maker, data, 0, span, entry)
            done.append(f"shard {span.number}: {root / SHARDS / entry.file} computed again")
        entries.append(entry)
    if store.Journal.rewrite(root / JOURNAL, entries):
        done.append(f"{root / JOURNAL}: written again")
    if priced(root, maker, data, 0):
        done.append(f"{root / PRICE}: measured again")
    return done


def _check_witness(root: Path, maker: Maker, data: Any, whole: list[Span]) -> None:
    """A manifest that is lost says no more what the shards were made of: one that is intact must come out the same.

    Raises:
        MismatchError: it does not. Nothing was changed.
    """
    for entry in store.Journal.salvage(root / JOURNAL):
        if not intact(root / SHARDS / entry.file, entry):
            continue
        held, same = None, tuple(entry[:3]) in {tuple(span) for span in whole}
        try:
            held = store.read_shard(root / SHARDS / entry.file, entry.stop - entry.start, maker.coding, maker.shapes)
        except CorruptError:  # of another coding or width
            same = False
        if (
            not same
            or held is None
            or not jax.tree.all(jax.tree.map(np.array_equal, held, maker.shard(data, entry.start, entry.stop, 0)))
        ):
            raise MismatchError(
                f"{root / MANIFEST} is damaged, and {entry.file} was not made of these parameters, rows, loss and "
                "choices. Repair it with those that it was built with (for one that grew: build it again)."
            )
        return


def merge_indexes(folders: list[str | Path], out: str | Path, progress: Progress = quiet) -> Index:
    """One index of the rows of several, in that order: `out` holds copies with ids that run on. Started again after it
    was stopped, it goes on.

    Raises:
        MismatchError: they differ in more than their rows, or hold the same rows.
        UsageError: fewer than two. MissingFileError, CorruptError, OutputError.
    """
    if len(folders) < 2:
        raise UsageError(f"{len(folders)} index was given; merging takes at least two")
    root = store.on_disk(out)
    held = [open_index(folder) for folder in folders]
    joined = held[0].manifest | {"parts": [p for index in held for p in index.manifest["parts"]]}
    for index in held[1:]:
        _same(index.folder, index.manifest, joined | {"parts": index.manifest["parts"]})
    digests = [p["data"] for p in joined["parts"]]
    if len(set(digests)) != len(digests):
        raise MismatchError(f"{' and '.join(str(i.folder) for i in held)} hold the same rows; each row may come once")
    make_folder(root)
    make_folder(root / SHARDS)
    _agree(root, joined)
    sources = [(index, entry) for index in held for entry in index.entries]
    with store.Journal(root / JOURNAL) as journal:
        sweep(root, {entry.file for entry in journal.entries})
        check_order(journal.entries, journal.path)
        for number, (index, entry) in enumerate(progress(sources, "merging", unit="shards", skip=len(journal.entries))):
            if number < len(journal.entries):
                continue
            start = journal.entries[-1].stop if number else 0
            span = Span(number, start, start + entry.stop - entry.start)
            shard = index.shard(entry)._replace(ids=np.arange(span.start, span.stop))
            journal.append(kept(root, shard, span, index.coding, index.shapes))
        if not (root / PRICE).exists():
            store.write_manifest(
                root / PRICE, {"parts": [p for i in held for p in (i.price or {"parts": []})["parts"]]}
            )
        return Index(root, joined, tuple(journal.entries))


def made(task, params, data, root, sketch, batch_size, shard_rows, coding, target_recall, mesh) -> Maker:
    """What makes the rows. What is wrong with the loss, the rows or the choices is refused here, before anything is
    compiled or written."""
    sketch = Sketch() if sketch is None else sketch
    chosen = store.Coding.parse(coding) if isinstance(coding, str) else coding
    if batch_size < 1 or shard_rows < 1:
        raise UsageError(f"batch_size {batch_size} and shard_rows {shard_rows} should be at least 1")
    found = base.training_sites(task, params, data)
    devices = 1 if mesh is None else mesh.size
    if batch_size % devices:
        raise UsageError(f"batch_size {batch_size} does not divide over {devices} devices; choose a multiple")
    check_budget(found, batch_size)
    choices = {"batch_size": batch_size, "shard_rows": shard_rows, "devices": devices, "target_recall": target_recall}
    program, drawn = base.row_program(found, found, sketch), sketching.drawn(found, sketch)
    described = describe(found, params, sketch, chosen, choices)
    rows = row.count(data)
    fits.check_shard(min(shard_rows, rows), described["width"])
    scratch = np.empty((min(max(shard_rows, price.ROWS), rows), described["width"]), np.float32)
    maker = Maker(described, program, params, drawn, mesh, scratch)
    if target_recall is None:
        return maker
    if (root / MANIFEST).exists():  # chosen when it was begun
        chosen = store.Coding.parse(read_manifest(root)["coding"])
    else:
        unit = maker.gradients(data, price.sample(row.count(data)))[2]
        chosen = price.choose(target_recall, sketching.shapes(found, sketch), unit)
    return maker._replace(described=maker.described | {"coding": str(chosen)})


def _as_built(held: dict[str, Any], task: Task, params: Any, data: Any, root: Path, mesh: Any) -> Maker:
    sketch = sketching.from_record(held["sketch"])
    choices = {key: held[key] for key in ("batch_size", "shard_rows", "coding", "target_recall")}
    return made(task, params, data, root, sketch, mesh=mesh, **choices)


def _parts(root: Path, data: Any) -> list[dict[str, Any]]:
    """How the rows came: all at once, or as a manifest that is there already says."""
    rows = row.count(data)
    held = read_manifest(root)["parts"] if (root / MANIFEST).exists() else []
    if len(held) < 2 or sum(each["rows"] for each in held) != rows:
        return [part(data)]
    ends = np.cumsum([0, *(each["rows"] for each in held)])
    return [part(jax.tree.map(lambda x, a=a, b=b: x[a:b], data)) for a, b in zip(ends, ends[1:], strict=False)]


_MEANING = {
    "params": "other parameters",
    "parts": "other training rows",
    "task": "another loss",
    "sketch": "another sketch",
    "jax": "another version of JAX",
}


def _agree(root: Path, wanted: dict[str, Any]) -> None:
    if not (root / MANIFEST).exists():
        store.write_manifest(root / MANIFEST, wanted, first=True)
    _same(root, read_manifest(root), wanted)  # another process may have been faster, and asked for something else


def _same(root: store.Place, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in wanted if held.get(key) != wanted[key]]
    if differing:
        what = ", ".join(_MEANING.get(key, f"{key} {held.get(key)} (asked for: {wanted[key]})") for key in differing)
        raise MismatchError(f"{root} holds an index of {what}. Choose another folder, or remove that one.")
