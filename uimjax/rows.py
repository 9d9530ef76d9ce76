"""Rows to fixed-shape batches: a pytree of numpy arrays `[N, ...]` in, `[B, ...]` batches with ids and a mask out.
Short documents are packed into rows first (`pack`).

The last batch is padded by repeating its last row, so every batch has one shape and one compiled program serves a
stream; the mask is False on padding and the id is -1. *Guarantee*: padding never changes the result of a real row.
"""

import bisect
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from uimjax.allocator import settle
from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.mesh import shard_batch

PIECE = 1 << 20  # values looked at together


class Batch(NamedTuple):
    """`rows` is a pytree of `[B, ...]`; `ids` `[B]` int64, -1 on padding; `mask` `[B]` bool, False on padding."""

    rows: Any
    ids: np.ndarray
    mask: np.ndarray


def count(data: Any) -> int:
    """N, checked: every leaf of the pytree must have the same leading length."""
    named = jax.tree_util.tree_flatten_with_path(data)[0]
    if not named:
        raise ShapeError("the data hold no arrays; pass a pytree of arrays [N, ...]")
    lengths = {jax.tree_util.keystr(path) or "data": _length(leaf) for path, leaf in named}
    if len(set(lengths.values())) != 1:
        raise ShapeError(f"arrays of the data differ in length: {lengths}. All need the same number of rows.")
    if not (found := next(iter(lengths.values()))):
        raise ShapeError("the data hold no rows")
    return found


def _length(leaf: Any) -> int:
    if np.ndim(leaf) == 0:
        raise ShapeError("a scalar stands where an array [N, ...] was wanted; stack the rows on a leading axis")
    if not hasattr(leaf, "shape"):
        raise ShapeError(f"{type(leaf).__name__} stands where an array [N, ...] was wanted; use numpy.asarray")
    return leaf.shape[0]


def chosen(ids: Any, count: int, what: str) -> np.ndarray:
    """Ids of some of so many rows, int64 `[F]`, each once; `what` says for what.

    Raises:
        UsageError: none, all, one out of range or twice.
    """
    found = np.asarray(ids, np.int64)
    if found.ndim != 1 or not len(found) or found.min() < 0 or found.max() >= count or len(found) == count:
        raise UsageError(f"{found.size} row ids {what}, of {count} rows: some, not all, and each in 0..{count - 1}")
    if (unique := len(np.unique(found))) < len(found):
        raise UsageError(f"{len(found)} row ids {what} name {unique} of {count} rows; each once fits")
    return found


def check_finite(data: Any, what: str) -> None:
    """Refuse NaN or infinity, naming the leaf and, for data, the first bad row.

    Raises:
        NonFiniteError: a float leaf holds a value that is not finite.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(data)[0]:
        dtype = jax.typeof(leaf).dtype
        if not jax.numpy.issubdtype(dtype, np.floating) or _known(leaf):
            continue
        if _elsewhere(leaf) and _all_finite(leaf):
            _know(leaf)
            continue
        for values, start in _parts(leaf):
            if all(_finite(piece).all() for piece in _pieces(values)):
                continue
            finite = _finite(values)
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
            where = np.argwhere(~finite)
            at = f" first at index {tuple(int(i) + s for i, s in zip(where[0], start, strict=True))}" if start else ""
            raise NonFiniteError(
                f"{what}: {name} holds {len(where)} value(s) that are NaN or infinite,{at}. "
                "Scores from it would be meaningless; reload the checkpoint or clean the rows, then try again."
            )
        _know(leaf)


_KNOWN: dict[int, Any] = {}  # arrays of JAX that were found finite, which nothing can change, while they live


def _known(leaf: Any) -> bool:
    return id(leaf) in _KNOWN


def _know(leaf: Any) -> None:
    if isinstance(leaf, jax.Array):
        key = id(leaf)
        _KNOWN[key] = weakref.ref(leaf, lambda _: _KNOWN.pop(key, None))


def _elsewhere(leaf: Any) -> bool:
    """Is it an array on accelerators that this process holds alone? It is looked at there: of a model of 1B parameters
    a host took seconds, and every question asks."""
    if not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable:
        return False
    return next(iter(leaf.devices())).platform != "cpu"


@jax.jit
def _all_finite(x: Any) -> Any:
    return jax.numpy.isfinite(x).all()


def _finite(values: np.ndarray) -> np.ndarray:
    """NumPy's isfinite knows the types of 4 bytes and more."""
    return np.isfinite(values if values.dtype.itemsize >= 4 else values.astype(np.float32))


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows after the other: what is held beside the data must not grow with them."""
    if not values.ndim:
        yield values
        return
    step = max(1, PIECE // max(1, values[:1].size))
    yield from (values[first : first + step] for first in range(0, len(values), step))


def _parts(leaf: Any) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """An array with its first index; of one that several processes hold, the parts that this one can read."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return [(np.asarray(leaf), (0,) * np.ndim(leaf))]
    return [(np.asarray(s.data), tuple(i.start or 0 for i in s.index)) for s in leaf.addressable_shards]


def on_host(leaf: Any) -> Any:
    """An array that one device holds, as a numpy array; what is none, or of several processes, as it is."""
    if not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable:
        return leaf
    return leaf if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def take(data: Any, ids: np.ndarray) -> Any:
    """Rows by id."""
    return jax.tree.map(lambda leaf: leaf[ids], data)


