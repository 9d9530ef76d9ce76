"""Inverse curvature applied through products with it: `x = (H + damping I)^-1 v`, H the loss's own Hessian or
Gauss-Newton matrix over all parameters at once (`products`), never formed but in "dense".

- "cg": conjugate gradients (Hestenes & Stiefel 1952), to a relative residual `tolerance` or `iterations` products.
- "lissa": `x_{k+1} = v + (I - (H + damping) / scale) x_k`, then `x / scale`, the Neumann series of the inverse
  (Agarwal et al. 2017, arXiv 1602.03943; Koh & Liang 2017, arXiv 1703.04730), over all rows or a fresh draw of
  `minibatch` of them each step. It converges where `0 < eigenvalues of H + damping < 2 scale`.
- "arnoldi": `x = sum_k u_k <u_k, v> / (lambda_k + damping)` over the `rank` largest eigenpairs that `iterations` steps
  of Lanczos with full reorthogonalisation find (Schioppa et al. 2022, arXiv 2112.03052); what lies outside counts for
  nothing. By matfree, an extra: `pip install 'uimjax[solve]'`.
- "dense": H formed, its eigenvalues in float64 on the host: exact, for at most `products.DENSE` parameters. The oracle
  of the rest.

*Guarantees*: the batch size, padding and the order of rows change nothing but rounding (a draw of minibatches follows
the seed and the order). An indefinite `H + damping I` has no inverse that ranks anything: "dense" refuses it, "cg"
where its search meets a direction of negative curvature, "lissa" where its iterate has begun to grow; "arnoldi" drops
negative eigenvalues and says how many.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from uimjax import rows as row
from uimjax.curvature import lanczos, products
from uimjax.curvature.products import Direction, Matrix, Stack, dot, norm, plus, scaled
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.taps import Sites
from uimjax.task import Task

KINDS = ("cg", "lissa", "arnoldi", "dense")
MARGIN, MARGIN_DRAWN = 1.1, 2.0  # of LiSSA's scale over the largest eigenvalue: of all rows; of a minibatch it varies


@dataclass(frozen=True)
class Operator:
    """A choice. `damping` times the mean eigenvalue is added to H (None: by the caller's rule); `iterations`: products
    that a solve may take ("cg", "lissa") or Lanczos steps ("arnoldi"). For "cg" `tolerance`; for "arnoldi" `rank`; for
    "lissa" `scale` (None: from the largest eigenvalue), and `minibatch` rows a step (None: all) drawn from `seed`.

    Raises:
        UnknownNameError: no such kind or matrix. UsageError: a number out of its range.
    """

    kind: Literal["cg", "lissa", "arnoldi", "dense"] = "cg"
    matrix: Literal["hessian", "ggn"] = "ggn"
    damping: float | None = None
    iterations: int = 100
    tolerance: float = 1e-5
    rank: int = 32
    scale: float | None = None
    minibatch: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UnknownNameError("operator curvature", self.kind, KINDS)
        if self.matrix not in products.MATRICES:
            raise UnknownNameError("matrix of an operator curvature", self.matrix, products.MATRICES)
        for name in ("damping", "scale", "tolerance"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and np.isfinite(value)):
                raise UsageError(f"{name} {value} should be a finite number above 0")
        for name in ("iterations", "rank", "minibatch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} should be at least 1")
        if self.kind == "arnoldi" and self.rank > self.iterations:
            raise UsageError(
                f"rank {self.rank} eigenpairs cannot come from {self.iterations} Lanczos steps: take iterations of at "
                "least the rank, better twice as many"
            )

    def __str__(self) -> str:
        return f"{self.kind}({self.matrix})"


class Precondition(NamedTuple):
    """`apply(state, v)` of one direction is about `(H + damping)^-1 v`, symmetric and positive definite: "cg" then
    takes fewer products for the same answer."""

    apply: Callable[[Any, Direction], Direction]
    state: Any


PLAIN = Precondition(lambda _, v: v, ())


def solve(
    choice: Operator,
    found: Sites,
    task: Task,
    params: Any,
    data: Any,
    gradients: dict[str, Any],
    how: row.Pass,
    damping_value: float,
    precondition: Precondition = PLAIN,
) -> tuple[Direction, dict[str, Any]]:
    """`(H + damping_value I)^-1 v` for the Q gradients v `{path: [Q, *parameter shape]}`, over the parameters that the
    loss uses, and what is known of it; `damping_value` is absolute.

    The info says, besides the choice and damping: `residual` `[Q]`, `|(H + damping) x - v| / |v|`, of "cg" and
    "lissa" (an unconverged solve is returned: look at it); the `scale` of "lissa"; `negative`, how many eigenvalues
    are, of "arnoldi" and "dense"; of "arnoldi" its `eigenvalues`, their `error` and the share `captured` `[Q]` of
    `|v|^2` that lies in their span; the `smallest` and `largest` eigenvalue of "dense".

    Raises:
        NonFiniteError: H + damping is not positive definite, "lissa" diverges, or a number is not finite.
        BudgetError: "dense" for too many parameters. UsageError, ShapeError, MismatchError, UnknownNameError: the task
        lacks what the matrix is made of (`products.matrix`), or the gradients do not fit.
    """
    if not (damping_value >= 0 and np.isfinite(damping_value)):
        raise UsageError(f"damping_value {damping_value} should be a finite number, 0 or more")
    h = products.matrix(choice.matrix, found, task, params, data, how)
    v, size = _of_unit_size(products.directions(found, gradients))
    if precondition is not PLAIN and choice.kind != "cg":
        raise UsageError(f"{choice.kind} takes no preconditioner; cg does")
    kinds = {"cg": functools.partial(_cg, precondition), "lissa": _lissa, "arnoldi": _arnoldi, "dense": _dense}
    x, info = kinds[choice.kind](choice, h, v, float(damping_value))
    x = _scaled(x, size)
    row.check_finite(x, f"the solution of {choice}")
    return x, {"curvature": str(choice), "damping": float(damping_value), **info}


def mean_eigenvalue(choice: Operator, found: Sites, task: Task, params: Any, data: Any, how: row.Pass) -> float:
    """`trace(H) / P`: exact for "dense", else by products with random signs (`products.trace`), the same ones each
    time. May be negative for a Hessian.

    Raises: as `products.matrix`, and NonFiniteError; BudgetError for "dense" of too many parameters.
    """
    h = products.matrix(choice.matrix, found, task, params, data, how)
    total = float(np.trace(products.formed(h))) if choice.kind == "dense" else products.trace(h)
    if not np.isfinite(total):
        raise products.not_finite(h)
    return total / h.size


def _indefinite(h: Matrix, damping: float, where: str, smallest: float | None = None) -> NonFiniteError:
    """The error that says so, with the cure; or that of products that are not finite."""
    if smallest is None:
        largest, smallest = products.extremes(h)
        if not (np.isfinite(largest) and np.isfinite(smallest)):
            return products.not_finite(h)
    more = f"damping above {-smallest:.3g} (absolute)" if smallest + damping <= 0 else "more damping"
    if h.kind == "hessian":
        cure = f"Take matrix='ggn', which has no negative eigenvalue where nll is convex in the outputs, or {more}."
    else:
        cure = f"Take {more}: where nll is convex in the outputs this is rounding in {h.dtype}."
    return NonFiniteError(
        f"the {h.kind} plus damping {damping:.3g} is not positive definite: v^T (H + damping) v <= 0 for a direction "
        f"{where} (smallest eigenvalue found: {smallest:.3g}). There is no inverse to score with. {cure}"
    )


_scaled = jax.jit(scaled)


@jax.jit
def _of_unit_size(v: Direction) -> tuple[Direction, Any]:
    """(v, its largest number `[Q]` taken out): the squares of tiny gradients would underflow inside the solvers."""
    size = jnp.stack([jnp.abs(x).reshape(x.shape[0], -1).max(1) for x in v.values()]).max(0)
    size = jnp.where(size > 0, size, 1)
    return scaled(v, 1 / size), size


def _share(x: Any, y: Any) -> Any:
    """`x / y`, 0 where y is 0: nothing was asked there."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


@jax.jit
def _residual(v: Direction, x: Direction, made: Direction, damping: Any) -> tuple[Direction, Any]:
    """(`r = v - (H + damping) x` of each query, `|r| / |v|` `[Q]`) from `made = H x`."""
    r = plus(plus(v, made, -1), x, -damping)
    return r, _share(jax.vmap(norm)(r), jax.vmap(norm)(v))


# ---------------------------------------------------------------- conjugate gradients


def _cg(
    near: Precondition, choice: Operator, h: Matrix, v: Direction, damping: float
) -> tuple[Direction, dict[str, Any]]:
    known = h.params, h.batches, *(jnp.asarray(x, h.dtype) for x in (damping, choice.tolerance)), choice.iterations
    program = functools.partial(_cg_program(*h.program, near.apply), near.state, *known)
    x = products.in_chunks(h, program, v)
    residual = np.asarray(_residual(v, x, products.times(h, x), known[2])[1])
    if not np.isfinite(residual).all():
        raise _indefinite(h, damping, f"met while solving for query {np.argmin(np.isfinite(residual))}")
    return x, {"residual": residual}


@functools.lru_cache(maxsize=32)
def _cg_program(kind: str, found: Sites, task: Task, near: Callable[[Any, Direction], Direction]):
    """Compiled `(state of near, params, stack, damping, tolerance, iterations, v [Q]) -> x [Q]`; NaN where a direction
    of no positive curvature was met: there the search has no minimum, and any number would look like an answer."""
    apply = products.product(kind, found, task)

    def one(
        state: Any, params: Any, batches: Stack, damping: Any, tolerance: Any, most: Any, v: Direction
    ) -> Direction:
        def guarded(p: Direction) -> Direction:
            made = plus(apply(params, batches, p), p, damping)
            lost = (dot(p, made) <= 0) & (dot(p, p) > 0)
            return {path: jnp.where(lost, jnp.nan, y) for path, y in made.items()}

        # From zeros that the compiler does not know to be: XLA:CPU makes NaN of some products with a constant that is
        # spread over an axis (of a layer norm's gains here).
        start = scaled(v, jnp.zeros_like(damping))
        return cg(guarded, v, start, tol=tolerance, maxiter=most, M=functools.partial(near, state))[0]

    return jax.jit(jax.vmap(one, (None,) * 6 + (0,)))


# ---------------------------------------------------------------- LiSSA


def _lissa(choice: Operator, h: Matrix, v: Direction, damping: float) -> tuple[Direction, dict[str, Any]]:
    scale = choice.scale
    if scale is None:
        largest = products.largest_in_size(h)
        if largest + damping <= 0:
            raise _indefinite(h, damping, "found by power iteration")
        scale = (MARGIN if choice.minibatch is None else MARGIN_DRAWN) * (abs(largest) + damping)
    numbers = tuple(jnp.asarray(x, h.dtype) for x in (damping, scale))
    program = _lissa_program(*h.program, choice.minibatch)
    known = h.params, h.batches, *numbers, choice.iterations, jax.random.key(choice.seed)
    x = products.in_chunks(h, functools.partial(program, *known), v)
    r, residual = _residual(v, x, products.times(h, x), numbers[0])
    checks = residual, *_expansion(r, products.times(h, r), *numbers)
    residual, growth, curvature = (np.asarray(c) for c in checks)
    fine = np.maximum(residual, growth) <= 1 + 100 * h.rounding  # False for NaN as well
    if not fine.all():
        query = int(np.argmin(fine))
        raise _diverged(choice, h, damping, scale, query, residual[query], curvature[query])
    return x, {"residual": residual, "scale": scale}


@functools.lru_cache(maxsize=32)
def _lissa_program(kind: str, found: Sites, task: Task, minibatch: int | None):
    """Compiled `(params, stack, damping, scale, iterations, key, v [Q]) -> x [Q]`."""
    apply, summed = products.product(kind, found, task), products.sum_of(kind, found, task)

    def drawn(params: Any, batches: Stack, key: Any, x: Direction) -> Direction:
        if minibatch is None:
            return apply(params, batches, x)
        count, width = batches.mask.sum(), batches.mask.shape[1]
        ids = jax.random.randint(key, (minibatch,), 0, count)
        rows = jax.tree.map(lambda leaf: leaf[ids // width, ids % width], batches.rows)
        return {path: y / minibatch for path, y in summed(params, rows, jnp.ones(minibatch, bool), x).items()}

    def one(
        params: Any, batches: Stack, damping: Any, scale: Any, iterations: Any, key: Any, v: Direction
    ) -> Direction:
        def step(k: Any, x: Direction) -> Direction:
            made = plus(drawn(params, batches, jax.random.fold_in(key, k), x), x, damping)
            return plus(plus(v, x, 1), made, -1 / scale)

        return {path: x / scale for path, x in jax.lax.fori_loop(0, iterations, step, v).items()}

    return jax.jit(jax.vmap(one, (None,) * 6 + (0,)))


@jax.jit
def _expansion(r: Direction, made: Direction, damping: Any, scale: Any) -> tuple[Any, Any]:
    """(`|M r| / |r|` with `M = I - (H + damping) / scale`, `r^T (H + damping) r`) `[Q]` from `made = H r`. The residual
    after k steps over all rows is `M^k v`, so it shows by now what M expands; nothing where every eigenvalue is in
    range."""
    made = plus(made, r, damping)
    growth = _share(jax.vmap(norm)(plus(r, made, -1 / scale)), jax.vmap(norm)(r))
    return growth, jax.vmap(dot)(r, made)


def _diverged(
    choice: Operator, h: Matrix, damping: float, scale: float, query: int, residual: Any, curvature: Any
) -> NonFiniteError:
    largest, smallest = products.extremes(h)
    if not (np.isfinite(largest) and np.isfinite(smallest)):
        return products.not_finite(h)
    if curvature <= 0 or smallest + damping <= -h.rounding * largest:
        return _indefinite(h, damping, f"met while solving for query {query}")
    what = f"LiSSA diverges on query {query} (relative residual {residual:.3g}, scale {scale:.3g})"
    if choice.minibatch is None or scale <= (largest + damping) / 2:
        return NonFiniteError(
            f"{what}: the largest eigenvalue of the {h.kind} plus damping is about {largest + damping:.3g}, and the "
            f"scale must be above half of it. Leave the scale out, or take {MARGIN * (largest + damping):.3g} or more."
        )
    return NonFiniteError(
        f"{what}, although the scale fits the mean over all rows: a minibatch of {choice.minibatch} rows has larger "
        f"eigenvalues. Take a larger minibatch, a scale of {2 * scale:.3g} or more, or all rows (minibatch=None)."
    )


# ---------------------------------------------------------------- Arnoldi


def _arnoldi(choice: Operator, h: Matrix, v: Direction, damping: float) -> tuple[Direction, dict[str, Any]]:
    pairs = lanczos.eigenpairs(h, choice.rank, choice.iterations)
    x, captured = lanczos.divided(pairs.vectors, jnp.asarray(pairs.values + damping, h.dtype), v)
    info = {"eigenvalues": pairs.values, "negative": pairs.negative, "error": pairs.error}
    return x, info | {"captured": np.asarray(captured)}


# ---------------------------------------------------------------- dense


def _dense(_: Operator, h: Matrix, v: Direction, damping: float) -> tuple[Direction, dict[str, Any]]:
    values, basis = np.linalg.eigh(products.formed(h))
    largest = float(np.abs(values).max())
    if values[0] + damping <= len(values) * np.finfo(np.float64).eps * largest:
        raise _indefinite(h, damping, "by its eigenvalues", float(values[0]))
    found = ((products.flat(h, v) @ basis) / (values + damping)[None]) @ basis.T
    negative = int((values < -10 * h.rounding * largest).sum())
    info = {"negative": negative, "smallest": float(values[0]), "largest": float(values[-1])}
    return products.split(h, found), info
