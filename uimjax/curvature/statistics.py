"""Kronecker-factored statistics of per-example gradients, from their factors: covariances, then eigenvalues.

For a matrix parameter with gradient `G_b = sum_t a_bt g_bt^T` the Fisher is taken for `A (x) C` with
`A = sum_bt a_bt a_bt^T` and `C = sum_bt g_bt g_bt^T` (K-FAC: Martens & Grosse 2015, arXiv 1503.05671); in the basis of
their eigenvectors its diagonal is then measured, `L = sum_b (Q_A^T G_b Q_C)^2` (EK-FAC: George et al. 2018, arXiv
1806.03884). Factors are rotated, never the gradient. Two passes over the data; both are sums over examples.
"""

from typing import Any

import jax
import jax.numpy as jnp

from uimjax.taps import Dense, Direct, Factor, Factors, Gather, Leaf, Sites, expand, form, pair, to_matrices

Pair = tuple[Any, Any]  # of the rows [n, I, I] and the columns [n, O, O]; None: the axis keeps its own basis
CHUNK_BYTES = 32 << 20  # of gradients formed at once while their squares are summed


def covariances(found: Sites, factors: Factors, mask: Any = None) -> dict[str, Pair]:
    """`{path: (A [n, I, I], C [n, O, O])}` summed over a batch, in float32 at least; examples whose `mask` `[B]` is
    False (padding) add nothing.

    None stands for an axis that keeps its own basis: one of size 1, the rows of a table that is looked up (A is
    diagonal), and biases and scales, whose exact block would cost more than the matrices beside them. Any other
    gradient without factors counts as its rows and columns: `A = sum_b G_b G_b^T`, `C = sum_b G_b^T G_b`.
    """
    return {leaf.path: _covariance(leaf, factors[leaf.path], mask) for leaf in found.used}


def eigenbases(sums: dict[str, Pair]) -> dict[str, Pair]:
    """`{path: (Q_A, Q_C)}`: eigenvectors in columns, eigenvalues rising."""
    return {
        path: tuple(None if side is None else jnp.linalg.eigh(side)[1] for side in sides)  # type: ignore[misc]  # two
        for path, sides in sums.items()
    }


def eigenvalues(found: Sites, factors: Factors, bases: dict[str, Pair], mask: Any = None) -> dict[str, Any]:
    """`{path: L [n, I, O]}`, `L = sum_b (Q_A^T G_b Q_C)^2`, summed over a batch."""
    return {leaf.path: _eigenvalues(leaf, factors[leaf.path], bases[leaf.path], mask) for leaf in found.used}


def _covariance(leaf: Leaf, uses: tuple[Factor, ...], mask: Any) -> Pair:
    n, *axes = leaf.layout.shape
    looked_up = any(isinstance(use, Gather) for use in uses)
    rows = cols = None
    if 1 in axes and isinstance(uses[0], Direct):
        return None, None
    for use, where in pair(leaf, uses):
        real = mask
        if use.owner is not None:  # positions of documents that count, each once
            kept = jnp.ones(use.examples, bool) if mask is None else mask
            real = ((use.owner != 0) & kept.reshape(use.owner.shape[:2])[:, :, None]).any(1)
        if axes[1] > 1:
            cols = _spread(cols, _second(use.g, real), where, 2, (n, axes[1]))
        if axes[0] > 1 and not looked_up:
            rows = _spread(rows, _second(use[0], real), where, 1, (n, axes[0]))
    if isinstance(uses[-1], Direct):
        gradient = to_matrices(uses[-1].gradient, leaf.layout)  # [B, n, I, O]: the rows count as positions
        cols = _add(cols, _second(gradient, mask)) if axes[1] > 1 else cols
        if axes[0] > 1 and not looked_up:
            rows = _add(rows, _second(jnp.swapaxes(gradient, 2, 3), mask))
    return rows, cols


