"""Kronecker-factored statistics of per-example gradients, from their factors: covariances, then eigenvalues.

For a matrix parameter with gradient `G_b = sum_t a_bt g_bt^T` the Fisher is taken for `A (x) C` with
`A = sum_bt a_bt a_bt^T` and `C = sum_bt g_bt g_bt^T` (K-FAC: Martens & Grosse 2015, arXiv 1503.05671); in the basis of
their eigenvectors its diagonal is then measured, `L = sum_b (Q_A^T G_b Q_C)^2` (EK-FAC: George et al. 2018, arXiv
1806.03884). Factors are rotated, never the gradient. Two passes over the data; both are sums over examples.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature.blocks import Block, formed
from uimjax.taps import Gather, expand
from uimjax_kernels import gram_square

IN_HALF = ("gpu",)  # backends where matrices of a bfloat16 model are squared in that precision
Pair = tuple[Any, Any]  # of the rows [n, I, I] and the columns [n, O, O]; None: the axis keeps its own basis


class Covariance(NamedTuple):
    """Sums over positions: `rows` A `[n, I, I]`, `cols` C `[n, O, O]`, of an axis that keeps its own basis the diagonal
    alone (`[n, I]`, `[n, O]`), and how many `positions` `[n]` they are of. K-FAC's matrix is
    `A (x) C / (positions x examples)`."""

    rows: Any
    cols: Any
    positions: Any


CHUNK_BYTES = 32 << 20  # of gradients formed at once while their squares are summed


def covariances(blocks: Sequence[Block], mask: Any = None) -> dict[str, Covariance]:
    """`{path: Covariance}` summed over a batch, in float32 at least; examples whose `mask` `[B]` is False (padding) add
    nothing.

    An axis of size 1 keeps its own basis, and so do the rows of a table that is looked up (A is diagonal) and biases
    and scales (an exact block would cost more than the matrices beside them; theirs is the diagonal). Any other
    gradient without factors counts as one position of an `a` and a `g` of equal length: `A = sum_b G_b G_b^T / |G_b|`,
    `C = sum_b G_b^T G_b / |G_b|`.
    """
    return {block.path: _covariance(block, mask) for block in blocks}


def eigenbases(sums: dict[str, Covariance]) -> dict[str, Pair]:
    """`{path: (Q_A, Q_C)}`: eigenvectors in columns, eigenvalues rising; float64 on the host, returned in the sums'
    precision."""
    return {path: (_basis(its.rows), _basis(its.cols)) for path, its in sums.items()}


def _basis(side: Any) -> Any:
    return None if side.ndim == 2 else np.linalg.eigh(np.asarray(side, np.float64))[1].astype(side.dtype)


def eigenvalues(blocks: Sequence[Block], bases: dict[str, Pair], mask: Any = None) -> dict[str, Any]:
    """`{path: L [n, I, O]}`, `L = sum_b (Q_A^T G_b Q_C)^2`, summed over a batch."""
    return {block.path: _eigenvalues(block, bases[block.path], mask) for block in blocks}


def _covariance(block: Block, mask: Any) -> Covariance:
    n, *axes = block.shape
    kept = jnp.ones(block.examples, bool) if mask is None else mask
    rows = cols = None
    positions = jnp.zeros(n, jnp.float32)
    for use, where in block.uses:
        real = mask
        if use.owner is not None:  # positions of documents that count, each once
            real = ((use.owner != 0) & kept.reshape(use.owner.shape[:2])[:, :, None]).any(1)
        met = kept.sum() * use.g.shape[2] if use.owner is None or real is None else real.sum()
        positions = positions.at[slice(None) if where is None or where.stack is None else where.stack].add(met)
        size = axes[0] if where is None or where.rows is None else len(where.rows)
        rows = _spread(rows, _side(use, size, kept if real is None else real), where, 1, (n, axes[0]))
        cols = _spread(cols, _second(use.g, real, axes[1] == 1), where, 2, (n, axes[1]))
    if block.plain is not None:
        gradient = block.plain  # [B, n, I, O]: the rows count as positions
        positions = positions + kept.sum()
        if 1 in axes:
            whole, ones = _second(gradient.reshape(-1, n, 1, max(axes)), mask, True), jnp.full((n, 1), kept.sum())
            more = (whole, ones.astype(whole.dtype))
            more = more if axes[1] == 1 else more[::-1]
        else:
            length = jnp.linalg.norm(gradient, axis=(2, 3), keepdims=True)
            gradient = gradient / jnp.sqrt(jnp.maximum(length, jnp.finfo(length.dtype).tiny))
            more = _second(jnp.swapaxes(gradient, 2, 3), mask), _second(gradient, mask)
        rows, cols = _add(rows, more[0]), _add(cols, more[1])
    return Covariance(rows, cols, positions)


def _side(use: Any, size: int, real: Any) -> Any:
    """The rows' part of a use: of a lookup the diagonal, how often each row was met `[n, I]`."""
    if not isinstance(use, Gather):
        return _second(use[0], real, size == 1)
    met = jnp.broadcast_to(real[:, None, None] if real.ndim == 1 else real[:, None, :], use.ids.shape)
    stack = jnp.broadcast_to(jnp.arange(use.ids.shape[1])[None, :, None], use.ids.shape)
    return jnp.zeros((use.ids.shape[1], size), jnp.float32).at[stack, use.ids].add(met.astype(jnp.float32))


