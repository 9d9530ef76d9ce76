"""`gram_square` in plain jnp: the specification, and the path on a CPU."""

from typing import Any

import jax
import jax.numpy as jnp

CHUNK_BYTES = 64 << 20  # of formed gradients at once


def refuses(a: Any, g: Any) -> str | None:
    if a.ndim != 3 or g.ndim != 3 or a.shape[:2] != g.shape[:2]:
        return f"a {a.shape} and g {g.shape} should be [B, T, I] and [B, T, O]"
    return None


@jax.jit
def gram_square(a: Any, g: Any) -> Any:
    size, _, rows = a.shape
    cols = g.shape[2]
    steps = -(-size // max(1, min(size, CHUNK_BYTES // (4 * rows * cols))))
    chunk = -(-size // steps)  # as many in each step, so that little is filled up with zeros

    def cut(x: Any) -> Any:
        return jnp.pad(x, ((0, steps * chunk - size), (0, 0), (0, 0))).reshape(steps, chunk, *x.shape[1:])

    def step(total: Any, part: Any) -> tuple[Any, None]:
        formed = jnp.einsum("bti,bto->bio", *part, preferred_element_type=jnp.float32)
        return total + jnp.square(formed).sum(0), None

    return jax.lax.scan(step, jnp.zeros((rows, cols), jnp.float32), (cut(a), cut(g)))[0]
