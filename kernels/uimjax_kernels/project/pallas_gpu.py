"""`project` for GPUs (Pallas, Triton lowering): each program makes the signs of its columns, 32 a hash, in registers.

Numbers are split in two of bfloat16 each; signs are exact there, so about 2^-16 of a number is lost.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from uimjax_kernels.dispatch import interpreted, power_of_two
from uimjax_kernels.project import reference
from uimjax_kernels.project.reference import WORD

STEP, WORDS, ROWS = 64, 4, 128  # numbers a step, words of signs a program, examples a program
WARPS, STAGES = 4, 3
PROGRAMS = 528  # four a multiprocessor of the largest cards

refuses = reference.refuses


def project(x: Any, seed: Any, width: int, start: Any = 0) -> Any:
    return _project(x, jnp.append(seed, jnp.asarray(start, jnp.uint32)), width)


@functools.partial(jax.jit, static_argnums=2)
def _project(x: Any, seed: Any, width: int) -> Any:
    size, numbers = x.shape
    tile, columns = power_of_two(size, 16, ROWS), WORD * WORDS
    across, down = -(-width // columns), -(-size // tile)
    split = max(1, min(-(-numbers // STEP), PROGRAMS // (across * down)))
    each = -(-numbers // (split * STEP)) * STEP
    spare = ((0, -size % tile), (0, split * each - numbers))
    x = jnp.pad(x, spare) if any(after for _, after in spare) else x
    whole = x.astype(jnp.float32)  # spelt out: compilers may drop a conversion to bfloat16 and back
    upper = jax.lax.reduce_precision(whole, exponent_bits=8, mantissa_bits=7)
    high, low = upper.astype(jnp.bfloat16), (whole - upper).astype(jnp.bfloat16)
    spec = pl.BlockSpec((tile, each), lambda i, j, k: (i, k))
    found = pl.pallas_call(
        _kernel,
        jax.ShapeDtypeStruct((split, down * tile, across * columns), jnp.float32),
        grid=(down, across, split),
        in_specs=[spec, spec, pl.BlockSpec((3,), lambda i, j, k: (0,))],
        out_specs=pl.BlockSpec((1, tile, columns), lambda i, j, k: (k, i, j)),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpreted("gpu"),
        name="project",
    )(high, low, seed)
    return found.sum(0)[:size, :width] / np.sqrt(np.float32(width))


def _kernel(high: Any, low: Any, seed: Any, out: Any) -> None:
    seeds = seed[0], seed[1]
    first = (pl.program_id(2) * high.shape[1]).astype(jnp.uint32) + seed[2]
    word = (pl.program_id(1) * WORDS).astype(jnp.uint32)
    shifts = jax.lax.broadcasted_iota(jnp.uint32, (STEP, WORD), 1)

    def step(at: Any, totals: Any) -> Any:
        here = pl.ds(at * STEP, STEP)
        upper, lower = high[:, here], low[:, here]
        rows = first + (at * STEP).astype(jnp.uint32) + jax.lax.iota(jnp.uint32, STEP)
        of_row = reference.hashes(rows, seeds)
        out = []
        for k, total in enumerate(totals):
            bits = (reference.words(of_row, word + np.uint32(k))[:, None] >> shifts) & np.uint32(1)
            made = (2 * bits.astype(jnp.int32) - 1).astype(jnp.bfloat16)
            out.append(total + triton.dot(upper, made) + triton.dot(lower, made))
        return tuple(out)

    zeros = tuple(jnp.zeros((out.shape[1], WORD), jnp.float32) for _ in range(WORDS))
    for k, total in enumerate(jax.lax.fori_loop(0, high.shape[1] // STEP, step, zeros)):
        out[0, :, pl.ds(k * WORD, WORD)] = total
