"""The spectrum of the Hessian, or of the Gauss-Newton matrix, of the mean loss over rows, by products with it alone.

Stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017, doi 10.1137/16M1104974; for networks Ghorbani et al. 2019,
arXiv 1901.10159): from a random start z, k steps of Lanczos give a tridiagonal matrix whose eigenvalues theta_j (Ritz
values) and squared first components w_j of its eigenvectors are a quadrature,

    sum_j w_j f(theta_j) = z' f(H) z / |z|^2,

exact for polynomials f of degree up to 2k - 1; its mean over starts is an estimate of `tr f(H) / P`. The basis is
orthogonalised in full at each step, so no eigenvalue is found twice; matfree (an extra) does this. Eigenvalues are in
nats by squared unit of the parameters.

*Guarantees*: a sum over rows, so batch size and order of rows change nothing but rounding; the same seed gives the same
starts. Memory is that of one batch's derivatives and of `steps` directions (`steps * P` numbers).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.convolutions import fast
from uimjax.curvature import products
from uimjax.curvature.products import Direction, Matrix, Stack
from uimjax.errors import NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.progress import Progress, quiet
from uimjax.taps import Sites, sites
from uimjax.task import Task

PROBES = ("rademacher", "normal")
EVERY = row.Pass()
ZERO = 1e-5  # of the largest eigenvalue in size: what lies nearer to 0 in single precision has no sign


class Quadrature(NamedTuple):
    """What m starts of k steps tell of H `[P, P]`, float64.

    `nodes` `[m, k]`: the Ritz values of each start in rising order; `weights` `[m, k]`: they sum to 1 for each start;
    `errors` `[m, k]`: an eigenvalue of H lies about within that of the node; `steps` `[m]`: how many nodes there are.
    If the space of a start closed before k, the rest have weight 0 and repeat the last. `size` is P; `trace` is the
    estimate of tr H, `trace_error` its standard error over the starts.
    """

    nodes: np.ndarray
    weights: np.ndarray
    errors: np.ndarray
    steps: np.ndarray
    size: int
    trace: float
    trace_error: float


def hessian_spectrum(
    task: Task,
    params: Any,
    data: Any,
    matrix: str = "hessian",
    probes: int = 10,
    steps: int = 80,
    probe: str = "rademacher",
    seed: int = products.SEED,
    how: row.Pass = EVERY,
    progress: Progress = quiet,
) -> Quadrature:
    """The quadrature of H, the `matrix` ("hessian" or "ggn") of the task's mean loss over the data at the params, from
    `probes` random starts of at most `steps` products each.

    Starts of random signs ("rademacher") give the trace its smallest variance, `2 sum_{i != j} H_ij^2` a start; of a
    matrix of few parameters a sign vector may miss an eigenvector altogether, and "normal" does not.

    Raises:
        UsageError: matfree is not installed, fewer than 2 probes or 1 step, or a task of packed rows or, for "ggn", one
            without outputs. UnknownNameError: no such matrix or probe. NonFiniteError: products that are not finite.
    """
    if probe not in PROBES:
        raise UnknownNameError("probe", probe, PROBES)
    if probes < 2 or steps < 1:
        raise UsageError(
            f"probes={probes} and steps={steps}; at least 2 and 1 were wanted: a standard error is taken over probes"
        )
    h = _matrix(task, params, data, matrix, how)
    rng = np.random.default_rng(seed)
    draw = {"rademacher": lambda: rng.choice([-1.0, 1.0], h.size), "normal": lambda: rng.normal(size=h.size)}[probe]
    turns = progress(range(probes), f"products with the {matrix}", unit="starts")
    return _gathered(h, [_ritz(h, _direction(h, draw()), steps) for _ in turns])


def density(quadrature: Quadrature, grid: np.ndarray, sigma: float) -> np.ndarray:
    """The spectral density at the points of a grid `[G]`, `sum_j w_j N(grid; theta_j, sigma^2)` averaged over starts.
    It integrates to 1.

    Raises:
        ShapeError: the grid is not `[G]`. UsageError: sigma is not above 0.
    """
    return densities(quadrature, grid, sigma).mean(0)


def densities(quadrature: Quadrature, grid: np.ndarray, sigma: float) -> np.ndarray:
    """`[m, G]`, the density that each start gives alone: their spread says how well `density`, their mean, is known.
    Raises as `density`."""
    grid = np.asarray(grid, np.float64)
    if grid.ndim != 1:
        raise ShapeError(f"a grid of shape {list(grid.shape)}; points [G] were wanted")
    if not sigma > 0:
        raise UsageError(f"sigma={sigma}; a width above 0 was wanted, as a hundredth of the spectrum's")
    each = [
        np.exp(-0.5 * np.square((grid[:, None] - nodes) / sigma)) @ weights
        for nodes, weights in zip(quadrature.nodes, quadrature.weights, strict=True)
    ]
    return np.stack(each) / (sigma * np.sqrt(2 * np.pi))


class Negative(NamedTuple):
    """How much of a spectrum is negative, each with its standard error over the starts: the `share` of the eigenvalues
    below 0, and their share `mass` of the sum of all sizes, `sum of |l| over l < 0 / sum of |l|`."""

    share: float
    share_error: float
    mass: float
    mass_error: float


def negative(quadrature: Quadrature) -> Negative:
    """What lies below 0 by more than 1e-5 of the largest eigenvalue in size. The `mass` is the steadier of the two: a
    bulk of eigenvalues about 0 has nearly none of it, and in the `share` it counts on one side or the other. Of a
    matrix of zeros both are 0. The error of `mass`, a ratio of means, is the jackknife's."""
    nodes, weights = quadrature.nodes, quadrature.weights
    below = nodes < -ZERO * np.abs(nodes).max()
    count = len(nodes)
    shares, sizes = (weights * below).sum(1), weights * np.abs(nodes)
    parts, wholes = (sizes * below).sum(1), sizes.sum(1)
    if not wholes.any():
        return Negative(0.0, 0.0, 0.0, 0.0)
    without = (parts.sum() - parts) / np.maximum(wholes.sum() - wholes, np.finfo(np.float64).tiny)
    return Negative(
        share=float(shares.mean()),
        share_error=float(shares.std(ddof=1) / np.sqrt(count)),
        mass=float(parts.sum() / wholes.sum()),
        mass_error=float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())),
    )


