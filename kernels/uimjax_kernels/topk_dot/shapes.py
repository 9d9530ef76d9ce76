"""Inputs in the shapes that the tiles of Pallas kernels want."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uimjax_kernels.topk_dot import reference
from uimjax_kernels.topk_dot.select import TopK, merge, none_yet, select

SCORES = 1 << 24  # that stand in memory together


def halves(asked: Any, tile: int) -> Any:
    """Of `[Q, D]` in tiles: each tile's upper halves, then its lower ones, `[2 Q, D]` bfloat16. The rounding is spelt
    out because compilers may drop a conversion to bfloat16 and back."""
    high = jax.lax.reduce_precision(asked, exponent_bits=8, mantissa_bits=7)
    both = jnp.stack([high, asked - high], 1).reshape(-1, tile, 2, asked.shape[1])
    return jnp.swapaxes(both, 1, 2).reshape(-1, asked.shape[1]).astype(jnp.bfloat16)


def padded(x: Any, rows: int, columns: int) -> Any:
    """`[R, C]` with zeros up to multiples of `rows` and `columns`."""
    spare = [(0, -size % unit) for size, unit in zip(x.shape, (rows, columns), strict=True)]
    return jnp.pad(x, spare) if any(after for _, after in spare) else x


def refuses(
    step: int, queries: Any, rows: Any, scale: Any, k: int, blocks: Any = None, counted: Any = None
) -> str | None:
    """Of kernels that take `step` columns at a time."""
    reason = reference.refuses(queries, rows, scale, k, blocks, counted)
    if reason is None and rows.dtype not in (jnp.bfloat16, jnp.int8):
        return f"rows of {rows.dtype}: bfloat16 or int8 were wanted"
    if reason is None and blocks is not None and (rows.shape[1] // blocks.shape[1]) % step:
        return f"blocks of {rows.shape[1] // blocks.shape[1]} columns: a multiple of {step} was wanted"
    return reason


def in_turn(scores: Callable[[int, int], Any], queries: int, rows: int, tile: int, k: int, counted: Any) -> TopK:
    """The best of `scores(start, stop)` `[Q, stop - start]`, of as many tiles of rows at a time as fit."""
    best = none_yet(queries, k)
    step = max(1, SCORES // queries // tile) * tile
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        found = select(scores(start, stop), k, None if counted is None else counted[start:stop])
        moved = (jnp.where(x < 0, -1, x + start) for x in (found.largest_index, found.smallest_index))
        best = merge(best, TopK(found.largest, next(moved), found.smallest, next(moved)))
    return best
