"""The strongest rows of a stream of shards, for many queries at once: never N x Q scores.

On an accelerator `topk_dot` does it, on rows as they are stored. On a CPU the product is XLA's, on the shard's own
bytes (no copy), and scores are compared with the weakest row held so far, which lets hardly any through after the first
shards, while the next product runs.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax_kernels import TopK, topk_dot
from uimjax_kernels.topk_dot.reference import decode


class Stored(NamedTuple):
    """Rows as they are stored: the id of the first; numbers `[n, D]`; what each row counts `[n]`; numbers of blocks
    `[n, C]` or None; rows that count `[n]` bool, or None for all."""

    start: int
    numbers: Any
    scale: Any
    blocks: Any = None
    counted: Any = None


def strongest(shards: Iterable[Stored], queries: Any, k: int) -> TopK:
    """The k largest and smallest `scale[i] * <queries[q], rows[i]>` of all shards, `[Q, k]`, with int64 row ids; ties
    go to the lower id, and places that no row fills have id -1."""
    if jax.default_backend() == "cpu":
        return _on_cpu(shards, queries, k)
    best = _nothing(len(queries), k)
    for shard in shards:
        found = topk_dot(queries, jnp.asarray(shard.numbers), shard.scale, k, shard.blocks, shard.counted)
        values, ids, low, low_ids = (np.asarray(x) for x in found)
        ids, low_ids = (np.where(x < 0, -1, x.astype(np.int64) + shard.start) for x in (ids, low_ids))
        best = TopK(*_joined(best[0], best[1], values, ids), *_lower(best, low, low_ids))
    return best


def _nothing(queries: int, k: int) -> TopK:
    empty, nowhere = np.full((queries, k), np.inf, np.float32), np.full((queries, k), -1, np.int64)
    return TopK(-empty, nowhere, empty, nowhere)


def _joined(values: np.ndarray, ids: np.ndarray, more: np.ndarray, more_ids: np.ndarray) -> tuple[np.ndarray, Any]:
    """The largest of both, as many as the first has; stable, so on a tie the first stay."""
    values, ids = np.concatenate([values, more], 1), np.concatenate([ids, more_ids], 1)
    order = np.argsort(-values, axis=1, kind="stable")[:, : values.shape[1] - more.shape[1]]
    return np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)


def _lower(best: TopK, low: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, Any]:
    values, found = _joined(-best.smallest, best.smallest_index, -low, ids)
    return -values, found


# ---------------------------------------------------------------- on a CPU


def _on_cpu(shards: Iterable[Stored], queries: Any, k: int) -> TopK:
    asked, best, seen = jnp.asarray(queries, jnp.float32), _nothing(len(queries), k), 0
    for shard, found in _one_ahead((shard, _product(shard, asked)) for shard in shards):
        scores, first, counted = np.asarray(found), 0, shard.counted
        while first < len(scores):  # few at first: they raise the bar for the rest
            part = slice(first, first + max(2 * k, seen))
            best = _entered(best, scores[part], shard.start + first, None if counted is None else counted[part])
            seen, first = seen + len(scores[part]), part.stop
    return best


def _product(shard: Stored, asked: Any) -> Any:
    numbers, blocks = (None if x is None else jax.device_put(x, may_alias=True) for x in (shard.numbers, shard.blocks))
    return _scores(numbers, jnp.asarray(shard.scale, jnp.float32), blocks, asked)


def _one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The next item is begun before one is looked at: a product runs while scores are compared."""
    items = iter(items)
    before = next(items)
    for item in items:
        yield before
        before = item
    yield before


@jax.jit
def _scores(numbers: Any, scale: Any, blocks: Any, queries: Any) -> Any:
    """`[n, Q]`: this way round both factors are read along their rows."""
    return jnp.einsum("nd,qd->nq", decode(numbers, blocks), queries) * scale[:, None]


def _entered(best: TopK, scores: np.ndarray, start: int, counted: Any) -> TopK:
    """The best so far with those of the `scores` `[n, Q]` that beat the weakest of them, at either end."""
    high = _beating(best.largest, best.largest_index, scores, scores > best.largest[:, -1][None], 1, start, counted)
    hit = scores < best.smallest[:, -1][None]
    low, ids = _beating(-best.smallest, best.smallest_index, scores, hit, -1, start, counted)
    return TopK(*high, -low, ids)


def _beating(
    values: np.ndarray, ids: np.ndarray, scores: np.ndarray, hit: np.ndarray, sign: int, start: int, counted: Any
) -> tuple[np.ndarray, np.ndarray]:
    if counted is not None:
        hit = hit & np.asarray(counted)[:, None]
    row, query = np.divmod(np.flatnonzero(hit), scores.shape[1])
    if not len(row):
        return values, ids
    order = np.argsort(query, kind="stable")
    row, query = row[order], query[order]
    each = np.bincount(query, minlength=len(values))
    place = np.arange(len(query)) - np.repeat(np.cumsum(each) - each, each)
    more = np.full((len(values), each.max()), -np.inf, np.float32)
    more_ids = np.full(more.shape, -1, np.int64)
    more[query, place], more_ids[query, place] = sign * scores[row, query], row + start
    return _joined(values, ids, more, more_ids)
