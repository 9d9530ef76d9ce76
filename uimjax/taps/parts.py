"""A row taken apart: into the documents packed in it, the positions of its sequence, or the losses of its tokens.

The gradient of a row is a sum over positions t of what runs *through* t, `a_t (x) g_t`, at every site: taken apart it
costs nothing more. Where packed documents do not see each other, the gradient of a document is the sum over its own
positions. The gradient *of the loss of* token t is another thing: one backward pass a token.

Which axis of a site runs over the sequence is found by following the loss once more at another length.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import ShapeError, TapError
from uimjax.taps import layouts
from uimjax.taps.base import Dense, Factor, Gather, Site
from uimjax.taps.capture import DIRECT_BUDGET, Factors, Sites, assemble, capture, check_budget, forward, sites
from uimjax.task import Task

Axes = tuple[int | None, ...]  # by site number: the axis of its tap that runs over the sequence, None where none does
CHUNK = 16  # tokens whose losses are differentiated at once


def each_example(task: Task, found: Sites, params: Any, batch: Any, budget: int = DIRECT_BUDGET) -> tuple[Any, Factors]:
    """`capture`, by what the task calls an example: the rows, or the documents packed in them (`task.segments`), then
    B x `task.documents` of them, row by row; one that a row does not hold has loss and gradient 0."""
    if task.segments is None:
        return capture(found, params, batch, budget)
    return documents(found, axes_of(task, found, params, batch), params, batch, owners(task, batch), budget)


def owners(task: Task, batch: Any) -> Any:
    """`[B, K, T]` bool: which positions of a row belong to its document k + 1."""
    assert task.segments is not None
    segments = jax.vmap(task.segments)(batch)
    return segments[:, None, :] == 1 + jnp.arange(task.documents, dtype=segments.dtype)[None, :, None]


def documents(
    found: Sites, axes: Axes, params: Any, batch: Any, owner: Any, budget: int = DIRECT_BUDGET
) -> tuple[Any, Factors]:
    """Losses `[B * K]` and factors of K gradients a row, in one pass; `owner` `[B, K, T]`.

    A use of a parameter that does not run over the sequence takes one cotangent a document: K backward passes.
    """
    count, k, _ = owner.shape
    check_budget(found, count * k, budget)
    losses, records, pull = forward(found, params, batch)
    owner = owner.astype(losses.dtype)
    g = pull(owner.sum(1))
    index = {site.number: _token_of(site, axes[site.number], records) for site in _every(found)}
    apart = any(tokens is None for tokens in index.values())
    each = jax.vmap(pull, in_axes=1, out_axes=1)(owner) if apart else {}

    def make(site: Site, record: Any, grad: Any, layout: Any, shape: Any) -> Factor:
        tokens = index[site.number]
        if tokens is None:
            grad = each[site.number].reshape(-1, *site.tap_shape)
            return layouts.factor(site, _repeat(record, k), grad, layout, shape)
        if site.kind in layouts.FACTORED:
            mine = owner[:, :, tokens]
            return layouts.factor(site, record, grad, layout, shape, lambda f: f._replace(owner=mine))
        return layouts.factor(site, _repeat(record, k), _masked(site, axes, grad, owner), layout, shape)

    return jnp.einsum("bkt,bt->bk", owner, losses).reshape(-1), assemble(found, params, records, g, make)


def positions(found: Sites, axes: Axes, params: Any, batch: Any, budget: int = DIRECT_BUDGET) -> tuple[Any, Factors]:
    """Losses `[B, T]`, and the factors of B * T gradients: what runs through each position.

    Raises:
        TapError: a use of a parameter does not run over the sequence.
    """
    losses, records, pull = forward(found, params, batch)
    count, length = losses.shape
    check_budget(found, count * length, budget)
    index = {site.number: _token_of(site, axes[site.number], records) for site in _every(found)}
    for leaf in (*found.leaves, *found.derived):
        for site in leaf.sites:
            if index[site.number] is None:
                raise TapError(
                    f"the use of {leaf.path} at {site.line} does not run over the {length} positions of the sequence, "
                    "so nothing of its gradient belongs to one position. Leave the parameter out "
                    f"(Task(exclude=({leaf.path!r},))), or ask per='token': the gradient of each token's loss."
                )
    eye = jnp.broadcast_to(jnp.eye(length, dtype=losses.dtype), (count, length, length))

    def make(site: Site, record: Any, grad: Any, layout: Any, shape: Any) -> Factor:
        if site.kind not in layouts.FACTORED:
            return layouts.factor(site, _repeat(record, length), _masked(site, axes, grad, eye), layout, shape)
        order = np.argsort(index[site.number], kind="stable")  # type: ignore[arg-type]  # none is None

        def split(x: Any) -> Any:  # [B, n, T * R, ...] to [B * T, n, R, ...]
            batch, n, _, *rest = x.shape
            moved = jnp.moveaxis(x[:, :, order].reshape(batch, n, length, -1, *rest), 2, 1)
            return moved.reshape(batch * length, n, -1, *rest)

        def part(factor: Dense | Gather) -> Dense | Gather:
            return type(factor)(*(split(x) for x in factor[:2]))

        return layouts.factor(site, record, grad, layout, shape, part)

    return losses, assemble(found, params, records, pull(jnp.ones_like(losses)), make)


def tokens(
    found: Sites, params: Any, batch: Any, finish: Callable[[Factors], Any], budget: int = DIRECT_BUDGET
) -> tuple[Any, Any]:
    """Losses `[B, T]`, and what `finish` makes of the factors of each token's loss, stacked `[B, T, ...]`.

    One forward pass and T backward passes, `CHUNK` at a time.
    """
    losses, records, pull = forward(found, params, batch)
    count, length = losses.shape
    check_budget(found, count * min(CHUNK, length), budget)

    def one(cotangent: Any) -> Any:
        g = pull(jnp.broadcast_to(cotangent, losses.shape))
        return finish(assemble(found, params, records, g, layouts.factor))

    made = jax.lax.map(one, jnp.eye(length, dtype=losses.dtype)[:, None], batch_size=min(CHUNK, length))
    return losses, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)


def _every(found: Sites) -> list[Site]:
    return [site for leaf in (*found.leaves, *found.derived) for site in leaf.sites]


def _repeat(record: Any, count: int) -> Any:
    return None if record is None else jnp.repeat(record, count, 0)


def _masked(site: Site, axes: Axes, g: Any, owner: Any) -> Any:
    """A plain gradient's cotangent `[B, ..., T, ...]` for each owner of positions: `[B * K, ..., T, ...]`."""
    axis, rank = axes[site.number], len(site.tap_shape)
    assert axis is not None
    mask = owner.reshape(*owner.shape[:2], *(1,) * axis, owner.shape[2], *(1,) * (rank - axis - 1))
    return (g[:, None] * mask.astype(g.dtype)).reshape(-1, *site.tap_shape)


