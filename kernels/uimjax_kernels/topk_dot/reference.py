"""`topk_dot` in plain jnp: the specification, and the path on a CPU."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 4096  # rows scored at once


class TopK(NamedTuple):
    """`[Q, k]` each: the largest scores and their rows, the smallest scores and theirs."""

    largest: Any
    largest_index: Any
    smallest: Any
    smallest_index: Any


def refuses(queries: Any, rows: Any, scale: Any, k: int) -> str | None:
    if queries.ndim != 2 or rows.ndim != 2 or queries.shape[1] != rows.shape[1]:
        return f"queries {queries.shape} and rows {rows.shape} should be [Q, D] and [N, D]"
    if scale.shape != rows.shape[:1]:
        return f"scale {scale.shape} should be [N] = {rows.shape[:1]}"
    return None if k >= 1 else f"k = {k} should be at least 1"


@functools.partial(jax.jit, static_argnums=3)
def topk_dot(queries: Any, rows: Any, scale: Any, k: int) -> TopK:
    n, d = rows.shape
    blocks = max(1, -(-n // BLOCK))
    size = min(n, BLOCK) if blocks == 1 else BLOCK
    pad = blocks * size - n
    rows = jnp.pad(rows, ((0, pad), (0, 0))).reshape(blocks, size, d)
    scale = jnp.pad(scale, (0, pad)).reshape(blocks, size)
    index = jnp.arange(blocks * size, dtype=jnp.int32).reshape(blocks, size)
    empty = (
        jnp.full((queries.shape[0], k), -jnp.inf, jnp.float32),
        jnp.full((queries.shape[0], k), -1, jnp.int32),
    )

    def step(best, block):
        rows, scale, index = block
        scores = jnp.einsum("qd,nd->qn", queries, rows, preferred_element_type=jnp.float32) * scale[None]
        real = (index < n)[None]
        sides = (jnp.where(real, scores, -jnp.inf), jnp.where(real, -scores, -jnp.inf))
        return tuple(_merge(b, s, index, k) for b, s in zip(best, sides, strict=True)), None

    (high, low), _ = lax.scan(step, (empty, empty), (rows, scale, index))
    return TopK(high[0], high[1], -low[0], low[1])


def _merge(best, scores, index, k):
    """Earlier rows stand first, so `top_k`, which is stable, keeps the lower index on a tie."""
    values = jnp.concatenate([best[0], scores], 1)
    where = jnp.concatenate([best[1], jnp.broadcast_to(index[None], scores.shape)], 1)
    top, at = lax.top_k(values, k)
    return top, jnp.where(jnp.isneginf(top), -1, jnp.take_along_axis(where, at, 1))
