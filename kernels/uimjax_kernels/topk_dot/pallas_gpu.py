"""`topk_dot` for GPUs (Pallas, Triton lowering): rows are read once, as stored, and widened in registers (copied first
where their number is no multiple of 64, or their width).

Queries are split in two bfloat16 numbers each, which with rows of bfloat16 or int8 (exact in bfloat16) loses about
2^-16 of a query.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from uimjax_kernels.dispatch import interpreted, power_of_two
from uimjax_kernels.topk_dot import shapes
from uimjax_kernels.topk_dot.select import TopK
from uimjax_kernels.topk_dot.shapes import halves, padded

ROWS, STEP, QUERIES = 64, 64, 64  # of a tile: rows, columns a step, queries
WARPS, STAGES = 4, 3


refuses = functools.partial(shapes.refuses, STEP)


@functools.partial(jax.jit, static_argnums=3)
def topk_dot(queries: Any, rows: Any, scale: Any, k: int, blocks: Any = None, counted: Any = None) -> TopK:
    some = functools.partial(scores, queries, rows, scale, blocks)
    return shapes.in_turn(some, len(queries), len(rows), ROWS, k, counted)


def scores(queries: Any, rows: Any, scale: Any, blocks: Any, start: int, stop: int) -> Any:
    """`[Q, stop - start]` float32; `start` a multiple of `ROWS`."""
    count, width = rows.shape
    if blocks is None:
        blocks = jnp.ones((count, 1), jnp.float32)
    tile = power_of_two(len(queries), 16, QUERIES)
    asked = halves(padded(queries.astype(jnp.float32), tile, STEP), tile)
    columns, groups = asked.shape[1], asked.shape[0] // (2 * tile)
    rows, scale = padded(rows, ROWS, STEP), jnp.pad(scale.astype(jnp.float32), (0, -count % ROWS))
    blocks = jnp.pad(blocks.astype(jnp.float32).T, ((0, 0), (0, -count % ROWS)))
    first, tiles = start // ROWS, -(-(stop - start) // ROWS)
    per = columns // blocks.shape[0] // STEP  # steps a block
    found = pl.pallas_call(
        functools.partial(_kernel, count=blocks.shape[0], per=per),
        jax.ShapeDtypeStruct((groups * tile, tiles * ROWS), jnp.float32),
        grid=(tiles, groups),
        in_specs=[
            pl.BlockSpec((2 * tile, columns), lambda i, j: (j, 0)),
            pl.BlockSpec((ROWS, columns), lambda i, j: (first + i, 0)),
            pl.BlockSpec((ROWS,), lambda i, j: (first + i,)),
            pl.BlockSpec((blocks.shape[0], ROWS), lambda i, j: (0, first + i)),
        ],
        out_specs=pl.BlockSpec((tile, ROWS), lambda i, j: (j, i)),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpreted("gpu"),
        name="topk_dot_scores",
    )(asked, rows, scale, blocks)
    return found[: len(queries), : stop - start]


def _kernel(asked: Any, rows: Any, scale: Any, blocks: Any, out: Any, *, count: int, per: int) -> None:
    def step(at: Any, total: Any) -> Any:
        columns = pl.ds(at * STEP, STEP)
        found = triton.dot(asked[:, columns], rows[:, columns].astype(jnp.bfloat16), trans_b=True)
        return total + (found if count == 1 else found * blocks[jax.lax.div(at, jnp.int32(per)), :][None])

    zeros = jnp.zeros((asked.shape[0], rows.shape[0]), jnp.float32)
    total = jax.lax.fori_loop(0, rows.shape[1] // STEP, step, zeros)
    whole = scale[:] if count > 1 else scale[:] * blocks[0, :]
    out[:, :] = total.reshape(2, *out.shape).sum(0) * whole[None]
