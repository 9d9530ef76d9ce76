"""Projections of factored gradients, with one matrix for each (seed, parameter, axis).

Two-sided (Kronecker) sketch of a matrix gradient G `[I, O]`: `P_I^T G P_O`, `[p, q]`, computed from the factors as
`sum_t (P_I^T a_t) (P_O^T g_t)^T`, so G is never formed (LoGra: Choe et al. 2024, arXiv 2405.13954). Vectors get a one-
sided sketch of 4p numbers. An axis no longer than its sketch is kept whole.

*Guarantees*: `E <sketch(x), sketch(y)> = <x, y>` over seeds for every parameter shape (each matrix has independent
entries of mean 0 and variance 1/p, so `E[P P^T] = I`); the same for any batch split, padding or device count; two uses
of one parameter share matrices, so a tied weight's uses add up. Matrices of different stack entries are independent.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from uimjax.errors import UsageError
from uimjax.sketch.base import blocks, leaf_key
from uimjax.taps import (
    Dense,
    Direct,
    Factor,
    Factors,
    Gather,
    Leaf,
    Place,
    Site,
    Sites,
    contract,
    convolved,
    factored,
    from_matrices,
    pair,
    spread,
    to_matrices,
)


@dataclass(frozen=True)
class Sketch:
    """A choice: `rank` p = q of each side, the entries' distribution, the seed."""

    rank: int = 16
    distribution: Literal["rademacher", "gaussian"] = "rademacher"
    seed: int = 0

    def __post_init__(self):
        if self.rank < 1:
            raise UsageError(f"a sketch of rank {self.rank} was asked for; at least 1 was wanted")
        if self.distribution not in ("rademacher", "gaussian"):
            raise UsageError(f"unknown distribution {self.distribution!r}: rademacher or gaussian")

    def __str__(self) -> str:
        return f"rank-{self.rank} sketch"


Matrices = dict[str, tuple[Any, Any]]  # path -> (rows [n, I, p] or None, cols [n, O, q] or None); None = kept whole


def sides(sketch: Sketch, leaf: Leaf) -> tuple[int, int]:
    """(p, q) of one parameter: matrices get rank x rank, vectors 4 x rank (their products then vary less than those of
    matrices, at a quarter of the width), and never more than the axis has."""
    _, rows, cols = leaf.layout.shape
    if rows == 1 or cols == 1:
        return min(rows, 4 * sketch.rank), min(cols, 4 * sketch.rank)
    return min(rows, sketch.rank), min(cols, sketch.rank)


def widths(sketch: Sketch, found: Sites) -> dict[str, int]:
    """Numbers a parameter's sketch has: n * p * q. Their sum is the width of a row."""
    return {leaf.path: leaf.layout.shape[0] * math.prod(sides(sketch, leaf)) for leaf in found.used}


def columns(sketch: Sketch, found: Sites) -> tuple[tuple[int, int], ...]:
    """Column ranges of a curvature's blocks: one for each matrix of each parameter's stack."""
    return blocks((leaf.layout.shape[0], math.prod(sides(sketch, leaf))) for leaf in found.used)


def shapes(sketch: Sketch, found: Sites) -> tuple[tuple[int, int], ...]:
    """(p, q) of each of those blocks, which holds its matrix row by row."""
    return tuple(sides(sketch, leaf) for leaf in found.used for _ in range(leaf.layout.shape[0]))


def draw(sketch: Sketch, found: Sites, key: Any) -> Matrices:
    """The projection matrices, float32. Cheap to make and never stored: they follow from the key and the path."""
    return {leaf.path: _leaf_matrices(sketch, leaf, key) for leaf in found.used}


def _leaf_matrices(sketch: Sketch, leaf: Leaf, key: Any):
    n, *axes = leaf.layout.shape
    key = leaf_key(key, leaf)

    def side(axis: int, width: int):
        if width == axes[axis]:
            return None
        return _side(jax.random.fold_in(key, axis), n, axes[axis], width, sketch.distribution)

    p, q = sides(sketch, leaf)
    return side(0, p), side(1, q)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _side(key: Any, n: int, size: int, width: int, distribution: str) -> Any:
    """`[n, size, width]`. Compiled once a shape, not once a parameter."""
    kind = jax.random.normal if distribution == "gaussian" else jax.random.rademacher
    draw = jax.vmap(lambda k: kind(jax.random.fold_in(key, k), (size, width), jnp.float32))
    return draw(jnp.arange(n)) / jnp.sqrt(jnp.float32(width))


def project(found: Sites, drawn: Matrices, factors: Factors) -> dict[str, Any]:
    """Sketched gradients `{path: [B, n, p, q]}`, in the projections' precision."""
    used = [leaf for leaf in found.used if leaf.path in drawn]
    return {leaf.path: _leaf_project(leaf, drawn[leaf.path], factors[leaf.path]) for leaf in used}


