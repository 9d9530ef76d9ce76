"""Rows to fixed-shape batches: a pytree of numpy arrays `[N, ...]` in, `[B, ...]` batches with ids and a mask out.

The last batch is padded by repeating its last row, so every batch has one shape and one compiled program serves a
stream; the mask is False on padding and the id is -1. *Guarantee*: padding never changes the result of a real row.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from uimjax.errors import NonFiniteError, ShapeError


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


def check_finite(data: Any, what: str) -> None:
    """Refuse NaN or infinity, naming the leaf and, for data, the first bad row.

    Raises:
        NonFiniteError: a float leaf holds a value that is not finite.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(data)[0]:
        dtype = jax.typeof(leaf).dtype
        if not jax.numpy.issubdtype(dtype, np.floating):
            continue
        for values, start in _parts(leaf):  # NumPy's isfinite knows the types of 4 bytes and more
            finite = np.isfinite(values if values.dtype.itemsize >= 4 else values.astype(np.float32))
            if finite.all():
                continue
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
            where = np.argwhere(~finite)
            at = f" first at index {tuple(int(i) + s for i, s in zip(where[0], start, strict=True))}" if start else ""
            raise NonFiniteError(
                f"{what}: {name} holds {len(where)} value(s) that are NaN or infinite,{at}. "
                "Scores from it would be meaningless; reload the checkpoint or clean the rows, then try again."
            )


def _parts(leaf: Any) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """An array with its first index; of one that several processes hold, the parts that this one can read."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return [(np.asarray(leaf), (0,) * np.ndim(leaf))]
    return [(np.asarray(s.data), tuple(i.start or 0 for i in s.index)) for s in leaf.addressable_shards]


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


def spec(example: Any) -> Any:
    """Shapes and dtypes of a pytree, as `ShapeDtypeStruct`s (typed PRNG keys included)."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jax.typeof(leaf).dtype), example)


def example_spec(data: Any) -> Any:
    """Shapes and dtypes of ONE row of the data."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jax.typeof(leaf).dtype), data)
