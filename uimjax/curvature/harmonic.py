"""DataInf: the mean of inverses for the inverse of the mean (Kwon et al. 2024, arXiv 2310.00902).

With g_i the gradients of N training rows in one parameter, of `size` numbers,

    (lambda I + (1/N) sum_i g_i g_i^T)^-1 v  ~  (1/N) sum_i (lambda I + g_i g_i^T)^-1 v
                                             =  (1/lambda) (v - (1/N) sum_i g_i <g_i, v> / (lambda + |g_i|^2))

by Sherman-Morrison, and `lambda = damping x mean_i |g_i|^2 / size`: so many times the mean eigenvalue of the block. Two
passes over the rows, one for lambda and one for the sum, and no matrix. What the exchange costs grows with the block:
the paper's case is LoRA's small matrices (`Task(include=("*lora*",))`).

*Guarantees*: sums over rows (an example is a row, also where several documents are packed in it), so batches may be
split, ordered and padded in any way. A gradient of rank one is never formed; the others are, `CHUNK_BYTES` at a time.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature import products
from uimjax.errors import NonFiniteError, UsageError
from uimjax.factors import leaf_norms
from uimjax.rows import Batch
from uimjax.taps import Dense, Factor, Leaf, Sites, capture, expand, form, from_matrices, pair, to_matrices

CHUNK_BYTES = 32 << 20  # of gradients formed at once


@dataclass(frozen=True)
class Harmonic:
    """A choice: `damping` times the mean eigenvalue of each parameter is its lambda."""

    damping: float = 0.1

    def __post_init__(self):
        if not self.damping > 0:
            raise UsageError(f"damping {self.damping} should be above 0: single gradients have rank one")

    def __str__(self) -> str:
        return "datainf"


def solve(
    found: Sites,
    params: Any,
    batches: Callable[[], Iterable[Batch]],
    gradients: dict[str, Any],
    damping: float,
) -> dict[str, Any]:
    """x for Q gradients `{path: [Q, *parameter shape]}`, block by block; `batches()` gives the training rows, once for
    each of two passes. What the loss does not use is left out.

    Raises:
        UsageError: damping of 0 or less. UnknownNameError, ShapeError: gradients that do not fit the parameters.
        NonFiniteError: there are no rows, or a gradient of them or of the queries is NaN or infinite.
    """
    if not damping > 0:
        raise UsageError(f"damping {damping} should be above 0: single gradients have rank one")
    v, dtype = _matrices(found)(products.directions(found, gradients)), products.dtype_of(found)
    zeros = {leaf.path: jnp.zeros((), dtype) for leaf in found.used}
    squares, count = _added(_norms(found), zeros, params, batches)
    mean = {leaf.path: float(squares[leaf.path]) / (count * leaf.size) for leaf in found.used}
    # a block without any gradient: any lambda does, for every score of it is zero
    floor = {path: np.asarray(damping * (value or 1.0), dtype) for path, value in mean.items()}
    added, _ = _added(_weighted(found), jax.tree.map(jnp.zeros_like, v), params, batches, v, floor)
    return _solved(found)(v, added, np.asarray(count, dtype), floor)


def _added(program: Any, total: Any, params: Any, batches: Callable[[], Iterable[Batch]], *known: Any) -> Any:
    """(a program's sums over all batches, how many rows they had)."""
    count = 0
    for batch in batches():
        total = program(total, params, batch.rows, batch.mask, *known)
        count += int(np.sum(batch.mask))
    if not count:
        raise NonFiniteError("the curvature of no rows was asked for")
    for path, value in total.items():
        if not np.isfinite(np.asarray(value)).all():
            raise NonFiniteError(
                f"the sums over gradients of {path} are not finite: a gradient overflows or is NaN. Look for the row "
                "with `uj.gradient_norms`."
            )
    return total, count


@functools.lru_cache(maxsize=32)
def _matrices(found: Sites):
    """Compiled: `{path: [Q, *parameter shape]}` to `{path: [Q, n, I, O]}`."""
    return jax.jit(lambda v: {leaf.path: to_matrices(v[leaf.path], leaf.layout) for leaf in found.used})


@functools.lru_cache(maxsize=32)
def _solved(found: Sites):
    """Compiled: `(v - added / N) / lambda`, `{path: [Q, *parameter shape]}`."""

    def program(v: Any, added: Any, count: Any, floor: Any) -> Any:
        x = {path: (v[path] - added[path] / count) / floor[path] for path in v}
        return {leaf.path: from_matrices(x[leaf.path], leaf.shape, leaf.layout) for leaf in found.used}

    return jax.jit(program)


@functools.lru_cache(maxsize=32)
def _norms(found: Sites):
    """Compiled `(total, params, rows, mask) -> total`, of squared norms by parameter."""

    def program(total: Any, params: Any, rows: Any, mask: Any) -> Any:
        norms = leaf_norms(found, capture(found, params, rows)[1])
        return {path: value + jnp.where(mask, norms[path], 0).sum() for path, value in total.items()}

    return jax.jit(program, donate_argnums=(0,))


@functools.lru_cache(maxsize=32)
def _weighted(found: Sites):
    """Compiled `(total, params, rows, mask, v, lambda) -> total`, of `sum_b g_b <g_b, v> / (lambda + |g_b|^2)`
    `{path: [Q, n, I, O]}`."""

    def program(total: Any, params: Any, rows: Any, mask: Any, v: Any, floor: Any) -> Any:
        factors = capture(found, params, rows)[1]
        each = {
            leaf.path: _block(leaf, factors[leaf.path], mask, v[leaf.path], floor[leaf.path]) for leaf in found.used
        }
        return {path: value + each[path] for path, value in total.items()}

    return jax.jit(program, donate_argnums=(0,))


def _block(leaf: Leaf, uses: tuple[Factor, ...], mask: Any, v: Any, floor: Any) -> Any:
    uses = tuple(expand(use) for use in uses)
    only, whole = uses[0], all(where is None for _, where in pair(leaf, uses))
    if len(uses) == 1 and isinstance(only, Dense) and only.g.shape[2] == 1 and whole:  # of rank one, a_b (x) c_b
        a, c = (x[:, :, 0].astype(v.dtype) for x in (only.a, only.g))
        inner = jnp.einsum("bni,qnio,bno->bq", a, v, c)
        square = (jnp.square(a).sum(2) * jnp.square(c).sum(2)).sum(1)
        return jnp.einsum("bq,bni,bno->qnio", _weights(inner, square, mask, floor), a, c)
    size = uses[0].examples
    chunk = max(1, min(size, CHUNK_BYTES // (4 * leaf.size)))

    def cut(x: Any) -> Any:  # examples beyond the last are zeros, and masked
        padded = jnp.pad(x, [(0, -size % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    def step(total: Any, part: Any) -> tuple[Any, None]:
        some, real = part
        g = to_matrices(form(leaf, some), leaf.layout).astype(v.dtype)
        square = jnp.square(g).reshape(chunk, -1).sum(1)
        w = _weights(jnp.einsum("bnio,qnio->bq", g, v), square, real, floor)
        return total + jnp.einsum("bq,bnio->qnio", w, g), None

    return jax.lax.scan(step, jnp.zeros_like(v), jax.tree.map(cut, (uses, mask)))[0]


def _weights(inner: Any, square: Any, mask: Any, floor: Any) -> Any:
    """`<g_b, v_q> / (lambda + |g_b|^2)` `[B, Q]`, 0 on padding."""
    return jnp.where(mask[:, None], inner / (floor + square)[:, None], 0)
