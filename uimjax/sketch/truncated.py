"""What a deterministic truncation keeps of two-sided sketches: principal components, and few singular pairs.

Both are biased: what they drop, they drop for every row alike. How much is known exactly, and returned or stated.
"""

from typing import Any

import jax.numpy as jnp

from uimjax.errors import UsageError
from uimjax.sketch.kronecker import Matrices, Sketch, sides
from uimjax.taps import Sites


def principal(found: Sites, sketch: Sketch, sums: dict[str, tuple[Any, ...]]) -> Matrices:
    """Matrices for `kronecker.project` from covariances `{path: (A [n, I, I], C [n, O, O], ...)}` instead of a seed:
    the leading eigenvectors of either side, as many as the choice gives it (LoGra's PCA: Choe et al. 2024, arXiv
    2405.13954).

    *Guarantees*: of all `P, Q` with orthonormal columns these lose the least of either side's second moment, namely its
    further eigenvalues; inner products of gradients inside the kept subspaces are exact. Not unbiased. Biases and
    scales, which have no covariances, are kept whole; the rows of a table that is looked up have none either, and a
    table that would have to be cut there is refused.

    Raises:
        UsageError: a side that is to be projected has no covariance.
    """
    out = {}
    for leaf in found.used:
        _, *axes = leaf.layout.shape
        pair = []
        for axis, width, side in zip(axes, sides(sketch, leaf), sums[leaf.path][:2], strict=True):
            if 1 in axes and all(whole.ndim == 2 for whole in sums[leaf.path][:2]):
                pair.append(None)
                continue
            if width < axis and side.ndim == 2:
                raise UsageError(
                    f"{leaf.path} is looked up, so its {axis} rows have no principal components; leave it out "
                    f"(Task(exclude=({leaf.path!r},))), or use a random sketch"
                )
            pair.append(None if width == axis else jnp.linalg.eigh(side)[1][:, :, ::-1][:, :, :width])
        out[leaf.path] = tuple(pair)
    return out


def low_rank(projected: dict[str, Any], rank: int) -> tuple[dict[str, tuple[Any, Any]], Any]:
    """Each row's sketched matrices `[B, n, p, q]` by their `rank` leading singular pairs: `{path: (u [B, n, p, c],
    v [B, n, q, c])}` with `u v^T` for the matrix, c (p + q) numbers instead of p q (LoRIF, arXiv 2601.21929), and the
    share of each row's squared norm that is lost, `[B]`.

    *Guarantees*: no other matrices of that rank are nearer; an inner product with a row kept whole is off by at most
    `sqrt(lost) |x| |y|`, that of two truncated rows by `(sqrt(lost_x) + sqrt(lost_y)) |x| |y|`.

    Raises:
        UsageError: a rank below 1.
    """
    if rank < 1:
        raise UsageError(f"rank {rank}: at least 1 singular pair a matrix was wanted")
    out, lost, whole = {}, 0.0, 0.0
    for path, block in projected.items():
        u, s, v = jnp.linalg.svd(block, full_matrices=False)
        kept = min(rank, s.shape[-1])
        out[path] = u[..., :kept] * s[..., None, :kept], jnp.swapaxes(v, -1, -2)[..., :kept]
        lost = lost + jnp.square(s[..., kept:]).sum((1, 2))
        whole = whole + jnp.square(s).sum((1, 2))
    return out, lost / jnp.maximum(whole, 1e-30)
