"""`project` in plain jnp: the specification, and the path on a CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORD = 32  # signs a hash gives
BLOCK = 4096  # rows of the matrix at once


def refuses(x: Any, seed: Any, width: int, start: Any = 0) -> str | None:
    if x.ndim != 2:
        return f"x {x.shape} should be [B, D]"
    if seed.shape != (2,) or seed.dtype != jnp.uint32:
        return f"seed {seed.shape} {seed.dtype} should be two uint32"
    if width < 1:
        return f"width {width} should be at least 1"
    if isinstance(start, int) and not 0 <= start <= 2**32 - x.shape[1]:
        return f"rows {start} to {start + x.shape[1]} of the matrix: they are numbered from 0 to 2^32 - 1"
    return None


def mixed(x: Any) -> Any:
    """The finaliser of MurmurHash3 (Appleby), a bijection of uint32 whose every output bit follows every input bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def hashes(rows: Any, seed: Any) -> Any:
    """One number a row of the matrix, from which the row's words follow."""
    return mixed(mixed(rows * np.uint32(0x9E3779B1) + seed[0]) ^ seed[1])


def words(of_row: Any, word: Any) -> Any:
    """Word `word` of a row: 32 signs."""
    return mixed(of_row ^ mixed(word * np.uint32(0x9E3779B1) + np.uint32(0x7F4A7C15)))


def signs(start: Any, count: int, seed: Any, width: int) -> Any:
    """R of rows `[start, start + count)`, `[count, width]`, +1 or -1 in float32."""
    rows = jnp.asarray(start, jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    found = words(hashes(rows, seed)[:, None], jnp.arange(-(-width // WORD), dtype=jnp.uint32)[None])
    bits = (found[:, :, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, None]) & 1
    return 2 * bits.reshape(count, -1)[:, :width].astype(jnp.float32) - 1


def project(x: Any, seed: Any, width: int, start: Any = 0) -> Any:
    return _project(x, seed, width, jnp.asarray(start, jnp.uint32))


@functools.partial(jax.jit, static_argnums=2)
def _project(x: Any, seed: Any, width: int, start: Any) -> Any:
    size, numbers = x.shape
    block = min(BLOCK, numbers)
    parts = jnp.moveaxis(jnp.pad(x, ((0, 0), (0, -numbers % block))).reshape(size, -1, block), 1, 0)

    def step(total: Any, at: Any) -> tuple[Any, None]:
        part, first = at
        made = signs(first, block, seed, width)
        return total + jnp.einsum("bd,dk->bk", part.astype(jnp.float32), made, precision="highest"), None

    first = start + np.uint32(block) * jnp.arange(len(parts), dtype=jnp.uint32)
    total = jax.lax.scan(step, jnp.zeros((size, width), jnp.float32), (parts, first))[0]
    return total / np.sqrt(np.float32(width))
