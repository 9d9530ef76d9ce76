"""`gram_square` for GPUs (Pallas, Triton lowering): each program squares one tile of every example's gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from uimjax_kernels.dispatch import interpreted, power_of_two
from uimjax_kernels.gram_square import reference

TILE, LARGE_TILE, LARGE = 64, 128, 1 << 22  # of rows and columns; entries of a matrix from which the large one wins
STEP = 64  # positions a step
PROGRAMS = 528  # four a multiprocessor of the largest cards: with fewer tiles, examples are split among programs


def refuses(a: Any, g: Any) -> str | None:
    """In float32 XLA's own products are faster."""
    reason = reference.refuses(a, g)
    wanted = a.dtype == g.dtype == jnp.bfloat16
    return reason if reason or wanted else f"a of {a.dtype} and g of {g.dtype}: bfloat16 were wanted"


@jax.jit
def gram_square(a: Any, g: Any) -> Any:
    size, length, rows = a.shape
    cols = g.shape[2]
    tile = LARGE_TILE if rows * cols >= LARGE else TILE
    step, high, wide = power_of_two(length, 16, STEP), power_of_two(rows, 16, tile), power_of_two(cols, 16, tile)
    a, g = _padded(a, step, high), _padded(g, step, wide)
    tiles = (a.shape[2] // high, g.shape[2] // wide)
    split = max(1, min(size, PROGRAMS // (tiles[0] * tiles[1])))
    each = -(-size // split)
    a, g = (jnp.pad(x, ((0, each * split - size), (0, 0), (0, 0))) if each * split > size else x for x in (a, g))
    found = pl.pallas_call(
        functools.partial(_kernel, step=step),
        jax.ShapeDtypeStruct((split, a.shape[2], g.shape[2]), jnp.float32),
        grid=(*tiles, split),
        in_specs=[
            pl.BlockSpec((each, a.shape[1], high), lambda i, j, k: (k, 0, i)),
            pl.BlockSpec((each, g.shape[1], wide), lambda i, j, k: (k, 0, j)),
        ],
        out_specs=pl.BlockSpec((1, high, wide), lambda i, j, k: (k, i, j)),
        compiler_params=triton.CompilerParams(
            num_warps=8 if tile == LARGE_TILE else 4, num_stages=4 if tile == LARGE_TILE else 3
        ),
        interpret=interpreted("gpu"),
        name="gram_square",
    )(a, g)
    return found.sum(0)[:rows, :cols]


def _kernel(a: Any, g: Any, out: Any, *, step: int) -> None:
    steps = a.shape[1] // step

    def position(at: Any, formed: Any, example: Any) -> Any:
        here = pl.ds(at * step, step)
        return formed + triton.dot(a[example, here, :], g[example, here, :], trans_a=True)

    def example(at: Any, total: Any) -> Any:
        zeros = jnp.zeros(out.shape[1:], jnp.float32)
        formed = jax.lax.fori_loop(0, steps, functools.partial(position, example=at), zeros)
        return total + formed * formed

    out[0, :, :] = jax.lax.fori_loop(0, a.shape[0], example, jnp.zeros(out.shape[1:], jnp.float32))


def _padded(x: Any, positions: int, columns: int) -> Any:
    spare = (0, 0), (0, -x.shape[1] % positions), (0, -x.shape[2] % columns)
    return jnp.pad(x, spare) if any(after for _, after in spare) else x
