"""Shards of an index made and written: by one process, or by several that share a folder and nothing else.

Each of several processes makes every P-th shard and notes it in a journal of its own; when all are there the first
process puts them into the one journal, in order. So the bytes at the end are those of one process, whichever of them
was killed on the way, and however many there were when it was started again.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import store
from uimjax.allocator import settle
from uimjax.errors import CorruptError, LostProcessError, OutputError, ShapeError
from uimjax.interpret import base, price
from uimjax.interpret.index import JOURNAL, MANIFEST, PRICE, SHARDS, Index, check_order, intact, read_manifest
from uimjax.mesh import shard_batch
from uimjax.progress import Progress
from uimjax.store.base import intended
from uimjax.store.coding import Shapes

POLL_S = 0.2  # between looks at what other processes have done
GRACE_S = 60.0  # in which the processes of a job that is started again all begin


class Share(NamedTuple):
    """This `process` of so many `processes`; one that hears nothing new of the others for `limit_s` gives up."""

    process: int = 0
    processes: int = 1
    limit_s: float = 600.0


ALONE = Share()


class Span(NamedTuple):
    """Shard `number`: rows `[start, stop)`."""

    number: int
    start: int
    stop: int


class Maker(NamedTuple):
    """Makes rows of an index: `described`, its manifest but for the parts; the compiled program and its inputs;
    `scratch` `[rows, D]`, in which unit rows lie until they are coded (an array a shard would split the heap)."""

    described: dict[str, Any]
    program: Any
    params: Any
    drawn: Any
    mesh: Any
    scratch: np.ndarray

    @property
    def coding(self) -> store.Coding:
        return store.Coding.parse(self.described["coding"])

    @property
    def shapes(self) -> Shapes:
        return tuple((p, q) for p, q in self.described["shapes"])

    def inputs(self, data: Any, size: int) -> tuple[Any, Any, Any]:
        """What the program takes for a batch of so many rows, whichever they are."""
        rows = next(row.selected(data, np.zeros(size, np.int64), size)).rows
        return self.params, rows if self.mesh is None else shard_batch(self.mesh, rows), self.drawn

    def gradients(self, data: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(losses, norms, unit rows `[n, D]`) of the rows `ids`; the last is good until the next call."""
        losses, norms = np.empty((2, len(ids)), np.float32)
        units, first = self.scratch[: len(ids)], 0
        for batch in row.selected(data, ids, self.described["batch_size"]):
            stop = first + int(batch.mask.sum())
            self._into([x[first:stop] for x in (losses, norms, units)], batch.rows)
            first = stop
        base.finite(norms, f"gradients of training rows {ids[0]} to {ids[-1]}")
        return losses, norms, units

    def _into(self, places: list[np.ndarray], rows: Any) -> None:
        """A batch's losses, norms and unit rows; no result of the program is held when this returns."""
        start = time.perf_counter()
        rows = rows if self.mesh is None else shard_batch(self.mesh, rows)
        loss, found = self.program(self.params, rows, self.drawn)
        for place, made in zip(places, (loss, *_unit(found)), strict=True):
            place[:] = np.asarray(made)[: len(place)]
        settle(time.perf_counter() - start)

    def shard(self, data: Any, start: int, stop: int, first: int) -> store.Shard:
        """Rows `[start, stop)` of the index; the data begin at its row `first`."""
        return self.coded(start, *self.gradients(data, np.arange(start - first, stop - first)))

    def coded(self, start: int, losses: np.ndarray, norms: np.ndarray, units: np.ndarray) -> store.Shard:
        """Rows from `start` on, as they are stored."""
        packed = store.pack(self.coding, self.shapes, units)
        vectors = store.Packed(*(None if x is None else np.asarray(x) for x in packed))
        return store.Shard(np.arange(start, start + len(losses)), losses, norms, vectors)


@jax.jit
def _unit(rows):
    norm = jnp.linalg.norm(rows, axis=1)
    return norm, rows / jnp.where(norm > 0, norm, 1.0)[:, None]


def spans(manifest: dict[str, Any]) -> list[Span]:
    """The shards of all parts; none holds rows of two."""
    out: list[Span] = []
    first = 0
    for each in manifest["parts"]:
        stop = first + each["rows"]
        for start in range(first, stop, manifest["shard_rows"]):
            out.append(Span(len(out), start, min(start + manifest["shard_rows"], stop)))
        first = stop
    return out


