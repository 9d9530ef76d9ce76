"""The algebra of factored per-example gradients (dense, inner, norm, pool), and the short way to get them.

`uimjax.factors` is this module by its place and a call by its public name: `uj.factors(task, params, batch)`.

Everything works leaf by leaf on what `taps.capture` returns; cross terms between two uses of one parameter (a tied
embedding) are always included.
"""

import functools
import math
import sys
import types
import weakref
from typing import Any

import jax
import jax.numpy as jnp

from uimjax import rows as row
from uimjax.errors import ShapeError
from uimjax.taps import (
    Dense,
    Direct,
    Factor,
    Factors,
    Gather,
    Leaf,
    Place,
    Sites,
    check_segments,
    each_example,
    expand,
    form,
    pair,
    sites,
    verify,
)
from uimjax.task import Task

Gradients = dict[str, Any]
CLOSE, ROUNDING = 1e-4, 1e-6  # how near to a multiple is one, of its own size and of what it is a multiple of


def dense(found: Sites, factors: Factors) -> Gradients:
    """The gradients formed: `{path: [B, *parameter shape]}`, zeros where a parameter is not used.

    Memory B x parameters: for small models and oracles.
    """
    some = next(uses[0] for uses in factors.values() if uses)
    size = some.examples
    formed = {leaf.path: form(leaf, factors[leaf.path]) for leaf in found.leaves}
    return {
        leaf.path: jnp.zeros((size, *leaf.shape), leaf.dtype) if formed[leaf.path] is None else formed[leaf.path]
        for leaf in found.leaves
    }


def inner(found: Sites, x: Factors, y: Factors) -> Any:
    """All pairs `<grad_i, grad_j>`, `[Bx, By]`, over all parameters, in float32 at least.

    Per pair of uses the cheaper order is taken: `sum_ts (a_t . a'_s)(g_t . g'_s)` without forming a gradient, or the
    gradients formed and multiplied.
    """
    total = 0.0
    for leaf in found.leaves:
        uses, others = x[leaf.path], y[leaf.path]
        if len(uses) == len(others) == 1 and _ghost_is_cheaper(uses[0], others[0]):
            total = total + _ghost(uses[0], others[0])
        elif uses and others:
            left, right = form(leaf, uses), form(leaf, others)
            total = total + _gemm(left.reshape(left.shape[0], -1), right.reshape(right.shape[0], -1))
    return total


def norm(found: Sites, factors: Factors) -> Any:
    """Exact gradient norms `[B]`, over all parameters, by the cheaper way for each of them."""
    return jnp.sqrt(sum(leaf_norms(found, factors).values()))


def leaf_norms(found: Sites, factors: Factors) -> Gradients:
    """Exact SQUARED gradient norms `[B]` of each parameter.

    By Gram matrices, `sum_ts (a_t . a_s)(g_t . g_s)` over all pairs of uses that overlap (a tied embedding has a cross
    term, the slices of a fused matrix have none), or from the gradient formed: whichever takes fewer multiplications.
    """
    out = {}
    for leaf in found.leaves:
        uses = factors[leaf.path]
        if not uses:
            continue
        pairs = _cheaper_pairs(leaf, uses)
        if pairs is not None:
            out[leaf.path] = functools.reduce(jnp.add, (times * _gram(x, y) for x, y, times in pairs))
        else:
            gradient = form(leaf, uses)
            out[leaf.path] = jnp.sum(jnp.square(_wide(gradient)).reshape(gradient.shape[0], -1), 1)
    return out