def _token_of(site: Site, axis: int | None, records: Any) -> np.ndarray | None:
    """The token that each position of a site's factor belongs to; None where no axis, or one of the parameter's own,
    runs over the sequence."""
    if axis is None:
        return None
    length = site.tap_shape[axis]
    if site.kind not in layouts.FACTORED:
        return np.arange(length)
    record = records[site.number]
    with jax.ensure_compile_time_eval():
        shape = [1] * (1 + len(site.tap_shape))
        shape[1 + axis] = length
        counted = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32).reshape(shape), (1, *site.tap_shape))
        made = layouts.raw_factor(site, jnp.zeros((1, *record.shape[1:]), record.dtype), counted)
        found = np.asarray(made.g)[0]  # [n, T, O]
    return found[0, :, 0] if (found == found[:1, :, :1]).all() else None


# ---------------------------------------------------------------- which axis runs over the sequence


def axes_of(task: Task, found: Sites, params: Any, batch: Any) -> Axes:
    """The axis of each site's tap that runs over the sequence.

    Raises:
        ShapeError: the loss is a scalar, or of one token. TapError: it cannot be followed at another length.
    """

    def spec(leaf: Any, cut: int) -> tuple[tuple[int, ...], Any]:
        return tuple(np.shape(leaf))[cut:], jax.typeof(leaf).dtype

    leaves, tree = jax.tree.flatten(params)
    rows, row_tree = jax.tree.flatten(batch)
    return _axes(
        task, found, tree, row_tree, tuple(spec(leaf, 0) for leaf in leaves), tuple(spec(leaf, 1) for leaf in rows)
    )


@functools.lru_cache(maxsize=64)
def _axes(task: Task, found: Sites, params_tree: Any, example_tree: Any, params_spec: Any, example_spec: Any) -> Axes:
    params = jax.tree.unflatten(params_tree, [jax.ShapeDtypeStruct(*s) for s in params_spec])
    shape = found.program.out_avals[0].shape
    if not shape or shape[0] < 2:
        raise ShapeError(
            f"the loss of one row has shape {list(shape)}; to take rows apart, one entry a token, [T] with T > 1, was "
            "wanted. Return the tokens' losses instead of their sum: the engine adds them up."
        )
    length, reason = shape[0], None
    for other in dict.fromkeys((length - 1, length // 2, 2 * length)):
        resized = [
            jax.ShapeDtypeStruct(tuple(n + other - length if n in (length, length + 1) else n for n in s), dtype)
            for s, dtype in example_spec
        ]
        try:
            again = sites(task, params, jax.tree.unflatten(example_tree, resized))
        except Exception as error:  # whatever the reader's own loss raises at a length it was not made for
            reason = reason or error
            continue
        if again.program.out_avals[0].shape == (other,) and len(_every(again)) == len(_every(found)):
            return _compared(found, again, length, other)
    raise TapError(
        f"the loss cannot be followed at another length than {length}, so which axes run over the sequence stays "
        f"unknown ({type(reason).__name__ if reason else 'its shape or its uses do not follow'}: {reason}). Take the "
        "length from the row's arrays instead of a number, or do not pack and do not ask for single positions."
    ) from reason


def _compared(found: Sites, again: Sites, length: int, other: int) -> Axes:
    here, there = ({site.number: site for site in _every(sites)} for sites in (found, again))
    axes: list[int | None] = [None] * (1 + max(here))
    for number, site in here.items():
        pairs = list(zip(site.tap_shape, there[number].tap_shape, strict=False))
        changed = [axis for axis, (mine, its) in enumerate(pairs) if mine != its]
        if site.kind == there[number].kind and len(changed) == 1 and pairs[changed[0]] == (length, other):
            axes[number] = changed[0]
    return tuple(axes)