def fill(root: Path, maker: Maker, data: Any, first: int, share: Share, progress: Progress) -> Index:
    """Every shard that is not there; the data begin at row `first` of the index.

    Raises:
        LostProcessError: another process of the same job ended, or stalled, with shards of its own undone.
        OutputError: the index is being written by another job.
    """
    manifest = read_manifest(root)
    if share.processes > 1:
        with store.Journal.locked(root / JOURNAL, shared=True):
            entries = _together(root, maker, data, first, share, spans(manifest), progress)
        return Index(root, manifest, tuple(entries))
    with store.Journal(root / JOURNAL) as journal:
        noted = _noted(root, 1)
        sweep(root, {*(e.file for e in journal.entries), *(e.file for e in noted.values())})
        check_order(journal.entries, journal.path)
        held = {entry.shard: entry for entry in journal.entries}
        for span in progress(spans(manifest), "sketching gradients", unit="shards", skip=len(held)):
            before = held.get(span.number)
            entry = _made(root, maker, data, first, span, before or noted.get(span.number))
            if before is None:
                journal.append(entry)
        _priced_and_tidy(root, maker, data, first)
        return Index(root, manifest, tuple(journal.entries))


def _made(root: Path, maker: Maker, data: Any, first: int, span: Span, before: store.Entry | None) -> store.Entry:
    """The shard that is there, if its bytes are right, or one computed now."""
    if before is not None and (span.start < first or intact(root / SHARDS / before.file, before)):
        return before
    if span.start < first:
        raise ShapeError(f"{root} lacks rows from {span.start} on, and these begin at {first}; build it first")
    return written(root, maker, data, first, span, before)


def _together(root: Path, maker: Maker, data: Any, first: int, share: Share, whole: list[Span], progress: Progress):
    """What one of several processes does; all entries, in order, once everybody is done."""
    begun = time.time()
    mine = [span for span in whole if span.number % share.processes == share.process]
    with store.Journal(_own(root, share.process, share.processes)) as journal:
        noted = _noted(root, share.processes)
        files = {entry.file for entry in noted.values()}
        sweep(root, files, {f"{span.number:06d}.parquet" for span in mine})
        done = sum(span.number in noted for span in mine)
        for span in progress(mine, "sketching gradients", unit="shards", skip=done):
            entry = _made(root, maker, data, first, span, noted.get(span.number))
            if span.number not in noted:
                journal.append(entry)
        found = _awaited(root, share, len(whole), begun)
        if share.process:
            _until(
                lambda: len(store.Journal.read(root / JOURNAL)) == len(whole) and _has_price(root), root, share, begun
            )
        else:
            store.Journal.rewrite(root / JOURNAL, [found[span.number] for span in whole])
            _priced_and_tidy(root, maker, data, first)
            sweep(root, {each.file for each in found.values()}, {JOURNAL, MANIFEST, PRICE})  # of what others have done
        return [found[span.number] for span in whole]


def _awaited(root: Path, share: Share, wanted: int, begun: float) -> dict[int, store.Entry]:
    """All entries, once every process has noted its own."""
    seen, since = -1, time.monotonic()
    while len(found := _noted(root, share.processes)) < wanted:
        missing = min(set(range(wanted)) - set(found))
        owner = missing % share.processes
        path = _own(root, owner, share.processes)
        gone = owner != share.process and _gone(path, begun, share)
        if gone and missing not in _noted(root, share.processes):  # what it noted last may be newer than the look above
            raise LostProcessError(owner, share.processes, f"ended before it had made shard {missing}")
        if len(found) != seen:
            seen, since = len(found), time.monotonic()
        if time.monotonic() - since > share.limit_s:
            raise LostProcessError(owner, share.processes, f"has not made shard {missing} for {share.limit_s:g} s")
        time.sleep(POLL_S)
    return found


def _gone(journal: Path, begun: float, share: Share) -> bool:
    """Is nobody at work on another process's journal any more? One that was last written before this job began is of an
    earlier run, whose successor may still be starting: it has `GRACE_S` for that."""
    if not journal.exists() or store.Journal.busy(journal):
        return False
    return journal.stat().st_mtime >= begun or time.time() - begun > min(GRACE_S, share.limit_s)


