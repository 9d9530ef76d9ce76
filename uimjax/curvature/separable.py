"""Few outer products: of `1 / (L + damping)`, so that gradients of rank one are scored without being formed, and of
queries' directions (`truncated`), so that many of them fit in memory.

For gradients `a (x) g` the score is `sum_io W_io a_i a'_i g_o g'_o` with `W = 1 / (L + damping)` `[I, O]`: I x O
multiplications a pair. With `W ~ sum_r u_r v_r^T` it is `sum_r (a . u_r a')(g . v_r g')`: R pairs of thin products.

What counts is the error in scores, not in W: its mean square is `sum_io dW_io^2 L_io^2` for gradients with second
moments L. So the best R terms are those of the singular value decomposition of W weighted by L, taken as
`L ~ alpha beta^T` from its row and column means; a plain decomposition of W spends its terms on entries that no
gradient touches.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature.rotated import Outer, Rotated

FORMED_BYTES = 64 << 20  # of directions put together again at once


class Terms(NamedTuple):
    """`W ~ sum_r u_r v_r^T`: u `[n, R, I]`, v `[n, R, O]`."""

    u: Any
    v: Any


class Thin(NamedTuple):
    """Directions of rank-one queries, R terms each: a `[n, R, Q, I]`, g `[n, R, Q, O]`."""

    a: Any
    g: Any


class Low(NamedTuple):
    """R singular pairs each in place of formed directions `[Q, n, I, O]`: a `[n, R, Q, I]`, g `[n, R, Q, O]`."""

    a: Any
    g: Any


@functools.partial(jax.jit, static_argnums=1)
def truncated(directions: Any, rank: int) -> tuple[Low, Any, Any]:
    """(the `rank` leading singular pairs of each matrix of `[Q, n, I, O]`, the squared norms lost and of the whole
    `[Q]`). No other matrices of that rank are nearer: a product with a gradient x is off by at most
    `sqrt(lost) |x|` (Grosse et al. 2023, arXiv 2308.03296, for queries of language models)."""
    u, s, v = jnp.linalg.svd(directions, full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    a = jnp.transpose(u[..., :rank] * root[..., None, :], (1, 3, 0, 2))
    g = jnp.transpose(v[..., :rank, :] * root[..., None], (1, 2, 0, 3))
    return Low(a, g), jnp.square(s[..., rank:]).sum((1, 2)), jnp.square(s).sum((1, 2))


def low_products(block: Any, directions: Low) -> Any:
    """`<x_b, d_q>` `[B, Q]`; of formed gradients `[B, n, I, O]` with the directions put together, a few at a time."""
    if isinstance(block, Outer):
        return products(block, Thin(*directions))
    flat = block.reshape(block.shape[0], -1)

    def one(pair: tuple[Any, Any]) -> Any:
        return flat @ jnp.einsum("nri,nro->nio", *pair).reshape(-1)

    each = tuple(jnp.moveaxis(x, 2, 0) for x in directions)
    some = int(np.clip(FORMED_BYTES // (4 * max(flat.shape[1], 1)), 1, each[0].shape[0]))
    return jax.lax.map(one, each, batch_size=some).T


def terms(inverse: Rotated, path: str, count: int) -> Terms:
    """The `count` terms of one parameter's `1 / (L + damping)`, float64 on the host."""
    values = np.asarray(inverse.values[path], np.float64)
    found = [_one(matrix, 1 / (matrix + float(inverse.damping[path])), count) for matrix in values]
    return Terms(*(jnp.asarray(np.stack(side), jnp.float32) for side in zip(*found, strict=True)))


def _one(moments: np.ndarray, w: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    alpha, beta = moments.mean(1), moments.mean(0)
    alpha, beta = (np.maximum(x, 1e-6 * x.max(initial=1e-30)) for x in (alpha, beta))
    u, s, v = np.linalg.svd(alpha[:, None] * w * beta[None, :], full_matrices=False)
    kept = min(count, len(s))
    root = np.sqrt(s[:kept])
    return (u[:, :kept] * root / alpha[:, None]).T, v[:kept] * root[:, None] / beta[None, :]


def thin(block: Outer, its: Terms) -> Thin:
    """The directions of queries `a (x) g`."""
    a, g = (jnp.swapaxes(x, 0, 1)[:, None] for x in block)  # [n, 1, Q, I]
    return Thin(a * its.u[:, :, None], g * its.v[:, :, None])


def products(block: Outer, directions: Thin) -> Any:
    """`sum_r <a_b, a_qr> <g_b, g_qr>` `[B, Q]`: two products of matrices a stack entry."""
    total = 0.0
    for k in range(block.a.shape[1]):
        _, r, q, _ = directions.a.shape
        left, right = (
            x[:, k] @ y[k].reshape(r * q, -1).T for x, y in ((block.a, directions.a), (block.g, directions.g))
        )
        total = total + (left * right).reshape(-1, r, q).sum(1)
    return total


def pairs(block: Outer, asked: Outer, b: Any, q: Any, w: Any, its: Terms) -> tuple[Any, Any]:
    """(exact, separable) scores of the pairs (b_p, q_p), `[P]` each; w `[n, I, O]`."""
    a, g = (x[b] * y[q] for x, y in zip(block, asked, strict=True))  # [P, n, I], [P, n, O]
    exact = (jnp.einsum("pni,nio->pno", a, w) * g).sum((1, 2))
    left, right = jnp.einsum("pni,nri->pnr", a, its.u), jnp.einsum("pno,nro->pnr", g, its.v)
    return exact, (left * right).sum((1, 2))
