"""Products `H v` with the curvature of the training loss, exact and matrix-free, in the space of the parameters.

Over N rows, with z_i the outputs and J_i their derivative in the parameters:

- "hessian": `H = (1/N) sum_i d^2 loss_i`, forward over reverse (Pearlmutter 1994, doi 10.1162/neco.1994.6.1.147);
- "ggn": `H = (1/N) sum_i J_i^T (d^2 nll_i / dz_i^2) J_i`, Gauss-Newton, as three products in a row (Schraudolph 2002,
  doi 10.1162/08997660260028683), whatever the size of the outputs. Where nll is convex in z no eigenvalue is negative.

What products alone can tell stands here as well: the extreme eigenvalues, the trace, and H itself where it is small.

Directions are dicts `{path: [*parameter shape]}` over the parameters that the loss uses and the task attributes; all
others stay constant. *Guarantees*: a sum over rows, so the batch size, padding and the order of rows change nothing but
rounding; memory is that of one batch's derivatives, whatever N, beside the rows themselves.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.convolutions import fast
from uimjax.curvature import source
from uimjax.errors import BudgetError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.mesh import shard_batch
from uimjax.taps import Sites
from uimjax.task import Task

MATRICES = ("ggn", "hessian")
DENSE = 20_000  # parameters up to which H is formed: 3.2 GB in float64
COLUMNS = 128  # of H formed at once
QUERIES, QUERY_BYTES = 32, 64 << 20  # directions held at once, at most: solvers keep a handful of copies of each
POWER_STEPS = 30
PROBES = 32  # of Hutchinson's trace
SEED = 0  # of start vectors and probes
Direction = dict[str, Any]  # {path: [*parameter shape]}
Product = Callable[[Any, "Stack", Direction], Direction]


class Stack(NamedTuple):
    """All rows as a stack of batches: `rows` a pytree of `[K, B, ...]`, `mask` `[K, B]` False on padding, which stands
    at the end."""

    rows: Any
    mask: Any


class Matrix(NamedTuple):
    """H, as what its products are made of; `program` names the compiled ones."""

    kind: str
    found: Sites
    task: Task
    params: Any
    batches: Stack

    @property
    def program(self) -> tuple[str, Sites, Task]:
        return self.kind, self.found, self.task

    @property
    def dtype(self) -> Any:
        return dtype_of(self.found)

    @property
    def rounding(self) -> float:
        return float(jnp.finfo(self.dtype).eps)

    @property
    def size(self) -> int:
        """P, the numbers in a direction."""
        return sum(leaf.size for leaf in self.found.used)


def matrix(kind: str, found: Sites, task: Task, params: Any, data: Any, how: row.Pass) -> Matrix:
    """H of the rows of the data, once the task is known to have what it takes (that nll of the outputs is the loss is
    proven on the first rows, once for each program).

    Raises:
        UnknownNameError: no such matrix. UsageError: packed rows, or no outputs. ShapeError, MismatchError: outputs of
        a strange shape, or whose nll is not the loss.
    """
    if kind not in MATRICES:
        raise UnknownNameError("matrix of an operator curvature", kind, MATRICES)
    if task.segments is not None:
        raise UsageError(
            f"the {kind} of packed rows was asked for, and its mean is over rows of one document each: give the task "
            "one document a row, without segments"
        )
    if kind == "ggn" and found not in _PROVEN:
        if task.outputs is None:
            raise UsageError(
                "the Gauss-Newton matrix needs the model's outputs: give the task outputs(params, example) -> logits, "
                "or take the loss as it is, matrix='hessian' (it may be indefinite)"
            )
        shape = jax.eval_shape(task.outputs, params, row.example_spec(data)).shape
        source.check_nll(task, params, data, shape)
        _PROVEN.add(found)
    return Matrix(kind, found, task, params, stack(data, how))


_PROVEN: weakref.WeakSet[Sites] = weakref.WeakSet()


def stack(data: Any, how: row.Pass) -> Stack:
    """The rows of the data in batches (of at most N), the last one padded by its last row; on a mesh, each is split."""
    total = row.count(data)
    size = max(1, min(how.batch_size, total)) if how.mesh is None else how.batch_size
    index = np.arange(-(-total // size) * size).reshape(-1, size)
    rows = row.take(data, np.minimum(index, total - 1))
    return Stack(rows if how.mesh is None else shard_batch(how.mesh, rows, axis=1), jnp.asarray(index < total))


def dtype_of(found: Sites) -> Any:
    """One precision for all directions: float32 at least, also where parameters are narrower."""
    return functools.reduce(jnp.promote_types, (leaf.dtype for leaf in found.used), jnp.dtype("float32"))


def directions(found: Sites, gradients: dict[str, Any]) -> Direction:
    """Gradients `{path: [Q, *parameter shape]}` as directions over all parameters that the loss uses, zeros where one
    is missing; what the loss does not use is left out, for there every training gradient is zero.

    Raises:
        UnknownNameError: a path that is no attributed parameter. ShapeError: a shape, or another Q. NonFiniteError.
    """
    shapes = {leaf.path: leaf.shape for leaf in found.leaves}
    for path, value in gradients.items():
        if path not in shapes:
            raise UnknownNameError("attributed parameter", path, shapes)
        if np.ndim(value) == 0 or np.shape(value)[1:] != shapes[path]:
            wanted = ", ".join(["Q", *map(str, shapes[path])])
            raise ShapeError(f"the gradients of {path} are {list(np.shape(value))}; [{wanted}] was wanted")
    counts = {np.shape(value)[0] for value in gradients.values()}
    if len(counts) != 1 or 0 in counts:
        raise ShapeError(f"gradients of {sorted(counts)} queries; one number, 1 or more, was wanted for all parameters")
    row.check_finite(gradients, "gradients to solve for")
    (count,), dtype = counts, dtype_of(found)
    zeros = {leaf.path: np.zeros((count, *leaf.shape), dtype) for leaf in found.used}
    return {path: jnp.asarray(gradients.get(path, zero), dtype) for path, zero in zeros.items()}


@functools.lru_cache(maxsize=32)
def product(kind: str, found: Sites, task: Task) -> Product:
    """`(params, stack, v) -> H v`, pure and jittable: the mean over the real rows of a stack, batch after batch.

    For Q directions `{path: [Q, *parameter shape]}` take `jax.vmap(product, (None, None, 0))`: the forward pass is then
    shared between them.
    """
    summed = sum_of(kind, found, task)

    def apply(params: Any, batches: Stack, v: Direction) -> Direction:
        def step(total: Direction, batch: Stack) -> tuple[Direction, None]:
            return jax.tree.map(jnp.add, total, fast(summed)(params, batch.rows, batch.mask, v)), None

        total, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, v), batches)
        return jax.tree.map(lambda x: x / batches.mask.sum().astype(x.dtype), total)

    return apply


@functools.lru_cache(maxsize=32)
def sum_of(kind: str, found: Sites, task: Task) -> Callable[[Any, Any, Any, Direction], Direction]:
    """`(params, rows [B, ...], mask [B], v) -> sum_b H_b v` of one batch; masked rows add nothing."""
    linear = _hessian if kind == "hessian" else _gauss_newton

    def apply(params: Any, rows: Any, mask: Any, v: Direction) -> Direction:
        moved, put = _moving(found, params)
        narrow = {path: x.astype(moved[path].dtype) for path, x in v.items()}
        made = linear(task, put, moved, rows, mask)(narrow)
        return {path: made[path].astype(x.dtype) for path, x in v.items()}

    return apply


def _moving(found: Sites, params: Any) -> tuple[Direction, Callable[[Direction], Any]]:
    """(the parameters that move, how they are put back among those that do not)."""
    leaves = jax.tree.leaves(params)
    at = {leaf.path: number for leaf, number in zip(found.leaves, found.numbers, strict=True) if leaf.used}

    def put(moved: Direction) -> Any:
        full = list(leaves)
        for path, value in moved.items():
            full[at[path]] = value
        return jax.tree.unflatten(found.params_tree, full)

    return {path: jnp.asarray(leaves[number]) for path, number in at.items()}, put


def _hessian(task: Task, put: Any, moved: Direction, rows: Any, mask: Any) -> Callable[[Direction], Direction]:
    def total(moved: Direction) -> Any:
        params = put(moved)
        losses = jax.vmap(lambda example: jnp.sum(task.loss(params, example)))(rows)
        return jnp.where(mask, losses, 0).sum()

    return jax.linearize(jax.grad(total), moved)[1]


def _gauss_newton(task: Task, put: Any, moved: Direction, rows: Any, mask: Any) -> Callable[[Direction], Direction]:
    nll = source.nll_of(task)
    assert task.outputs is not None  # checked above

    def outputs(moved: Direction) -> Any:
        return jax.vmap(functools.partial(task.outputs, put(moved)))(rows)  # type: ignore[arg-type]

    def total(z: Any) -> Any:
        losses = jax.vmap(lambda z, example: jnp.sum(nll(z, example)))(z, rows)
        return jnp.where(mask, losses, 0).sum()

    z, push, pull = _both_ways(outputs, moved)
    curve = jax.linearize(jax.grad(total), z)[1]
    return lambda v: pull(curve(push(v)))


def _both_ways(fun: Callable[[Any], Any], x: Any) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """(fun(x), v -> J v, u -> J^T u) from one forward pass."""
    if "custom_vjp" in str(jax.make_jaxpr(fun)(x)):
        # What has its own reverse rule has no forward mode; but u -> J^T u is linear, and its transpose is v -> J v.
        z, reverse = jax.vjp(fun, x)
        transposed = jax.vjp(lambda u: reverse(u)[0], jax.tree.map(jnp.zeros_like, z))[1]
        return z, lambda v: transposed(v)[0], lambda u: reverse(u)[0]
    z, push = jax.linearize(fun, x)
    transpose = jax.linear_transpose(push, x)
    return z, push, lambda u: transpose(u)[0]


# ---------------------------------------------------------------- what products tell of H


def times(h: Matrix, v: Direction) -> Direction:
    """`H v` of Q directions `{path: [Q, *parameter shape]}`."""
    return in_chunks(h, functools.partial(_many(*h.program), h.params, h.batches), v)


@functools.lru_cache(maxsize=32)
def _many(kind: str, found: Sites, task: Task):
    """Compiled `(params, stack, v [Q]) -> H v [Q]`."""
    return jax.jit(jax.vmap(product(kind, found, task), (None, None, 0)))


def extremes(h: Matrix) -> tuple[float, float]:
    """(largest, smallest) eigenvalue by `POWER_STEPS` of power iteration each, from a fixed random start: Rayleigh
    quotients, so the largest is no less than the first and the smallest no more than the second."""
    first = largest_in_size(h)
    second = float(_power(*h.program)(h.params, h.batches, jnp.asarray(first, h.dtype), start(h)))
    return max(first, second), min(first, second)


def largest_in_size(h: Matrix) -> float:
    """The eigenvalue of largest size, with its sign, by power iteration."""
    return float(_power(*h.program)(h.params, h.batches, jnp.zeros((), h.dtype), start(h)))


@functools.lru_cache(maxsize=32)
def _power(kind: str, found: Sites, task: Task):
    """Compiled `(params, stack, shift, v) -> u^T H u` for the unit u that powers of `H - shift I` turn v to."""
    apply = product(kind, found, task)

    def program(params: Any, batches: Stack, shift: Any, v: Direction) -> Any:
        def step(_: Any, state: tuple[Direction, Any]) -> tuple[Direction, Any]:
            v, _ = state
            made = apply(params, batches, v)
            turned = plus(made, v, -shift)
            return scaled(turned, 1 / jnp.maximum(norm(turned), jnp.finfo(shift.dtype).tiny)), dot(v, made)

        return jax.lax.fori_loop(0, POWER_STEPS, step, (v, shift))[1]

    return jax.jit(program)


def trace(h: Matrix) -> float:
    """`E z^T H z` over random signs z (Hutchinson 1990), by `PROBES` of them, the same ones each time."""
    return float(_trace(*h.program)(h.params, h.batches, jax.random.split(jax.random.key(SEED), PROBES)))


@functools.lru_cache(maxsize=32)
def _trace(kind: str, found: Sites, task: Task):
    apply = product(kind, found, task)

    def program(params: Any, batches: Stack, keys: Any) -> Any:
        def one(key: Any) -> Any:
            bits = jax.random.rademacher(key, (sum(leaf.size for leaf in found.used),), dtype_of(found))
            signs = _parts(found, bits)
            return dot(signs, apply(params, batches, signs))

        return jax.lax.map(one, keys).mean()

    return jax.jit(program)


def formed(h: Matrix) -> np.ndarray:
    """H `[P, P]`, float64 on the host, symmetric; parameters in the order of `found.used`.

    Raises:
        BudgetError: more than `DENSE` parameters. NonFiniteError.
    """
    if h.size > DENSE:
        raise BudgetError(
            f"a dense {h.kind} of {h.size:,} parameters would take {8 * h.size**2 / 2**30:.1f} GiB; it is formed for "
            f"at most {DENSE:,}. Take Operator('cg'), or attribute fewer parameters (Task(include=...))."
        )
    width, columns = min(COLUMNS, h.size), []
    for first in range(0, h.size, width):
        unit = np.eye(width, h.size, k=first)  # rows beyond the last are zeros
        columns.append(flat(h, _many(*h.program)(h.params, h.batches, split(h, unit))))
    whole = np.concatenate(columns)[: h.size]
    if not np.isfinite(whole).all():
        raise not_finite(h)
    return (whole + whole.T) / 2


def not_finite(h: Matrix) -> NonFiniteError:
    return NonFiniteError(
        f"products with the {h.kind} are NaN or infinite: the second derivative of some row's loss is. A square root "
        "or a norm at zero is the usual cause, a log of zero another; find the row with jax.hessian on single rows."
    )


# ---------------------------------------------------------------- the algebra of directions


def plus(x: Direction, y: Direction, times: Any) -> Direction:
    """`x + times y`."""
    return {path: value + times * y[path] for path, value in x.items()}


def scaled(x: Direction, by: Any) -> Direction:
    """Each of a direction's arrays times a number, or each of Q directions times its own `[Q]`."""
    return {path: value * by.reshape(by.shape + (1,) * (value.ndim - by.ndim)) for path, value in x.items()}