def _leaf_project(leaf: Leaf, drawn: tuple[Any, Any], factors: tuple[Factor, ...]) -> Any:
    n, *axes = leaf.layout.shape
    rows, cols = drawn
    shape = (n, *(axis if side is None else side.shape[2] for axis, side in zip(axes, drawn, strict=True)))
    total = None
    for (site, _), (factor, where) in zip(factored(leaf), pair(leaf, factors), strict=False):
        where = where or Place(None, None, None)
        kept = Place(where.stack, where.rows if rows is None else None, where.cols if cols is None else None)
        part = _factor_project(site, factor, _part(rows, where.stack, where.rows), _part(cols, where.stack, where.cols))
        if part is None:  # a short table, kept whole: its rows are picked by one-hot
            count = axes[0] if where.rows is None else len(where.rows)
            eye = jnp.broadcast_to(jnp.eye(count, dtype=factor.g.dtype), (factor.g.shape[1], count, count))
            part = _factor_project(site, factor, eye, _part(cols, where.stack, where.cols))
        total = spread(total, part, kept, shape)
    if isinstance(factors[-1], Direct):
        full = to_matrices(factors[-1].gradient, leaf.layout)
        full = full if rows is None else jnp.einsum("bnio,nip->bnpo", full, rows)
        full = full if cols is None else jnp.einsum("bnpo,noq->bnpq", full, cols)
        total = full if total is None else total + full
    return total


def _part(matrix: Any, stack: Any, axis: Any) -> Any:
    """The entries of a projection that belong to a slice of the parameter."""
    if matrix is None:
        return None
    matrix = matrix if stack is None else matrix[stack]
    return matrix if axis is None else matrix[:, axis]


def _factor_project(site: Site, factor: Dense | Gather, rows: Any, cols: Any) -> Any:
    """`[B, n, p, q]` of one factored use; None for a lookup in a table without a projection."""
    g = factor.g if cols is None else _apply(factor.g, cols)
    if isinstance(factor, Dense) and factor.image is not None and rows is not None:
        image = _wide(factor.image)
        return contract(convolved(site, image, rows[0].astype(image.dtype)), g, factor.owner)
    if isinstance(factor, Dense):
        a = factor.a if rows is None else _apply(factor.a, rows)
        return contract(a, g, factor.owner)
    if rows is None:
        return None
    picked = jax.vmap(lambda table, ids: table[ids], in_axes=(0, 1), out_axes=1)(rows, factor.ids)
    return contract(picked, g, factor.owner)


def _wide(x: Any) -> Any:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _apply(x: Any, matrix: Any) -> Any:
    """`[B, n, T, I]` times `[n, I, p]`; one GEMM where the stack has one entry."""
    matrix = matrix.astype(jnp.promote_types(x.dtype, jnp.float32))
    if matrix.shape[0] == 1:
        return jnp.einsum("bnti,ip->bntp", x, matrix[0])
    return jnp.einsum("bnti,nip->bntp", x, matrix)


def apply(sketch: Sketch, found: Sites, drawn: Matrices, factors: Factors, reference: Sites, size: int) -> Any:
    """Sketches side by side in the order of `reference.used`: `[B, D]`, D the sum of `widths`. What a measurement does
    not touch has zeros there."""
    projected, width = project(found, drawn, factors), widths(sketch, reference)
    parts = [
        projected[leaf.path].reshape(size, -1) if leaf.path in projected else jnp.zeros((size, width[leaf.path]))
        for leaf in reference.used
    ]
    return jnp.concatenate(parts, 1)


def lift(_sketch: Sketch, found: Sites, drawn: Matrices, vectors: Any) -> dict[str, Any]:
    """The adjoint of sketching: `[Q, D]` to `{path: [Q, *parameter shape]}` with `<lift(v), G> = <v, sketch(G)>`."""
    out, start = {}, 0
    for leaf in found.used:
        n, *axes = leaf.layout.shape
        sides = drawn[leaf.path]
        p, q = (axis if matrix is None else matrix.shape[2] for axis, matrix in zip(axes, sides, strict=True))
        block = vectors[:, start : start + n * p * q].reshape(-1, n, p, q)
        start += n * p * q
        out[leaf.path] = lifted(leaf, sides, block)
    return out


def lifted(leaf: Leaf, sides: tuple[Any, Any], block: Any) -> Any:
    """`P_I s P_O^T` of sketched matrices `[Q, n, p, q]`, `[Q, *parameter shape]`."""
    block = block if sides[0] is None else jnp.einsum("bnpq,nip->bniq", block, sides[0])
    block = block if sides[1] is None else jnp.einsum("bniq,noq->bnio", block, sides[1])
    return from_matrices(block, leaf.shape, leaf.layout)
