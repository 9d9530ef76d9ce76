"""`gram_square` for TPUs (Pallas, Mosaic): one example's tile at a time, squared and added in vector memory.

Lowered and interpreted in the tests; not measured on a chip yet, so it is picked by name alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from uimjax_kernels.dispatch import interpreted
from uimjax_kernels.gram_square import reference

TILE, STEP = 256, 128  # of rows and columns; positions

refuses = reference.refuses


@jax.jit
def gram_square(a: Any, g: Any) -> Any:
    rows, cols = a.shape[2], g.shape[2]
    a, g = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % STEP), (0, -x.shape[2] % TILE))) for x in (a, g))
    found = pl.pallas_call(
        _kernel,
        jax.ShapeDtypeStruct((a.shape[2], g.shape[2]), jnp.float32),
        grid=(a.shape[2] // TILE, g.shape[2] // TILE, a.shape[0]),
        in_specs=[
            pl.BlockSpec((1, a.shape[1], TILE), lambda i, j, k: (k, 0, i)),
            pl.BlockSpec((1, g.shape[1], TILE), lambda i, j, k: (k, 0, j)),
        ],
        out_specs=pl.BlockSpec((TILE, TILE), lambda i, j, k: (i, j)),
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpreted("tpu"),
        name="gram_square",
    )(a, g)
    return found[:rows, :cols]


def _kernel(a: Any, g: Any, out: Any) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    formed = jax.lax.dot_general(a[0], g[0], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    out[...] += jnp.square(formed)