def norms_and_sum(found: Sites, factors: Factors, weights: Any) -> tuple[Any, Gradients]:
    """(exact gradient norms `[B]`, `sum_b w_b grad_b` by parameter path) of one backward pass: a gradient formed for
    its norm serves the sum as well, so that both cost little more than the sum alone. `weights`: `[B]`, or a function
    that makes them of the norms (DP-SGD's clipping: arXiv 1607.00133)."""
    squares, formed, total = [], {}, {}
    for leaf in found.leaves:
        uses = factors[leaf.path]
        pairs = _cheaper_pairs(leaf, uses) if uses else None
        if pairs is not None:
            squares.append(functools.reduce(jnp.add, (times * _gram(x, y) for x, y, times in pairs)))
        elif uses:
            formed[leaf.path] = form(leaf, uses)
            squares.append(jnp.sum(jnp.square(_wide(formed[leaf.path].reshape(len(formed[leaf.path]), -1))), 1))
    norms = jnp.sqrt(functools.reduce(jnp.add, squares))
    weights = weights(norms) if callable(weights) else weights
    for leaf in found.leaves:
        uses, gradient = factors[leaf.path], formed.get(leaf.path)
        if gradient is not None:
            whole = _einsum("b,bp->p", weights, gradient.reshape(len(gradient), -1))
            total[leaf.path] = whole.reshape(gradient.shape[1:]).astype(gradient.dtype)
        elif uses:
            scale: Any = weights.reshape(-1, 1, 1, 1)
            heavy: Any = tuple(use._replace(g=use.g * scale.astype(use.g.dtype)) for use in uses)  # type: ignore[union-attr]
            total[leaf.path] = form(leaf, pool({leaf.path: heavy}, len(weights))[leaf.path])[0]
    return norms, total


def _cheaper_pairs(leaf: Leaf, uses: tuple[Factor, ...]) -> list[tuple[Any, Any, float]] | None:
    """The pairs of Gram matrices that give a norm; None where forming the gradient takes fewer multiplications."""
    pairs = _overlaps(leaf, uses)
    cheaper = pairs is not None and sum(_gram_cost(x, y) for x, y, _ in pairs) <= _form_cost(leaf, uses)
    return pairs if cheaper else None


def _overlaps(leaf: Leaf, uses: tuple[Factor, ...]) -> list[tuple[Any, Any, float]] | None:
    """Pairs of factored uses that meet in the parameter, (x, y, how often they count); None where a plain gradient, or
    slices that meet in part, leave no way but forming."""
    placed = [(use, where or Place(None, None, None)) for use, where in pair(leaf, uses)]
    if len(placed) < len(uses) or len({use.owner is None for use, _ in placed}) > 1:
        return None
    pairs: list[tuple[Any, Any, float]] = []
    for k, (x, here) in enumerate(placed):
        for y, there in placed[k:]:
            how = [_meet(*axes) for axes in zip(here, there, leaf.layout.shape, strict=True)]
            if "apart" in how:
                continue
            if "partly" in how:
                return None
            pairs.append((x, y, 1.0 if x is y else 2.0))
    return pairs


def _meet(one: Any, other: Any, size: int) -> str:
    if one is None and other is None:
        return "same"
    mine, theirs = (set(range(size)) if axis is None else set(axis.tolist()) for axis in (one, other))
    return "same" if mine == theirs else "partly" if mine & theirs else "apart"


def _gram(x: Any, y: Any) -> Any:
    """`<x_b, y_b>` `[B]` of two factored gradients of one parameter."""
    g = _einsum("bnto,bnso->bnts", x.g, y.g)
    if isinstance(x, Gather) and isinstance(y, Gather):
        a = (x.ids[:, :, :, None] == y.ids[:, :, None, :]).astype(g.dtype)
    elif isinstance(x, Dense) and isinstance(y, Dense):
        a = _einsum("bnti,bnsi->bnts", x.a, y.a)
    else:  # a table looked up and multiplied with: entry ids_t of each a_s
        table, ids = (y.a, x.ids) if isinstance(x, Gather) else (x.a, y.ids)
        a = jnp.take_along_axis(table, ids[:, :, None, :], axis=3)  # [B, n, positions of the matmul, of the lookup]
        a = jnp.swapaxes(a, 2, 3) if isinstance(x, Gather) else a
    if x.owner is None:
        return (a * g).sum((1, 2, 3))
    between = (a * g).sum(1)
    return _einsum("bkt,bts,bks->bk", x.owner.astype(g.dtype), between, y.owner.astype(g.dtype)).reshape(-1)


def _gram_cost(x: Any, y: Any) -> int:
    n, t, o = x.g.shape[1:]
    rows = x.a.shape[-1] if isinstance(x, Dense) and isinstance(y, Dense) else 1
    return n * t * y.g.shape[2] * (rows + o)


