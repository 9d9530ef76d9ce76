"""`1 / (L + damping)` as a sum of few outer products, so that gradients of rank one are scored without being formed.

For gradients `a (x) g` the score is `sum_io W_io a_i a'_i g_o g'_o` with `W = 1 / (L + damping)` `[I, O]`: I x O
multiplications a pair. With `W ~ sum_r u_r v_r^T` it is `sum_r (a . u_r a')(g . v_r g')`: R pairs of thin products.

What counts is the error in scores, not in W: its mean square is `sum_io dW_io^2 L_io^2` for gradients with second
moments L. So the best R terms are those of the singular value decomposition of W weighted by L, taken as
`L ~ alpha beta^T` from its row and column means; a plain decomposition of W spends its terms on entries that no
gradient touches.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from uimjax.curvature.rotated import Outer, Rotated


class Terms(NamedTuple):
    """`W ~ sum_r u_r v_r^T`: u `[n, R, I]`, v `[n, R, O]`."""

    u: Any
    v: Any


class Thin(NamedTuple):
    """Directions of rank-one queries, R terms each: a `[n, R, Q, I]`, g `[n, R, Q, O]`."""

    a: Any
    g: Any


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