def _second(x: Any, mask: Any) -> Any:
    """`sum_bt x_bt x_bt^T` `[n, k, k]` of `[B, n, T, k]`, as one product of matrices a stack entry; `mask` `[B]` or
    `[B, T]`."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if mask is not None:
        x = jnp.where(mask[:, None, :, None] if mask.ndim == 2 else mask[:, None, None, None], x, 0)
    flat = jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[3])
    return jnp.einsum("nti,ntj->nij", flat, flat)


def _spread(total: Any, part: Any, where: Any, axis: int, shape: tuple[int, int]) -> Any:
    """Add the covariance of a slice of a parameter at its place."""
    stack, at = (None, None) if where is None else (where.stack, where[axis])
    if stack is None and at is None:
        return _add(total, part)
    n, size = shape
    stack = jnp.arange(n) if stack is None else stack
    at = jnp.arange(size) if at is None else at
    total = jnp.zeros((n, size, size), part.dtype) if total is None else total
    return total.at[stack[:, None, None], at[None, :, None], at[None, None, :]].add(part)


def _add(total: Any, part: Any) -> Any:
    return part if total is None else total + part


def _eigenvalues(leaf: Leaf, uses: tuple[Factor, ...], bases: Pair, mask: Any) -> Any:
    rows, cols = bases
    plain = [expand(use) for use in uses]
    whole = all(where is None for _, where in pair(leaf, uses))
    if len(plain) == 1 and isinstance(plain[0], Dense) and plain[0].g.shape[2] == 1 and whole:
        a, g = _rotate(plain[0].a, rows), _rotate(plain[0].g, cols)  # rank one: squares of the factors
        g = g if mask is None else jnp.where(mask[:, None, None, None], g, 0)
        return jnp.einsum("bnti,bnto->nio", jnp.square(a), jnp.square(g))
    size = plain[0].examples
    chunk = max(1, min(size, CHUNK_BYTES // (4 * leaf.size)))
    kept = jnp.ones(size, bool) if mask is None else mask

    def cut(x: Any) -> Any:  # examples beyond the last are zeros, and not kept
        padded = jnp.pad(x, [(0, -size % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    split = jax.tree.map(cut, (tuple(plain), kept))

    def step(total: Any, part: Any) -> tuple[Any, None]:
        some, real = part
        formed = jnp.where(real[:, None, None, None], _rotated(leaf, some, rows, cols), 0)
        return total + jnp.square(formed).sum(0), None

    one = jax.eval_shape(lambda part: _rotated(leaf, part[0], rows, cols), jax.tree.map(lambda x: x[0], split))
    return jax.lax.scan(step, jnp.zeros(leaf.layout.shape, one.dtype), split)[0]


def _rotated(leaf: Leaf, uses: tuple[Factor, ...], rows: Any, cols: Any) -> Any:
    """`Q_A^T G_b Q_C` `[B, n, I, O]`: factors rotated and multiplied, or the gradient formed and rotated, whichever
    takes fewer multiplications; slices of a parameter are formed."""
    _, i, o = leaf.layout.shape
    length = sum(use.g.shape[2] for use in uses if not isinstance(use, Direct))
    sides = [(size, basis) for size, basis in ((i, rows), (o, cols)) if basis is not None]
    by_factors = length * sum(size**2 for size, _ in sides) <= i * o * sum(size for size, _ in sides)
    if by_factors and len(uses) == len(pair(leaf, uses)) and all(where is None for _, where in pair(leaf, uses)):
        uses = tuple(type(use)(_side(use, rows), _rotate(use.g, cols)) for use in uses)  # type: ignore[union-attr]
        rows = cols = None
    formed = form(leaf, uses)
    found = to_matrices(formed.astype(jnp.promote_types(formed.dtype, jnp.float32)), leaf.layout)
    found = found if rows is None else jnp.einsum("bnio,nik->bnko", found, rows)
    return found if cols is None else jnp.einsum("bnio,nok->bnik", found, cols)


def _side(use: Any, rows: Any) -> Any:
    return use.ids if isinstance(use, Gather) else _rotate(use.a, rows)


def _rotate(x: Any, basis: Any) -> Any:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if basis is None:
        return x
    if basis.shape[0] == 1:
        return jnp.einsum("bnti,ik->bntk", x, basis[0])
    return jnp.einsum("bnti,nik->bntk", x, basis)
