"""Gauss-Newton on sketched rows: `H = (1/N) sum_i s_i s_i^T + lambda I`, block by block.

`s_i` are sketched per-example gradients of a `Source`: at the true labels H is the projected empirical Fisher that
stands for the Gauss-Newton matrix in LoGra (arXiv 2405.13954) and TrackStar (arXiv 2410.17413), of the margin it is
TRAK's kernel (arXiv 2303.14186). `lambda = damping x mean eigenvalue`
of each block, so the damping has no units and needs no rescaling between models. Left open, it is chosen by the
agreement of halves (`damping.py`) before anything is solved.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature import damping as rule
from uimjax.curvature.base import EMPIRICAL, Curvature, Source, Spectrum
from uimjax.errors import NonFiniteError, UsageError


class Sum(NamedTuple):
    """Second moments a block (float64 `[d, d]`), their column ranges, and the number of rows."""

    moments: tuple[np.ndarray, ...]
    blocks: tuple[tuple[int, int], ...]
    rows: int


@functools.lru_cache(maxsize=64)  # one object a choice: what is kept for a curvature is found again
def projected(damping: float | None = None, source: Source = EMPIRICAL, whole: bool = False) -> Curvature:
    """Block by block of the rows, or with `whole` over all columns at once. `damping` None: by the rule of
    `damping.py`; who calls `finish` by hand then says `damped(spectrum, value)`.

    *Guarantees*: independent of batch order and split (to float32 rounding of a batch's products); zero rows, such
    as padding, count unless left out: pass real rows only.

    Raises:
        NonFiniteError: a moment is NaN or infinite, or no row came. UsageError: what is to be solved has no damping.
    """
    if damping is not None and not damping > 0:
        raise UsageError(f"damping {damping} should be above 0: sketched Gauss-Newton matrices are rank deficient")

    def init(blocks: tuple[tuple[int, int], ...]) -> Sum:
        blocks = ((blocks[0][0], blocks[-1][1]),) if whole else blocks
        return Sum(tuple(np.zeros((b - a, b - a)) for a, b in blocks), blocks, 0)

    def update(state: Sum, rows: Any) -> Sum:
        rows = jnp.asarray(rows)
        return add(state, batch(state.blocks, rows), rows.shape[0])

    def batch(blocks: tuple[tuple[int, int], ...], rows: Any) -> tuple[Any, ...]:
        blocks = ((blocks[0][0], blocks[-1][1]),) if whole else blocks
        return tuple(_gram(rows[:, a:b]) for a, b in blocks)

    def add(state: Sum, sums: tuple[Any, ...], count: int) -> Sum:
        added = tuple(total + np.asarray(more, np.float64) for total, more in zip(state.moments, sums, strict=True))
        return Sum(added, state.blocks, state.rows + count)

    def finish(state: Sum) -> Spectrum:
        _check(state)
        vectors, values = [], []
        for moment in state.moments:
            found, basis = np.linalg.eigh(moment / state.rows)
            found = np.maximum(found, 0.0)  # rounding below zero; the matrix is a sum of squares
            vectors.append(basis)
            values.append(found)
        made = Spectrum(tuple(vectors), tuple(values), (0.0,) * len(values))
        return made if damping is None else damped(made, damping)

    def solve(inverse: Spectrum, rows: Any, power: float = -1.0) -> Any:
        parts, start = [], 0
        for operator in _operators(inverse, power):
            stop = start + len(operator)
            parts.append(_product(rows[:, start:stop], operator))
            start = stop
        return jnp.concatenate(parts, 1)

    name = f"projected({'damping by halves' if damping is None else f'{damping=}'}{', whole' if whole else ''})"
    again = lambda value: projected(value, source, whole)  # noqa: E731
    return Curvature(name, init, update, batch, add, finish, solve, source, damping, again)


_KEPT: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # operators of the spectra that are alive


def _operators(inverse: Spectrum, power: float) -> tuple[Any, ...]:
    """`(H + lambda)^power` of every block, float32; made once a spectrum, as a pass over an index asks for them with
    each of its shards.

    Raises:
        UsageError: it has no damping.
    """
    if not all(added > 0 for added in inverse.damping):
        raise UsageError(
            "the damping of the curvature was left open, and without one its inverse is mostly noise: give "
            "projected(damping=0.1), or damp what it finished with `curvature.damped(spectrum, 0.1)`"
        )
    key = (*map(id, inverse.vectors), *map(id, inverse.values), inverse.damping, power)
    if key not in _KEPT:
        whole = zip(inverse.vectors, inverse.values, inverse.damping, strict=True)
        made = [(basis * (found + added) ** power) @ basis.T for basis, found, added in whole]
        with jax.ensure_compile_time_eval():  # arrays, inside of a program too
            _KEPT[key] = tuple(jnp.asarray(operator, jnp.float32) for operator in made)
        for its in (*inverse.vectors, *inverse.values):  # an id may be given again to what comes after
            weakref.finalize(its, _KEPT.pop, key, None)
    return _KEPT[key]


def damped(made: Spectrum, value: float) -> Spectrum:
    """With `value` times the mean eigenvalue of each block added to it."""
    # a block without any gradient has mean 0: there the solve is the identity, and its rows are zero
    return made._replace(damping=tuple(value * (float(found.mean()) or 1.0) for found in made.values))


def agreement(halves: tuple[Sum, Sum], rows: Any, queries: Any) -> Callable[[float], float]:
    """`damping -> correlation` between the halves' scores `q^T H^-1 r` of rows `[B, D]` and queries `[Q, D]`; solved
    anew for each damping, which is cheaper than eigenvectors of either half.

    Raises:
        NonFiniteError: a moment is NaN or infinite.
    """
    rows, queries = (np.asarray(x, np.float64) for x in (rows, queries))
    for half in halves:
        _check(half)

    def scores(half: Sum, value: float) -> np.ndarray:
        total = np.zeros((len(rows), len(queries)))
        for moment, (a, b) in zip(half.moments, half.blocks, strict=True):
            matrix = moment / half.rows
            matrix[np.diag_indices_from(matrix)] += value * (float(np.trace(matrix)) / (b - a) or 1.0)
            total += rows[:, a:b] @ np.linalg.solve(matrix, queries[:, a:b].T)
        return total

    return lambda value: rule.correlation(*(scores(half, value) for half in halves))


def _check(state: Sum) -> None:
    if not state.rows:
        raise NonFiniteError("a curvature of no rows was asked for; run `update` on the training rows first")
    for moment, block in zip(state.moments, state.blocks, strict=True):
        if not np.isfinite(moment).all():
            raise NonFiniteError(f"the curvature of columns {block} is not finite; check the rows for NaN")


@jax.jit
def _gram(rows):
    return jnp.einsum("nd,ne->de", rows, rows, precision="highest", preferred_element_type=jnp.float32)


@jax.jit
def _product(rows, operator):
    return jnp.einsum("nd,de->ne", rows, operator, precision="highest", preferred_element_type=jnp.float32)
