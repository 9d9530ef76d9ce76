"""Whether scores of training dynamics and the influence of examples call the same examples suspicious."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, MismatchError, ShapeError, UsageError
from uimjax.understand.dynamics.reading import directed, score_of
from uimjax.understand.dynamics.table import Table

FEWEST = 10  # examples, of which ranks say something
CHUNK = 1 << 18  # numbers at once: they stay in the processor's cache
TOP = 0.1  # share of the examples that are compared as the most suspicious, unless a number is given


class Agreed(NamedTuple):
    """Of each score `names` `[S]` with the influence: `spearman` and its interval `low`, `high`; `overlap`, the share
    of the `k` most suspicious by the one that are so by the other, `chance`, what a random order would share, and `p`,
    the probability that it shares as much; `examples` that both know, and `unknown`, left out for a NaN. All are NaN
    for a score of fewer than 10 examples, or of k at most. `both`: examples with an id in common; `missing`: ids of the
    table without influence; `extra`: those that the table lacks. `band` says what the interval is."""

    names: list[str]
    spearman: np.ndarray
    low: np.ndarray
    high: np.ndarray
    overlap: np.ndarray
    chance: np.ndarray
    p: np.ndarray
    examples: np.ndarray
    unknown: np.ndarray
    k: int
    both: int
    missing: np.ndarray
    extra: np.ndarray
    band: str


def agreement(
    table: Table, influence: Mapping[Any, float] | Any, ids: Any = None, *, names: Sequence[str] | None = None,
    k: int | None = None, draws: int = 1000, level: float = 0.95, seed: int = 0,
) -> Agreed:  # fmt: skip
    """How far each score ranks examples as their influence does, such as `s_i` of `interpret.self_influence` or one
    query's scores `tau_i`: larger is more suspicious. Scores are turned so that larger is more suspicious, too (one
    that is no detector stays as it is).

    `influence`: values `[M]` of the examples `ids` `[M]`, in any order; or {id: value}; or, of a table with the ids
    0..N-1, values `[N]` in the order of ids. Over the n examples that both know:

    - Spearman's rank correlation (1904, doi 10.2307/1412159), `sum (r - m)(q - m) / (|r - m| |q - m|)` of ranks r and q
      with m = (n + 1) / 2, ties at their mean rank; the interval is a percentile bootstrap over examples, ranked again
      in each of the `draws` (Efron 1979, doi 10.1214/aos/1176344552), the same for all scores of the same examples;
    - the overlap h / k of the `k` (a tenth) most suspicious; examples tied at the edge count by the share of them that
      has room. By chance it is k / n, and `p = P(X >= floor(h))`, X hypergeometric (n, k, k): no smaller than the true
      one where ties were split.

    Raises:
        UnknownNameError: no such score. ShapeError: other lengths. MismatchError: fewer than 10 ids in common, or ids
        of another kind. DataError: an id that stands twice. UsageError: values without ids for a table with ids of its
        own; `k`, `draws` or `level` out of range.
    """
    chosen = list(table.scores) if names is None else list(names)
    scores = [directed(score_of(table, name)) for name in chosen]
    mine, values = _named(table, influence, ids)
    both, at, there = np.intersect1d(table.ids, mine, assume_unique=True, return_indices=True)
    if len(both) < FEWEST:
        raise MismatchError(
            f"{len(both)} of {len(mine)} ids with an influence are among the {len(table.ids)} of the table "
            f"({mine[:1].tolist()} ..., {table.ids[:1].tolist()} ...); {FEWEST} or more were wanted"
        )
    k = max(1, round(TOP * len(both))) if k is None else k
    if not 1 <= k < len(both) or draws < 1 or not 0 < level < 1:
        raise UsageError(f"k={k}, draws={draws}, level={level} arrived for {len(both)} examples; 1 <= k < {len(both)}, "
                         "1 draw or more and a level in (0, 1) fit")  # fmt: skip
    y = values[there]
    known = np.stack([~(np.isnan(score[at]) | np.isnan(y)) for score in scores])
    spearman, low, high, overlap, chance, p = _compared(scores, y, at, known, k, draws, level, seed)
    return Agreed(
        chosen, spearman, low, high, overlap, chance, p, examples=known.sum(1), unknown=(~known).sum(1), k=k,
        both=len(both), missing=table.ids[~np.isin(table.ids, mine)], extra=mine[~np.isin(mine, table.ids)],
        band=f"{level:.0%} bootstrap interval over examples",
    )  # fmt: skip


def _compared(
    scores: Sequence[np.ndarray], y: np.ndarray, at: np.ndarray, known: np.ndarray, k: int, draws: int, level: float,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Spearman's, low, high, overlap, chance and p, `[6, S]`; scores that the same examples `known` `[S, N]` have are
    resampled together."""
    found = np.full((6, len(scores)), np.nan)
    for mask in np.unique(known, axis=0):
        n = int(mask.sum())
        if n < FEWEST or n <= k:
            continue
        rows = [s for s in range(len(scores)) if np.array_equal(known[s], mask)]
        xs, its = [scores[s][at][mask] for s in rows], y[mask]
        orders, order = [_ordered(x) for x in xs], _ordered(its)
        found[0, rows] = _correlations(orders, order, np.ones((1, n), np.int32))[:, 0]
        drawn = [_correlations(orders, order, often) for often in _resamples(n, draws, seed)]
        found[1:3, rows] = _quantiles(np.concatenate(drawn, axis=1), level)
        found[3:, rows] = np.array([_overlap(x, its, k) for x in xs]).T
    return found