class Extremes(NamedTuple):
    """`top` `[k]`, the largest eigenvalues, the largest first, and `bottom` `[k]`, the smallest, the smallest first; an
    eigenvalue of H lies within `top_error` and `bottom_error` `[k]` of each."""

    top: np.ndarray
    bottom: np.ndarray
    top_error: np.ndarray
    bottom_error: np.ndarray


def extremes(quadrature: Quadrature, k: int) -> Extremes:
    """The k outermost eigenvalues at both ends, each from the start that came nearest. *Guarantee* (Cauchy's
    interlacing): up to rounding no top value is above the eigenvalue of its rank, no bottom value below. Of an
    eigenvalue that occurs several times one is found.

    Raises:
        UsageError: k below 1, or more than the nodes of every start.
    """
    most = int(quadrature.steps.max())
    if not 1 <= k <= most:
        raise UsageError(f"k={k} eigenvalues of {most} that were found; 1 to {most} were wanted. Take more steps.")
    real = np.arange(quadrature.nodes.shape[1]) < quadrature.steps[:, None]

    def outermost(sign: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(np.where(real, -sign * quadrature.nodes, np.inf), 1)[:, :k]
        nodes, errors, found = (np.take_along_axis(x, order, 1) for x in (quadrature.nodes, quadrature.errors, real))
        best = np.where(found, sign * nodes, -np.inf).argmax(0)
        return nodes[best, np.arange(k)], errors[best, np.arange(k)]

    (top, top_error), (bottom, bottom_error) = outermost(1), outermost(-1)
    return Extremes(top, bottom, top_error, bottom_error)


class Sharpness(NamedTuple):
    """At the params: the `largest` eigenvalue of H (one lies within `error` of it); the mean `loss` (nats), the norm of
    its gradient, and its `rise` one step uphill (nats)."""

    largest: float
    error: float
    loss: float
    gradient_norm: float
    rise: float


def sharpness(
    task: Task,
    params: Any,
    data: Any,
    rho: float = 0.05,
    matrix: str = "hessian",
    steps: int = 40,
    how: row.Pass = EVERY,
    quadrature: Quadrature | None = None,
) -> Sharpness:
    """How sharp the minimum is: the largest eigenvalue of H (`matrix` "hessian" or "ggn") by `steps` of Lanczos from a
    fixed start, and the rise `L(theta + rho g / |g|) - L(theta)` of the mean loss L with gradient g, to first order the
    largest within the distance rho (Foret et al. 2021, arXiv 2010.01412). Parameters that the task leaves out stay.
    Of a `quadrature` that is there already, of the same matrix, the eigenvalue is taken.

    Raises:
        UsageError: `rho` is not above 0. NonFiniteError: the gradient is zero, so no direction goes uphill, or not
        finite. As `hessian_spectrum`.
    """
    if not rho > 0 or steps < 1:
        raise UsageError(f"rho={rho} and steps={steps}; a distance above 0 and at least 1 step were wanted")
    h = _matrix(task, params, data, matrix, how)
    loss, norm, raised = (float(x) for x in _uphill(h.found, task)(params, h.batches, rho))
    if not (np.isfinite([loss, raised]).all() and norm > 0):
        raise NonFiniteError(
            f"the mean loss is {loss}, its gradient's norm {norm} and the loss uphill {raised}: no rise can be told. "
            "At an exact minimum take hessian_spectrum; where one is NaN, find the row with jax.grad on single rows."
        )
    if quadrature is not None:
        top = extremes(quadrature, 1)
        return Sharpness(float(top.top[0]), float(top.top_error[0]), loss, norm, raised - loss)
    nodes, _, errors = _ritz(h, products.start(h), steps)
    error = max(errors[-1], _rounding(h, nodes))
    return Sharpness(float(nodes[-1]), float(error), loss, norm, raised - loss)


def _matrix(task: Task, params: Any, data: Any, kind: str, how: row.Pass) -> Matrix:
    row.check_finite(params, "params")
    found = sites(task, params, row.example_spec(data))
    return products.matrix(kind, found, task, params, data, how)


def need_matfree() -> Any:
    """Its module of decompositions. Raises UsageError where it is not installed: it is an extra, and only this needs
    it."""
    try:
        from matfree import decomp
    except ImportError as error:
        raise UsageError(
            "the spectrum of the Hessian needs matfree, which is not installed: pip install 'uimjax[solve]'"
        ) from error
    return decomp


def _direction(h: Matrix, numbers: np.ndarray) -> Direction:
    return {path: x[0] for path, x in products.split(h, numbers[None]).items()}


def _ritz(h: Matrix, start: Direction, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Ritz values in rising order, weights, errors) of one start; fewer than `steps` where its space closes before."""
    steps = min(steps, h.size)
    diagonal, beside, last = (
        np.asarray(x, np.float64) for x in _lanczos(*h.program, steps)(h.params, h.batches, start)
    )
    if not np.isfinite(diagonal[0]):
        raise products.not_finite(h)
    # A coupling of zero closes the space: what follows is noise, or NaN where it is zero exactly.
    coupled = beside > 10 * h.rounding * np.nanmax(np.abs(np.concatenate([diagonal, beside])))
    kept = steps if coupled.all() else 1 + int(np.argmin(coupled))
    small = np.diag(diagonal[:kept]) + np.diag(beside[: kept - 1], 1) + np.diag(beside[: kept - 1], -1)
    nodes, vectors = np.linalg.eigh(small)
    errors = last * np.abs(vectors[-1]) if kept == steps else np.zeros(kept)
    return nodes, np.square(vectors[0]), errors


def _rounding(h: Matrix, nodes: np.ndarray) -> float:
    """What products lose, about: no node is known better, however small."""
    return 10 * h.rounding * float(np.abs(nodes).max())


def _gathered(h: Matrix, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Quadrature:
    steps = np.array([len(nodes) for nodes, _, _ in found])

    def stacked(which: int, mode: Any) -> np.ndarray:
        return np.stack([np.pad(each[which], (0, steps.max() - len(each[which])), mode=mode) for each in found])

    nodes = stacked(0, "edge")
    traces = np.array([h.size * (nodes @ weights) for nodes, weights, _ in found])
    return Quadrature(
        nodes=nodes,
        weights=stacked(1, "constant"),
        errors=np.maximum(stacked(2, "constant"), _rounding(h, nodes)),
        steps=steps,
        size=h.size,
        trace=float(traces.mean()),
        trace_error=float(traces.std(ddof=1) / np.sqrt(len(traces))),
    )


@functools.lru_cache(maxsize=32)
def _lanczos(kind: str, found: Sites, task: Task, steps: int):
    """Compiled `(params, stack, start) -> (diagonal [steps], beside [steps - 1], the last coupling)`."""
    decomp = need_matfree()
    apply = products.product(kind, found, task)
    # Arnoldi's steps, which are Lanczos' where the matrix is symmetric: below the diagonal stand lengths, which show a
    # space that closes; matfree's tridiagonal form has means of both sides, and above stands noise then.
    decompose = decomp.hessenberg(steps, reortho="full", custom_vjp=False)

    def program(params: Any, batches: Stack, start: Direction) -> tuple[Any, ...]:
        result = decompose(lambda v: apply(params, batches, v), start)
        last: Any = result.residual  # a direction, as all that matfree returns here
        small: Any = result.J_small
        return jnp.diagonal(small), jnp.diagonal(small, -1), products.norm(last)

    return jax.jit(program)


@functools.lru_cache(maxsize=32)
def _uphill(found: Sites, task: Task):
    """Compiled `(params, stack, rho) -> (mean loss, norm of its gradient, mean loss at rho uphill)`."""
    numbers = [number for leaf, number in zip(found.leaves, found.numbers, strict=True) if leaf.used]

    def program(params: Any, batches: Stack, rho: Any) -> tuple[Any, Any, Any]:
        leaves = jax.tree.leaves(params)

        def loss(moved: list[Any]) -> Any:
            full = list(leaves)
            for number, value in zip(numbers, moved, strict=True):
                full[number] = value
            here = jax.tree.unflatten(found.params_tree, full)

            def step(total: Any, batch: Stack) -> tuple[Any, None]:
                losses = jax.vmap(lambda example: jnp.sum(task.loss(here, example)))(batch.rows)
                return total + jnp.where(batch.mask, losses, 0).sum().astype(total.dtype), None

            total, _ = jax.lax.scan(step, jnp.zeros((), products.dtype_of(found)), batches)
            return total / batches.mask.sum().astype(total.dtype)

        at = [jnp.asarray(leaves[number]) for number in numbers]
        low, gradient = fast(jax.value_and_grad(loss))(at)
        wide = [g.astype(low.dtype) for g in gradient]
        norm = jnp.sqrt(sum((jnp.square(g).sum() for g in wide), jnp.zeros((), low.dtype)))
        high = loss([x + (rho * g / norm).astype(x.dtype) for x, g in zip(at, wide, strict=True)])
        return low, norm, high

    return jax.jit(program)
