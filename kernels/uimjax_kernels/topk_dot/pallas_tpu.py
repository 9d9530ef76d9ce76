"""`topk_dot` for TPUs (Pallas, Mosaic): rows are read once, as stored, and widened in vector memory (copied first where
their number is no multiple of 512, or their width of 128).

Lowered and interpreted in the tests; not measured on a chip yet, so it is picked by name alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from uimjax_kernels.dispatch import interpreted
from uimjax_kernels.topk_dot import shapes
from uimjax_kernels.topk_dot.select import TopK
from uimjax_kernels.topk_dot.shapes import halves, padded

ROWS, STEP, QUERIES = 512, 128, 64  # of a tile: rows, columns a step, queries


refuses = functools.partial(shapes.refuses, STEP)


@functools.partial(jax.jit, static_argnums=3)
def topk_dot(queries: Any, rows: Any, scale: Any, k: int, blocks: Any = None, counted: Any = None) -> TopK:
    some = functools.partial(scores, queries, rows, scale, blocks)
    return shapes.in_turn(some, len(queries), len(rows), ROWS, k, counted)


def scores(queries: Any, rows: Any, scale: Any, blocks: Any, start: int, stop: int) -> Any:
    """`[Q, stop - start]` float32; `start` a multiple of `ROWS`."""
    count = len(rows)
    if blocks is None:
        blocks = jnp.ones((count, 1), jnp.float32)
    asked = halves(padded(queries.astype(jnp.float32), QUERIES, STEP), QUERIES)
    rows = padded(rows, ROWS, STEP)
    weights = padded(blocks.astype(jnp.float32).T * scale.astype(jnp.float32)[None], 1, ROWS)
    first, tiles, steps = start // ROWS, -(-(stop - start) // ROWS), rows.shape[1] // STEP
    per = steps // weights.shape[0]  # steps a block
    found = pl.pallas_call(
        functools.partial(_kernel, per=per),
        jax.ShapeDtypeStruct((asked.shape[0] // 2, tiles * ROWS), jnp.float32),
        grid=(tiles, asked.shape[0] // (2 * QUERIES), steps),
        in_specs=[
            pl.BlockSpec((2 * QUERIES, STEP), lambda i, j, k: (j, k)),
            pl.BlockSpec((ROWS, STEP), lambda i, j, k: (first + i, k)),
            pl.BlockSpec((weights.shape[0], ROWS), lambda i, j, k: (0, first + i)),
        ],
        out_specs=pl.BlockSpec((QUERIES, ROWS), lambda i, j, k: (j, i)),
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpreted("tpu"),
        name="topk_dot_scores",
    )(asked, rows, weights)
    return found[: len(queries), : stop - start]


def _kernel(asked: Any, rows: Any, weights: Any, out: Any, *, per: int) -> None:
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    both = jax.lax.dot_general(
        asked[...], rows[...].astype(jnp.bfloat16), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    found = both[: out.shape[0]] + both[out.shape[0] :]
    out[...] += found * weights[pl.ds(jax.lax.div(step, jnp.int32(per)), 1), :]