def _has_price(root: Path) -> bool:
    return (root / PRICE).exists() and len(store.read_manifest(root / PRICE)["parts"]) == len(
        read_manifest(root)["parts"]
    )


def _until(ready: Callable[[], bool], root: Path, share: Share, begun: float) -> None:
    start, first = time.monotonic(), _own(root, 0, share.processes)
    while not ready():
        if _gone(first, begun, share) and not ready():
            raise LostProcessError(0, share.processes, "ended before it had put the journals together")
        if time.monotonic() - start > share.limit_s:
            raise LostProcessError(0, share.processes, f"has not put the journals together for {share.limit_s:g} s")
        time.sleep(POLL_S)


def _own(root: Path, index: int, count: int) -> Path:
    return root / f"journal.{index}-of-{count}.jsonl"


def _noted(root: Path, count: int) -> dict[int, store.Entry]:
    """What any process has noted, now or in a job before this one.

    Raises:
        OutputError: a job of another number of processes is at work.
    """
    found = {entry.shard: entry for entry in store.Journal.read(root / JOURNAL)}
    for path in root.glob("journal.*-of-*.jsonl"):
        if not path.name.endswith(f"-of-{count}.jsonl") and store.Journal.busy(path):
            raise OutputError(f"{root} is being written by a job that is not this one ({path.name}); wait for its end.")
        found |= {entry.shard: entry for entry in store.Journal.salvage(path)}
    return found


def _priced_and_tidy(root: Path, maker: Maker, data: Any, first: int) -> None:
    priced(root, maker, data, first)
    for path in root.glob("journal.*-of-*.jsonl"):
        path.unlink(missing_ok=True)


def written(root: Path, maker: Maker, data: Any, first: int, span: Span, before: store.Entry | None) -> store.Entry:
    """A shard computed and written; one that was damaged must come back as it was."""
    entry = kept(root, maker.shard(data, span.start, span.stop, first), span, maker.coding, maker.shapes)
    if before is not None and entry != before:
        raise CorruptError(
            f"{root / SHARDS / entry.file} was damaged and computing it again gave other bytes; build into a new folder"
        )
    return entry


def kept(root: Path, shard: store.Shard, span: Span, coding: store.Coding, shapes: Shapes) -> store.Entry:
    path = root / SHARDS / f"{span.number:06d}.parquet"
    store.write_shard(path, shard, coding, shapes)
    return store.Entry(*span, path.name, path.stat().st_size, store.digest_file(path))


def priced(root: Path, maker: Maker, data: Any, first: int) -> bool:
    """Measure the coding on each part that was not measured yet; True where one was. The data begin at row `first`."""
    try:
        found = store.read_manifest(root / PRICE)["parts"] if (root / PRICE).exists() else []
    except CorruptError:
        found = []
    parts = read_manifest(root)["parts"]
    start = sum(each["rows"] for each in parts[: len(found)])
    new = []
    for each in parts[len(found) :]:
        ids = price.sample(each["rows"])
        if maker.coding == store.Coding():
            new.append(price.nothing_lost(maker.coding, maker.shapes, len(ids)))
        elif start < first:
            raise ShapeError(f"{root / PRICE} lacks rows from {start} on, and these begin at {first}; repair it first")
        else:
            unit = maker.gradients(data, ids + start - first)[2]
            new.append(price.measure(maker.coding, maker.shapes, unit))
        start += each["rows"]
    if new:
        store.write_manifest(root / PRICE, {"parts": [*found, *(each._asdict() for each in new)]})
    return bool(new)


def sweep(root: Path, listed: set[str], own: set[str] | None = None) -> None:
    """Remove what a crash left: temporary files and shards that no journal line vouches for; of `own` names alone,
    where others are at work."""
    for path in _files(root):
        name = intended(path.name)
        orphan = bool(re.fullmatch(r"\d{6}\.parquet", path.name)) and path.name not in listed
        if (name or orphan) and (own is None or (name or path.name) in own):
            path.unlink(missing_ok=True)


def _files(root: Path) -> Iterator[Path]:
    yield from root.iterdir()
    yield from (root / SHARDS).iterdir()
