"""`project` for TPUs (Pallas, Mosaic): each step makes the signs that its numbers meet, in vector memory.

Lowered and interpreted in the tests; not measured on a chip yet, so it is picked by name alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from uimjax_kernels.dispatch import interpreted
from uimjax_kernels.project import reference
from uimjax_kernels.project.reference import WORD

STEP, COLUMNS, ROWS = 256, 256, 128  # numbers a step, signs of a number, examples a program

refuses = reference.refuses


def project(x: Any, seed: Any, width: int, start: Any = 0) -> Any:
    return _project(x, jnp.append(seed, jnp.asarray(start, jnp.uint32)), width)


@functools.partial(jax.jit, static_argnums=2)
def _project(x: Any, seed: Any, width: int) -> Any:
    size, numbers = x.shape
    tile = min(ROWS, -(-size // 8) * 8)
    x = jnp.pad(x.astype(jnp.float32), ((0, -size % tile), (0, -numbers % STEP)))
    across = -(-width // COLUMNS)
    found = pl.pallas_call(
        _kernel,
        jax.ShapeDtypeStruct((len(x), across * COLUMNS), jnp.float32),
        grid=(len(x) // tile, across, x.shape[1] // STEP),
        in_specs=[
            pl.BlockSpec((tile, STEP), lambda i, j, k: (i, k)),
            pl.BlockSpec((3,), lambda i, j, k: (0,), memory_space=tpu.SMEM),
        ],
        out_specs=pl.BlockSpec((tile, COLUMNS), lambda i, j, k: (i, j)),
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpreted("tpu"),
        name="project",
    )(x, seed)
    return found[:size, :width] / np.sqrt(np.float32(width))


def _kernel(x: Any, seed: Any, out: Any) -> None:
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    shape = (STEP, COLUMNS)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    row = row + (step * STEP).astype(jnp.uint32) + seed[2]
    column = column + (pl.program_id(1) * COLUMNS).astype(jnp.uint32)
    word = reference.words(reference.hashes(row, (seed[0], seed[1])), column // np.uint32(WORD))
    bits = (word >> (column % np.uint32(WORD))) & np.uint32(1)
    signs = 2.0 * bits.astype(jnp.int32).astype(jnp.float32) - 1.0
    out[...] += jnp.dot(x[...], signs, preferred_element_type=jnp.float32, precision="highest")
