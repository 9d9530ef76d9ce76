"""The k largest and the k smallest of each row of scores, exactly, with ties to the lower index."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

CHUNK = 64  # columns that are first judged by their best


class TopK(NamedTuple):
    """`[Q, k]` each: the largest scores and their rows, the smallest scores and theirs."""

    largest: Any
    largest_index: Any
    smallest: Any
    smallest_index: Any


def none_yet(queries: int, k: int) -> TopK:
    empty, nowhere = jnp.full((queries, k), jnp.inf, jnp.float32), jnp.full((queries, k), -1, jnp.int32)
    return TopK(-empty, nowhere, empty, nowhere)


def select(scores: Any, k: int, counted: Any = None) -> TopK:
    """Of `[Q, N]`; columns where `counted` `[N]` is False do not count. With k > N the tail is -1 and -inf (+inf)."""
    sides = scores if counted is None else jnp.where(counted[None], scores, -jnp.inf)
    high = _largest(sides, k)
    sides = -scores if counted is None else jnp.where(counted[None], -scores, -jnp.inf)
    low = _largest(sides, k)
    return TopK(high[0], high[1], -low[0], low[1])


def merge(old: TopK, new: TopK) -> TopK:
    """Of rows that come before and rows that come after; as many as `old` has."""
    k = int(old.largest.shape[1])
    high = _merged(old.largest, new.largest, old.largest_index, new.largest_index, k)
    low = _merged(-old.smallest, -new.smallest, old.smallest_index, new.smallest_index, k)
    return TopK(high[0], high[1], -low[0], low[1])


def _merged(one: Any, other: Any, its_index: Any, other_index: Any, k: int) -> tuple[Any, Any]:
    top, at = lax.top_k(jnp.concatenate([one, other], 1), k)
    return top, jnp.take_along_axis(jnp.concatenate([its_index, other_index], 1), at, 1)


def _largest(scores: Any, k: int) -> tuple[Any, Any]:
    """By the best of each chunk first: the k chunks with the best heads hold the k best, ties included, because every
    chunk left out comes after k chunks whose heads are at least its own."""
    queries, n = scores.shape
    chunks = -(-n // CHUNK)
    if chunks <= 2 * k:
        top, at = lax.top_k(scores, min(k, n))
        at = at.astype(jnp.int32)
    else:
        padded = jnp.pad(scores, ((0, 0), (0, chunks * CHUNK - n)), constant_values=-jnp.inf)
        padded = padded.reshape(queries, chunks, CHUNK)
        held = jnp.sort(lax.top_k(padded.max(2), k)[1], axis=1)  # in order of place, so that ties stay with the lower
        few = jnp.take_along_axis(padded, held[:, :, None], axis=1).reshape(queries, -1)
        top, inside = lax.top_k(few, k)
        at = jnp.take_along_axis(held, inside // CHUNK, 1) * CHUNK + inside % CHUNK
        at = at.astype(jnp.int32)
    at = jnp.where(jnp.isneginf(top), -1, at)
    spare = ((0, 0), (0, k - top.shape[1]))
    return jnp.pad(top, spare, constant_values=-jnp.inf), jnp.pad(at, spare, constant_values=-1)
