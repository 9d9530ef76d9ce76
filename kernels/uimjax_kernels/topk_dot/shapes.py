"""Inputs in the shapes that the tiles of Pallas kernels want."""

from typing import Any

import jax
import jax.numpy as jnp


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
