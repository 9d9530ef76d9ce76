"""`topk_dot` in plain jnp: the specification, and the path on a CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from uimjax_kernels.topk_dot.select import TopK, merge, none_yet, select

BLOCK = 8192  # rows scored at once


def refuses(queries: Any, rows: Any, scale: Any, k: int, blocks: Any = None, counted: Any = None) -> str | None:
    if queries.ndim != 2 or rows.ndim != 2 or queries.shape[1] != rows.shape[1]:
        return f"queries {queries.shape} and rows {rows.shape} should be [Q, D] and [N, D]"
    if scale.shape != rows.shape[:1]:
        return f"scale {scale.shape} should be [N] = {rows.shape[:1]}"
    if blocks is not None and (blocks.ndim != 2 or len(blocks) != len(rows) or rows.shape[1] % blocks.shape[1]):
        return f"blocks {blocks.shape} should be [N, C] for rows {rows.shape}, C a divisor of D"
    if counted is not None and (counted.shape != rows.shape[:1] or counted.dtype != bool):
        return f"counted {counted.dtype}{counted.shape} should be bool[N], N = {len(rows)}"
    return None if k >= 1 else f"k = {k} should be at least 1"


def decode(rows: Any, blocks: Any) -> Any:
    """Stored rows `[N, D]` as float32, each stretch of `D / C` columns times its own number of `blocks` `[N, C]`."""
    wide = rows.astype(jnp.float32)
    if blocks is None:
        return wide
    count, width = rows.shape
    each = wide.reshape(count, blocks.shape[1], -1) * blocks.astype(jnp.float32)[:, :, None]
    return each.reshape(count, width)


def scores(queries: Any, rows: Any, scale: Any, blocks: Any) -> Any:
    """`scale[i] * <queries[q], rows[i]>` `[Q, N]`, all of them, in full float32 on every backend."""
    found = jnp.einsum("qd,nd->qn", queries.astype(jnp.float32), decode(rows, blocks), precision="highest")
    return found * scale[None]


@functools.partial(jax.jit, static_argnums=3)
def topk_dot(queries: Any, rows: Any, scale: Any, k: int, blocks: Any = None, counted: Any = None) -> TopK:
    n = len(rows)
    if n <= BLOCK:
        return select(scores(queries, rows, scale, blocks), k, counted)
    count = -(-n // BLOCK)
    counted = jnp.ones(n, bool) if counted is None else counted
    stored = (rows, scale, counted) if blocks is None else (rows, scale, counted, blocks)

    def step(best: TopK, at: Any) -> tuple[TopK, None]:
        start = jnp.minimum(at * BLOCK, n - BLOCK)  # the last tile overlaps: rows before `at * BLOCK` do not count
        cut = [lax.dynamic_slice_in_dim(x, start, BLOCK) for x in stored]
        index = start + jnp.arange(BLOCK, dtype=jnp.int32)
        kept = cut[2] & (index >= at * BLOCK)
        found = select(scores(queries, cut[0], cut[1], cut[3] if len(cut) > 3 else None), k, kept)
        return merge(best, found._replace(
            largest_index=jnp.where(found.largest_index < 0, -1, found.largest_index + start),
            smallest_index=jnp.where(found.smallest_index < 0, -1, found.smallest_index + start),
        )), None  # fmt: skip

    return lax.scan(step, none_yet(len(queries), k), jnp.arange(count, dtype=jnp.int32))[0]