def _form_cost(leaf: Leaf, uses: tuple[Factor, ...]) -> int:
    """Of forming and squaring; a lookup writes rows instead of multiplying."""
    kept = [use for use in uses if not isinstance(use, Direct)]
    each = [math.prod(use.g.shape[1:]) * (use.a.shape[-1] if isinstance(use, Dense) else 1) for use in kept]
    return max(use.examples // use.g.shape[0] for use in kept) * (sum(each) + 2 * leaf.size)


def pool(factors: Factors, size: int) -> Factors:
    """Sum gradients over groups of `size` consecutive examples: `[B, ...]` to `[B / size, ...]`, still factored.

    The examples of a group become further positions.

    Raises:
        ShapeError: B is no multiple of `size`.
    """

    def join(x: Any) -> Any:  # [B, n, T, k] -> [B/size, n, size*T, k]
        b, n, *rest = x.shape
        if b % size:
            raise ShapeError(f"{b} gradients cannot be pooled in groups of {size}; pad the batch to a multiple")
        grouped = x.reshape(b // size, size, n, *rest)
        return jnp.moveaxis(grouped, 1, 2).reshape(b // size, n, size * rest[0], *rest[1:])

    def one(factor: Factor) -> Factor:
        if isinstance(factor, Direct):
            g = factor.gradient
            if g.shape[0] % size:
                raise ShapeError(f"{g.shape[0]} gradients cannot be pooled in groups of {size}; pad the batch")
            return Direct(g.reshape(-1, size, *g.shape[1:]).sum(1))
        plain = expand(factor)
        return type(factor)(*(join(x) for x in plain[:2]))

    return {path: tuple(one(f) for f in uses) for path, uses in factors.items()}


def multiple(x: Factors, y: Factors) -> tuple[Any, Any] | None:
    """(r `[B]`, fits `[B]` bool): where it fits, each gradient of x is r times that of y, as seen from the factors: all
    of their parts are, to `CLOSE` of their size or to rounding. None where no factor of one has its like in the other.

    The loss of one class is such a multiple of its margin, `grad nll = -(1 - p) grad log(p / (1 - p))`.
    """
    ratios, weights, fits = [], [], []
    for path in x:
        if len(x[path]) != len(y[path]):
            return None
        for one, other in zip(x[path], y[path], strict=True):
            parts = _parts(one, other)
            if parts is None:
                return None
            ratio, weight = 1.0, 1.0
            for a, b in parts:
                size = jnp.square(b).sum(1)
                share = (a * b).sum(1) / jnp.where(size > 0, size, 1)
                off = jnp.linalg.norm(a - share[:, None] * b, axis=1)
                fits.append(off <= CLOSE * jnp.linalg.norm(a, axis=1) + ROUNDING * jnp.sqrt(size))
                ratio, weight = ratio * share, weight * size
            if isinstance(one, Gather) and isinstance(other, Gather):
                fits.append((one.ids == other.ids).all((1, 2)))
            ratios.append(ratio)
            weights.append(weight)
    ratios, weights = jnp.stack(ratios), jnp.stack(weights)
    total = weights.sum(0)
    r = (weights * ratios).sum(0) / jnp.where(total > 0, total, 1)
    same = (jnp.abs(ratios - r[None]) <= CLOSE * jnp.abs(r)[None] + ROUNDING) | (weights == 0)
    return r, same.all(0) & jnp.stack(fits).all(0)


def _parts(one: Factor, other: Factor) -> list[tuple[Any, Any]] | None:
    """The parts of two factors that a gradient is a product of, `[B, numbers]` each; None where they are not alike."""
    if isinstance(one, Direct) and isinstance(other, Direct):
        pairs = [(one.gradient, other.gradient)]
    elif isinstance(one, Direct) or isinstance(other, Direct) or type(one) is not type(other):
        return None
    elif one.owner is not None or other.owner is not None:
        return None
    else:
        pairs = [(one.g, other.g)] + ([(one.a, other.a)] if isinstance(one, Dense) and isinstance(other, Dense) else [])
    if any(a.shape != b.shape for a, b in pairs):
        return None
    return [(_wide(a).reshape(len(a), -1), _wide(b).reshape(len(b), -1)) for a, b in pairs]


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _einsum(spec: str, *args):
    dtype = jnp.promote_types(jnp.result_type(*args), jnp.float32)
    return jnp.einsum(spec, *args, preferred_element_type=dtype)


def _gemm(x, y):
    return _einsum("ip,jp->ij", x, y)


def _ghost_is_cheaper(x: Factor, y: Factor) -> bool:
    if not (isinstance(x, Dense) and isinstance(y, Dense)) or x.owner is not None or y.owner is not None:
        return False
    (bx, _, tx, i), (by, _, ty, _), o = x.a.shape, y.a.shape, x.g.shape[-1]
    ghost = bx * by * tx * ty * (i + o)
    return ghost <= (bx * tx + by * ty + bx * by) * i * o


def _ghost(x: Factor, y: Factor):
    assert isinstance(x, Dense)
    assert isinstance(y, Dense)
    if x.a.shape[2] == y.a.shape[2] == 1:  # rank one: the pairs' product of two Gram matrices
        a, g = (_einsum("bnti,csni->bcn", p, jnp.swapaxes(q, 1, 2)) for p, q in ((x.a, y.a), (x.g, y.g)))
        return (a * g).sum(-1)
    a = _einsum("bnti,cnsi->bcnts", x.a, y.a)
    g = _einsum("bnto,cnso->bcnts", x.g, y.g)
    return (a * g).sum((2, 3, 4))


# ---------------------------------------------------------------- the short way in


def compute(task: Task, params: Any, batch: Any) -> tuple[Any, Factors]:
    """(losses `[B]`, factors by parameter path) of the reader's own loss; no gradient of a matrix is formed.

    The loss is followed once, proven on the first rows, and one compiled pass runs. Public as `uj.factors`. With packed
    rows (`task.segments`) an example is a document: B is then rows x `task.documents`, here and below.

    Raises:
        NonFiniteError, ShapeError: from parameters or rows. TapError and its children: the loss cannot be followed.
    """
    return _compiled(task, proven(task, params, batch), "factors")(params, batch)


def per_example_gradients(task: Task, params: Any, batch: Any) -> Gradients:
    """`{path: [B, *parameter shape]}`, as `vmap(grad)` would give. Memory: B times the parameters.

    >>> import jax.numpy as jnp, uimjax as uj
    >>> task = uj.Task(lambda p, e: jnp.sum(jnp.square(e @ p["w"])))
    >>> grads = uj.per_example_gradients(task, {"w": jnp.ones((2, 3))}, jnp.ones((4, 2)))
    >>> grads["w"].shape
    (4, 2, 3)
    """
    return _compiled(task, proven(task, params, batch), "gradients")(params, batch)


def gradient_norms(task: Task, params: Any, batch: Any) -> Any:
    """Exact `|grad loss_b|` over all parameters, `[B]`."""
    return _compiled(task, proven(task, params, batch), "norms")(params, batch)


def proven(task: Task, params: Any, batch: Any) -> Sites:
    """The sites of a loss, once parameters and rows are finite and the factors add up to `jax.grad` on the first rows
    (proven once for each program: a stream of batches does not pay for it again)."""
    row.check_finite(params, "parameters")
    row.check_finite(batch, "rows")
    row.count(batch)
    found = sites(task, params, row.example_spec(batch))
    most = 2 if task.segments is None else check_segments(task, batch, found.program.out_avals[0].shape)
    if found not in _PROVEN:
        verify(task, found, params, batch)
        if most > 1:  # a row with one document cannot show whether documents see each other
            _PROVEN.add(found)
    return found


_PROVEN: weakref.WeakSet[Sites] = weakref.WeakSet()


@functools.lru_cache(maxsize=32)
def _compiled(task: Task, found: Sites, what: str):
    def program(params: Any, batch: Any) -> Any:
        losses, made = each_example(task, found, params, batch)
        if what == "factors":
            return losses, made
        return norm(found, made) if what == "norms" else dense(found, made)

    return jax.jit(program)


class _Callable(types.ModuleType):
    """Importing a submodule binds its name in the package, so the public call of that name lives here."""

    def __call__(self, task: Task, params: Any, batch: Any) -> tuple[Any, Factors]:
        return compute(task, params, batch)


sys.modules[__name__].__class__ = _Callable