def batches(data: Any, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """Consecutive batches of rows [start, stop), the last one padded to `batch_size`."""
    stop = count(data) if stop is None else stop
    for first in range(start, stop, batch_size):
        index = np.arange(first, first + batch_size)
        mask = index < stop
        rows = take(data, np.minimum(index, stop - 1))
        yield Batch(rows, np.where(mask, index, -1), mask)


class Pass(NamedTuple):
    """How rows are gone over: `batch_size` at a time, each batch split over the data axis of a `mesh`. Under `folder`
    a pass that sums keeps its sums, so that one that was stopped goes on."""

    batch_size: int = 256
    mesh: Any = None
    folder: Path | None = None

    def over(self, data: Any, ids: np.ndarray | None = None) -> Iterator[Batch]:
        """All rows, or the rows `ids`, batch by batch."""
        made = batches(data, self.batch_size) if ids is None else selected(data, ids, self.batch_size)
        for batch in made:
            yield batch if self.mesh is None else batch._replace(rows=shard_batch(self.mesh, batch.rows))


def gathered(how: Pass, data: Any, scores: Callable[[Any], Any]) -> Any:
    """`scores(rows)` of every batch, a pytree of arrays `[B, ...]`, as arrays of all rows `[N, ...]` on the host.

    Each batch's result is copied to its place: results that are kept would lie between the buffers of later batches,
    and the heap would grow with the rows.
    """
    whole, start = None, time.perf_counter()
    for batch in how.over(data):
        found = jax.tree.map(np.asarray, scores(batch.rows))
        settle(time.perf_counter() - start)
        start = time.perf_counter()
        if whole is None:
            whole = jax.tree.map(lambda x: np.empty((count(data), *x.shape[1:]), x.dtype), found)
        first, real = batch.ids[0], int(batch.mask.sum())  # padding stands at the end
        for into, part in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
            into[first : first + real] = part[:real]
    return whole


def spread(rows: Any, most: int) -> Any:
    """At most so many rows, evenly spaced over all of them."""
    return take(rows, np.linspace(0, count(rows) - 1, min(most, count(rows))).astype(int))


def selected(data: Any, ids: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Batches of the rows `ids`, in that order, the last one padded to `batch_size`."""
    for first in range(0, len(ids), batch_size):
        mine = np.asarray(ids[first : first + batch_size], np.int64)
        full = np.concatenate([mine, np.repeat(mine[-1:], batch_size - len(mine))])
        mask = np.arange(batch_size) < len(mine)
        yield Batch(take(data, full), np.where(mask, full, -1), mask)


class Packed(NamedTuple):
    """Documents side by side in rows of one length. `rows`: a pytree of `[N, length, ...]`, zeros on padding;
    `segments` `[N, length]` int32, 1 to K by document and 0 on padding; `ids` `[N, K]` int64, which document that is,
    -1 for none."""

    rows: Any
    segments: np.ndarray
    ids: np.ndarray


def pack(documents: Sequence[Any], length: int, per_row: int) -> Packed:
    """Put documents (pytrees of arrays `[t, ...]`, one t a document) into rows of `length`, at most `per_row` in each,
    whole: each goes into the fullest row that still has room (best fit, in the order given).

    Raises:
        ShapeError: a document is empty, longer than a row, or its arrays differ in length, or in kind from the first's.

    >>> import numpy as np
    >>> packed = pack([np.arange(3), np.arange(5), np.arange(2)], length=6, per_row=2)
    >>> packed.segments.tolist(), packed.ids.tolist()
    ([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 0]], [[0, 2], [1, -1]])
    """
    if not len(documents):
        raise ShapeError("no documents to pack")
    if length < 1 or per_row < 1:
        raise ShapeError(f"rows of {length} positions with {per_row} documents each; at least 1 of both was wanted")
    held: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (positions left, row), sorted
    sizes = [_document_length(document, k, length, documents[0]) for k, document in enumerate(documents)]
    for k, size in enumerate(sizes):
        fits = bisect.bisect_left(room, (size, -1))
        left, row = room.pop(fits) if fits < len(room) else (length, len(held))
        if row == len(held):
            held.append([])
        held[row].append(k)
        if len(held[row]) < per_row and left > size:
            bisect.insort(room, (left - size, row))
    segments, ids = np.zeros((len(held), length), np.int32), np.full((len(held), per_row), -1, np.int64)
    leaves, tree = jax.tree.flatten(documents[0])
    rows = [np.zeros((len(held), length, *np.shape(x)[1:]), np.asarray(x).dtype) for x in leaves]
    for row, members in enumerate(held):
        at = 0
        for k, document in enumerate(members):
            place = slice(at, at + sizes[document])
            segments[row, place], ids[row, k] = k + 1, document
            for whole, part in zip(rows, tree.flatten_up_to(documents[document]), strict=True):
                whole[row, place] = part
            at = place.stop
    return Packed(jax.tree.unflatten(tree, rows), segments, ids)


def _document_length(document: Any, number: int, length: int, first: Any) -> int:
    found, wanted = (
        (jax.tree.structure(d), [(np.asarray(x).dtype, np.shape(x)[1:]) for x in jax.tree.leaves(d)])
        for d in (document, first)
    )
    if found != wanted:
        raise ShapeError(f"document {number} holds {found} and the first one {wanted}; all need the same arrays")
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(document)}
    if len(lengths) != 1 or () in lengths:
        raise ShapeError(f"document {number}: its arrays are {sorted(lengths)} long; one length [t, ...] was wanted")
    (size,) = next(iter(lengths))
    if not 1 <= size <= length:
        cure = "Drop it." if not size else f"Cut it into pieces, or pack rows of at least {size}."
        raise ShapeError(f"document {number} has {size} positions and a row {length}. {cure}")
    return size


def spec(example: Any) -> Any:
    """Shapes and dtypes of a pytree, as `ShapeDtypeStruct`s (typed PRNG keys included)."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jax.typeof(leaf).dtype), example)


def example_spec(data: Any) -> Any:
    """Shapes and dtypes of ONE row of the data."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jax.typeof(leaf).dtype), data)
