"""Scores added up: by source, by document, by window of training steps. All rows count, not the strongest alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy import sparse

from uimjax.errors import ShapeError, UsageError


class Groups(NamedTuple):
    """Who belongs together: row `rows[m]` is in group `codes[m]` of `names`. A row may be in several, or in none."""

    names: list[Any]
    rows: np.ndarray
    codes: np.ndarray


class Totals(NamedTuple):
    """Of each group `[G]` how many `members` it has; of each query and group `[Q, G]` the `total` of its scores, their
    `mean` and its standard `error` (NaN for one row). For methods in nats, and groups that hold a row once, removing
    all of a group is predicted to change f by `- total / n` (first order)."""

    names: list[Any]
    members: np.ndarray
    total: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    method: str
    unit: str

    def table(self) -> pa.Table:
        """One line a query and group: `query`, `group`, `members`, `total`, `mean`, `error`; the largest mean first."""
        queries, count = self.total.shape
        order = np.argsort(-self.mean, axis=1, kind="stable")
        names = pa.array(self.names)
        of = {name: np.take_along_axis(getattr(self, name), order, 1).ravel() for name in ("total", "mean", "error")}
        found = {
            "query": np.repeat(np.arange(queries, dtype=np.int32), count),
            "group": names.take(pa.array(order.ravel())),
            "members": self.members[order.ravel()],
            **of,
        }
        return pa.table(found)


def grouped(labels: Any) -> Groups:
    """By a label a row: a source, a document. Rows whose label is None (a missing entry of Arrow) are in no group.

    Raises:
        ShapeError: labels are not one a row. UsageError: they are no plain values.
    """
    try:
        column = labels if isinstance(labels, pa.Array | pa.ChunkedArray) else pa.array(labels)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"labels of groups are one plain value a row (texts, numbers): {error}") from error
    coded = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_nested(coded.type):
        raise ShapeError(f"labels of groups are {coded.type}; one plain value a row was wanted")
    coded = coded if isinstance(coded, pa.DictionaryArray) else coded.dictionary_encode()
    kept = np.asarray(coded.indices.is_valid())
    codes = np.asarray(coded.indices.fill_null(-1))
    return Groups(coded.dictionary.to_pylist(), np.flatnonzero(kept), codes[kept].astype(np.int64))


def step_windows(seen: Any, width: int) -> Groups:
    """By when they were trained on: `seen` `[steps, batch]` row ids (negative ones, or the number of rows, are padding
    where `uimjax.steps.order` put it: pass `np.where(seen < n, seen, -1)`); windows of `width` steps, named by their
    first. A row counts in each window that saw it, once a time it was seen.

    Raises:
        ShapeError: `seen` is not `[steps, batch]` of whole numbers. UsageError: no window is that wide.
    """
    ids = np.asarray(seen)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ShapeError(f"seen is {ids.dtype}{list(ids.shape)}; whole numbers [steps, batch] were wanted")
    if width < 1:
        raise UsageError(f"windows of {width} steps were asked for; at least 1 was wanted")
    step, place = np.nonzero(ids >= 0)
    return Groups(list(range(0, len(ids), width)), ids[step, place].astype(np.int64), step // width)


def totals(scores: Iterator[tuple[int, np.ndarray]], groups: Groups, rows: int, method: str, unit: str) -> Totals:
    """Of streamed `(first row, scores [n, Q])` by group. Raises ShapeError: a row that is none of the `rows`."""
    members, total, square = add_up(scores, groups, rows)
    many = np.where(members > 0, members, np.nan)  # of nobody there is no mean, of one row no error
    mean = total / many
    error = np.sqrt(np.maximum(square / many - mean**2, 0) / np.where(members > 1, members - 1, np.nan))
    return Totals(groups.names, members, total, mean, error, method, unit)


def add_up(scores: Iterator[tuple[int, np.ndarray]], groups: Groups, rows: int) -> tuple[np.ndarray, ...]:
    """(members `[G]`, sums `[Q, G]`, sums of squares) of streamed `(first row, scores [n, Q])`, in float64.

    Raises:
        ShapeError: a row that is none of the `rows`.
    """
    if len(groups.rows) and not 0 <= groups.rows.min() <= groups.rows.max() < rows:
        raise ShapeError(
            f"groups hold rows {groups.rows.min()} to {groups.rows.max()}, and the index has {rows} (from 0)"
        )
    shape = (len(groups.names), rows)
    member = sparse.csc_array((np.ones(len(groups.rows)), (groups.codes, groups.rows)), shape=shape)
    total: Any = 0.0
    square: Any = 0.0
    for first, values in scores:
        mine, wide = member[:, first : first + len(values)], np.asarray(values, np.float64)
        total, square = total + mine @ wide, square + mine @ wide**2
    return np.bincount(groups.codes, minlength=len(groups.names)), total.T, square.T