def dot(x: Direction, y: Direction) -> Any:
    return functools.reduce(jnp.add, (jnp.sum(value * y[path]) for path, value in x.items()))


def norm(x: Direction) -> Any:
    return jnp.sqrt(dot(x, x))


def start(h: Matrix) -> Direction:
    """A random unit direction, always the same."""
    made = np.random.default_rng(SEED).normal(size=h.size)
    return _parts(h.found, (made / np.linalg.norm(made)).astype(h.dtype))


def flat(h: Matrix, x: Direction) -> np.ndarray:
    """`{path: [Q, *parameter shape]}` to `[Q, P]`, float64 on the host."""
    parts = [np.asarray(x[leaf.path], np.float64) for leaf in h.found.used]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


def split(h: Matrix, rows: np.ndarray) -> Direction:
    """`[Q, P]` to `{path: [Q, *parameter shape]}`."""
    return _parts(h.found, np.asarray(rows, h.dtype))


def _parts(found: Sites, numbers: Any) -> Direction:
    """`[..., P]` to `{path: [..., *parameter shape]}`."""
    stops = np.cumsum([leaf.size for leaf in found.used])
    return {
        leaf.path: numbers[..., stop - leaf.size : stop].reshape(*numbers.shape[:-1], *leaf.shape)
        for leaf, stop in zip(found.used, stops.tolist(), strict=True)
    }


def in_chunks(h: Matrix, program: Callable[[Direction], Any], v: Direction) -> Any:
    """`program(v)` for Q directions, a few at a time and all chunks of one shape, the last one filled with zeros."""
    count = len(next(iter(v.values())))
    chunk = int(np.clip(QUERY_BYTES // (h.size * h.dtype.itemsize), 1, QUERIES))
    if count <= chunk:
        return program(v)
    short = -count % chunk
    padded = {path: jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)) for path, x in v.items()}
    parts = [
        program({path: x[first : first + chunk] for path, x in padded.items()}) for first in range(0, count, chunk)
    ]
    return jax.tree.map(lambda *each: jnp.concatenate(each)[:count], *parts)
