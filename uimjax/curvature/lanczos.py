"""The largest eigenpairs of a matrix by products with it: Lanczos with full reorthogonalisation, by matfree (an extra),
and the inverse on their span (Schioppa et al. 2022, arXiv 2112.03052)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature import products
from uimjax.curvature.products import Direction, Matrix, Stack, dot, norm
from uimjax.errors import NonFiniteError, UsageError
from uimjax.taps import Sites
from uimjax.task import Task


class Pairs(NamedTuple):
    """Positive eigenpairs, the largest first: `values` `[k]` (float64) and orthonormal `vectors` `{path: [k, *shape]}`;
    how many of the eigenvalues found were `negative`, and the largest residual `|H u - lambda u| / lambda_1`."""

    values: np.ndarray
    vectors: Direction
    negative: int
    error: float


def eigenpairs(h: Matrix, rank: int, steps: int) -> Pairs:
    """The `rank` largest eigenpairs of H by so many steps (at most P) from a fixed random start. Of an eigenvalue that
    occurs several times one eigenvector is found; zeros are left out.

    Raises:
        UsageError: matfree is not installed. NonFiniteError: no eigenvalue is positive, or a product is not finite.
    """
    steps = min(steps, h.size)
    basis, diagonal, beside, last = _lanczos(*h.program, steps)(h.params, h.batches, products.start(h))
    diagonal, beside = (np.asarray(x, np.float64) for x in (diagonal, beside))
    if not np.isfinite(diagonal[0]):
        raise products.not_finite(h)
    rounding = 10 * h.rounding
    # A coupling of zero closes the space: what follows is noise, or NaN where it is zero exactly.
    coupled = beside > rounding * np.nanmax(np.abs(np.concatenate([diagonal, beside])))
    kept = steps if coupled.all() else 1 + int(np.argmin(coupled))
    small = np.diag(diagonal[:kept]) + np.diag(beside[: kept - 1], 1) + np.diag(beside[: kept - 1], -1)
    values, inner = np.linalg.eigh(small)
    floor = rounding * np.abs(values).max()
    chosen = [k for k in np.argsort(-values)[:rank] if values[k] > floor]
    if not chosen:
        raise NonFiniteError(
            f"none of the {kept} eigenvalues of the {h.kind} that Lanczos found is positive (the largest is "
            f"{values.max():.3g}): there is nothing to invert. Take matrix='ggn', or check that the model is trained."
        )
    mixing = jnp.asarray(inner[:, chosen].T, h.dtype)
    vectors = _mixed(mixing, basis)
    error = float(last) * np.abs(inner[-1, chosen]).max() / values[chosen[0]] if kept == steps else 0.0
    return Pairs(values[chosen], vectors, int((values < -floor).sum()), float(error))


@jax.jit
def divided(vectors: Direction, values: Any, v: Direction) -> tuple[Direction, Any]:
    """(`sum_k u_k <u_k, v> / value_k`, the share of `|v|^2` in the span of the u_k `[Q]`)."""
    inside = jax.vmap(lambda v: jax.vmap(lambda u: dot(u, v))(vectors))(v)  # [Q, k]
    x = {path: jnp.tensordot(inside / values[None], u, 1) for path, u in vectors.items()}
    whole = jax.vmap(lambda v: dot(v, v))(v)
    return x, jnp.where(whole > 0, jnp.square(inside).sum(1) / jnp.where(whole > 0, whole, 1), 0)


@jax.jit
def _mixed(mixing: Any, basis: Direction) -> Direction:
    """Sums of the first vectors of a basis `{path: [steps, *shape]}`; the others may be noise or NaN."""
    return {path: jnp.tensordot(mixing, q[: mixing.shape[1]], 1) for path, q in basis.items()}


@functools.lru_cache(maxsize=32)
def _lanczos(kind: str, found: Sites, task: Task, steps: int):
    """Compiled `(params, stack, start) -> (basis {path: [steps, *shape]}, diagonal [steps], beside [steps - 1], the
    last coupling)` of the tridiagonal matrix."""
    try:
        from matfree import decomp  # an extra, and only this kind needs it
    except ImportError as error:
        raise UsageError(
            "the arnoldi curvature needs matfree, which is not installed: pip install 'uimjax[solve]'. The others need "
            "nothing more; take Operator('cg')."
        ) from error
    apply = products.product(kind, found, task)
    decompose = decomp.tridiag_sym(steps, materialize=False, reortho="full", custom_vjp=False)

    def program(params: Any, batches: Stack, start: Direction) -> tuple[Any, ...]:
        result = decompose(lambda v: apply(params, batches, v), start)
        last: Any = result.residual  # a direction, as all that matfree returns here
        return result.Q_tall, *result.J_small, norm(last)

    return jax.jit(program)