def _second(x: Any, mask: Any, diagonal: bool = False) -> Any:
    """`sum_bt x_bt x_bt^T` `[n, k, k]` of `[B, n, T, k]`, as one product of matrices a stack entry, or its diagonal
    `[n, k]`; `mask` `[B]` or `[B, T]`."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if mask is not None:
        x = jnp.where(mask[:, None, :, None] if mask.ndim == 2 else mask[:, None, None, None], x, 0)
    if diagonal:
        return jnp.square(x).sum((0, 2))
    flat = jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[3])
    return jnp.einsum("nti,ntj->nij", flat, flat)


def _spread(total: Any, part: Any, where: Any, axis: int, shape: tuple[int, int]) -> Any:
    """Add the covariance (or the diagonal) of a slice of a parameter at its place."""
    stack, at = (None, None) if where is None else (where.stack, where[axis])
    if stack is None and at is None:
        return _add(total, part)
    n, size = shape
    stack = jnp.arange(n) if stack is None else stack
    at = jnp.arange(size) if at is None else at
    place = (
        (stack[:, None], at[None, :]) if part.ndim == 2 else (stack[:, None, None], at[None, :, None], at[None, None])
    )
    return _add(total, jnp.zeros((n, *(size,) * (part.ndim - 1)), part.dtype).at[place].add(part))


def _add(total: Any, part: Any) -> Any:
    """A covariance beside a diagonal (a table looked up and multiplied with) counts by its diagonal."""
    if total is None or total.ndim == part.ndim:
        return part if total is None else total + part
    return sum(jnp.diagonal(x, axis1=1, axis2=2) if x.ndim == 3 else x for x in (total, part))


def _eigenvalues(block: Block, bases: Pair, mask: Any) -> Any:
    rows, cols = bases
    if block.rank_one:
        use = expand(block.uses[0][0])
        a, g = rotate(use.a, rows), rotate(use.g, cols)  # rank one: squares of the factors
        g = g if mask is None else jnp.where(mask[:, None, None, None], g, 0)
        return jnp.einsum("bnti,bnto->nio", jnp.square(a), jnp.square(g))
    plain = block._replace(uses=tuple((expand(use), where) for use, where in block.uses))
    size = plain.examples
    kept = jnp.ones(size, bool) if mask is None else mask
    if (halves := _in_half(plain)) is not None:
        a, g = (rotate(x, basis)[:, 0].astype(jnp.bfloat16) for x, basis in zip(halves, bases, strict=True))
        return gram_square(a, jnp.where(kept[:, None, None], g, 0))[None]
    steps = -(-size // max(1, min(size, CHUNK_BYTES // (4 * math.prod(block.shape)))))
    chunk = -(-size // steps)  # as many in each step, so that little is filled up with zeros

    def cut(x: Any) -> Any:  # examples beyond the last are zeros, and not kept
        padded = jnp.pad(x, [(0, steps * chunk - size)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(steps, chunk, *x.shape[1:])

    split = jax.tree.map(cut, (tuple(use for use, _ in plain.uses), plain.plain, kept))

    def some(uses: Any, rest: Any) -> Any:
        placed = tuple((use, where) for use, (_, where) in zip(uses, plain.uses, strict=True))
        return rotated(block._replace(uses=placed, plain=rest), rows, cols)

    def step(total: Any, part: Any) -> tuple[Any, None]:
        uses, rest, real = part
        return total + jnp.square(jnp.where(real[:, None, None, None], some(uses, rest), 0)).sum(0), None

    one = jax.eval_shape(lambda part: some(*part[:2]), jax.tree.map(lambda x: x[0], split))
    return jax.lax.scan(step, jnp.zeros(block.shape, one.dtype), split)[0]


def _in_half(plain: Block) -> tuple[Any, Any] | None:
    """The factors of a matrix of a bfloat16 model, on a GPU: their rotated gradients are squared in a kernel that never
    writes one (2^-9 of each is lost, and they are many)."""
    if jax.default_backend() not in IN_HALF or plain.plain is not None or len(plain.uses) != 1 or plain.shape[0] != 1:
        return None
    use, where = plain.uses[0]
    if isinstance(use, Gather) or where is not None or use.owner is not None:
        return None
    return (use.a, use.g) if use.a.dtype == use.g.dtype == jnp.bfloat16 else None


def rotated(block: Block, rows: Any, cols: Any) -> Any:
    """`Q_A^T G_b Q_C` `[B, n, I, O]`: factors rotated and multiplied, or the gradient formed and rotated, whichever
    takes fewer multiplications; slices of a parameter are formed."""
    _, i, o = block.shape
    length = sum(use.g.shape[2] for use, _ in block.uses)
    sides = [(size, basis) for size, basis in ((i, rows), (o, cols)) if basis is not None]
    by_factors = length * sum(size**2 for size, _ in sides) <= i * o * sum(size for size, _ in sides)
    if by_factors and block.plain is None and all(where is None for _, where in block.uses):
        uses = tuple((type(use)(_turned(use, rows), rotate(use.g, cols)), None) for use, _ in block.uses)
        block, rows, cols = block._replace(uses=uses), None, None
    found = formed(block)
    found = found.astype(jnp.promote_types(found.dtype, jnp.float32))
    found = found if rows is None else jnp.einsum("bnio,nik->bnko", found, rows)
    return found if cols is None else jnp.einsum("bnio,nok->bnik", found, cols)


def _turned(use: Any, rows: Any) -> Any:
    return use.ids if isinstance(use, Gather) else rotate(use.a, rows)


def rotate(x: Any, basis: Any) -> Any:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if basis is None:
        return x
    if basis.shape[0] == 1:
        return jnp.einsum("bnti,ik->bntk", x, basis[0])
    return jnp.einsum("bnti,nik->bntk", x, basis)
