"""What a coding of an index costs: scores and top lists of stored rows against those of the rows as they were.

On a sample of training rows, some of which stand for queries: cosines of each with all others, before and after.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from uimjax import store
from uimjax.errors import UsageError
from uimjax.store.coding import DTYPES, Coding, Shapes

ROWS, QUERIES, TOP = 1024, 64, 20
RANKS = (1, 2, 4, 8, 12, 16)


class Price(NamedTuple):
    """`row_bytes` of a vector, and how many times `smaller` than in float32. Of the scores: Pearson's `correlation` and
    the root mean square `error` as a share of their root mean square; `recall`: the share of the true `top` rows of a
    query that are among as many by stored rows. Over `queries` of the `rows` looked at."""

    coding: str
    row_bytes: int
    smaller: float
    correlation: float
    error: float
    recall: float
    top: int
    rows: int
    queries: int


def sample(count: int) -> np.ndarray:
    """Ids of the rows looked at, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, ROWS)).astype(np.int64))


def nothing_lost(coding: Coding, shapes: Shapes, count: int) -> Price:
    """Of `count` rows looked at, kept as they are."""
    size, width = store.row_bytes(coding, shapes), sum(p * q for p, q in shapes)
    asked, top = min(QUERIES, count), min(TOP, count - 1)
    return Price(str(coding), size, round(4 * width / size, 3), 1.0, 0.0, 1.0, top, count, asked)


def measure(coding: Coding, shapes: Shapes, unit: Any) -> Price:
    """Of unit rows `[S, D]` as they were."""
    count = len(unit)
    whole = nothing_lost(coding, shapes, count)
    top, asked = whole.top, whole.queries
    if coding == Coding() or top < 1:
        return whole
    kept = store.unpack(coding, shapes, store.pack(coding, shapes, jnp.asarray(unit)))
    at = np.linspace(0, count - 1, asked).astype(int)
    queries = jnp.asarray(unit)[at]
    exact, found = (np.asarray(queries @ rows.T, np.float64) for rows in (jnp.asarray(unit), kept))
    others = np.arange(count)[None] != at[:, None]  # a row is no answer to itself
    one, other = exact[others], found[others]
    varies = min(one.std(), other.std()) > 0
    correlation = float(np.corrcoef(one, other)[0, 1]) if varies else 1.0 - float((one != other).any())
    spread = float(np.sqrt(np.mean(one**2)))
    error = float(np.sqrt(np.mean((one - other) ** 2)) / spread) if spread else 0.0
    best = [np.argsort(np.where(others, -x, np.inf), axis=1, kind="stable")[:, :top] for x in (exact, found)]
    shared = [len(np.intersect1d(a, b)) / top for a, b in zip(*best, strict=True)]
    recall = float(np.mean(shared))
    return whole._replace(correlation=round(correlation, 6), error=round(error, 6), recall=round(recall, 6))


def candidates(shapes: Shapes) -> list[Coding]:
    """Every coding worth a try, the smallest first; of equal size, the one of more bits first."""
    ranks = [r for r in RANKS if any(r * (p + q) < p * q for p, q in shapes)]
    made = [Coding(dtype, rank) for dtype in DTYPES for rank in (0, *ranks)]
    return sorted(made, key=lambda c: (store.row_bytes(c, shapes), c.rank))


def choose(target: float, shapes: Shapes, unit: Any) -> Coding:
    """The smallest coding whose recall on the sample is at least `target`.

    Raises:
        UsageError: `target` is no share.
    """
    if not 0 < target <= 1:
        raise UsageError(f"a recall of {target} was asked for; a share above 0 and up to 1 was wanted")
    for coding in candidates(shapes):
        if measure(coding, shapes, unit).recall >= target:
            return coding
    return Coding()