def _named(table: Table, influence: Any, ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ids, of the kind that the table's are, each once; values in float64)."""
    if isinstance(influence, Mapping):
        if ids is not None:
            raise UsageError("influence by id, and ids beside it, arrived; one of the two fits")
        ids, influence = list(influence), list(influence.values())
    values = np.asarray(influence, np.float64)
    if values.ndim != 1:
        raise ShapeError(f"influence of shape {list(values.shape)} arrived; one value an example, [M], was wanted")
    if ids is None:
        if table.ids.dtype.kind == "U" or not np.array_equal(np.sort(table.ids), np.arange(len(values))):
            raise UsageError(f"{len(values)} values without ids arrived, and the table's {len(table.ids)} ids are not "
                             f"0..{len(values) - 1}: say whose they are (ids=)")  # fmt: skip
        return np.arange(len(values)), values
    mine = _like(np.asarray(ids), table.ids)
    if mine.shape != values.shape:
        raise ShapeError(f"ids of shape {list(mine.shape)} arrived for influence of {len(values)} examples")
    unique, often = np.unique(mine, return_counts=True)
    if len(unique) < len(mine):
        at = int(often.argmax())
        raise DataError(f"id {unique[at]} has {often[at]} influences; one was wanted (of several queries, keep one)")
    return mine, values


def _like(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if wanted.dtype.kind == "U" or not ids.size:
        return ids.astype(wanted.dtype.kind)
    if ids.dtype.kind in "OU":
        odd = next((x for x in ids.ravel().tolist() if not str(x).removeprefix("-").isdecimal()), None)
    else:
        odd = next((x for x in ids.ravel().tolist() if x != x // 1), None)
    if odd is not None:
        raise MismatchError(f"id {odd!r} is no whole number, as the ids of the table are ({wanted[0]}, ...)")
    try:
        return ids.astype(np.int64)
    except OverflowError:
        raise MismatchError("ids beyond 64 bits arrived, and the table holds none") from None


def _resamples(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n examples stands in a resample, `[R, n]`, some resamples at a time."""
    rng, size = np.random.default_rng(seed), max(CHUNK // n, 1)
    for start in range(0, draws, size):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(size, draws - start)).astype(np.int32)


class _Order(NamedTuple):
    """Of values `[n]`: their `order`, the `back` of it, and where in it the next of different values `starts`."""

    order: np.ndarray
    back: np.ndarray
    starts: np.ndarray


def _ordered(values: np.ndarray) -> _Order:
    order = np.argsort(values, kind="stable")
    held = values[order]
    return _Order(order, np.argsort(order), np.flatnonzero(np.concatenate([[True], held[1:] != held[:-1]])))


def _correlations(xs: Sequence[_Order], y: _Order, often: np.ndarray) -> np.ndarray:
    """Spearman's of each of S scores with y, in each of R resamples, where examples stand `often` `[R, n]` times,
    `[S, R]`; NaN where one is constant."""
    q, of_y = _ranks(y, often)
    q = np.take(q, y.back, axis=1) * often
    found = []
    for x in xs:
        r, of_x = _ranks(x, often)
        scale = np.sqrt(of_x * of_y)
        product = np.einsum("ri,ri->r", r, np.take(q, x.order, axis=1))
        found.append(np.where(scale > 0, product / np.where(scale > 0, scale, 1), np.nan))
    return np.stack(found)


def _ranks(its: _Order, often: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean ranks less their middle (n + 1) / 2, in the order `[R, n]`; sums of their squares `[R]`)."""
    n, ties = len(its.order), len(its.starts) < len(its.order)
    tied = np.take(often, its.order, axis=1)
    tied = np.add.reduceat(tied, its.starts, axis=1) if ties else tied
    mean = np.cumsum(tied, axis=1, dtype=np.float64) - 0.5 * (tied + n)
    squares = np.einsum("ri,ri,ri->r", mean, mean, tied.astype(np.float64))
    return np.repeat(mean, np.diff(its.starts, append=n), axis=1) if ties else mean, squares


def _quantiles(drawn: np.ndarray, level: float) -> np.ndarray:
    """(low, high) `[2, S]`, of the resamples in which a correlation is defined."""
    kept = [row[~np.isnan(row)] for row in drawn]
    ends = [(1 - level) / 2, (1 + level) / 2]
    return np.stack([np.quantile(row, ends) if len(row) else np.full(2, np.nan) for row in kept], axis=1)


def _overlap(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float]:
    """(overlap, chance, p)."""
    from scipy.stats import hypergeom

    hits = float(_top(x, k) @ _top(y, k))
    n, whole = len(x), np.floor(hits + 1e-9)  # sums of shares may end just below a whole number
    return hits / k, k / n, float(hypergeom.sf(whole - 1, n, k, k))


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """1 for the k largest; those tied at the edge share the room there."""
    edge = np.partition(values, -k)[-k]
    above, tied = values > edge, values == edge
    return above + tied * ((k - above.sum()) / tied.sum())
