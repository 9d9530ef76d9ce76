"""A row taken apart: into the documents packed in it, the positions of its sequence, or the losses of its tokens.

The gradient of a row is a sum over positions t of what runs *through* t, `a_t (x) g_t`, at every site: taken apart it
costs nothing more. Where packed documents do not see each other, the gradient of a document is the sum over its own
positions. The gradient *of the loss of* token t is another thing: one backward pass a token.

Which axis of a site runs over the sequence is found by following the loss once more at another length.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import ShapeError, TapError
from uimjax.taps import layouts
from uimjax.taps.base import Dense, Factor, Gather, Site
from uimjax.taps.captures import DIRECT_BUDGET, Factors, Sites, assemble, capture, check_budget, forward, sites
from uimjax.task import Task

TRIES = 64  # sets of a row's axes that are taken for the sequence's, before the loss is given up
CHUNK = 16  # tokens whose losses are differentiated at once


class Axes(NamedTuple):
    """What runs over the sequence: of each site's tap the axis, by number (None: none does), and the (leaf, axis) pairs
    of a row's arrays."""

    sites: tuple[int | None, ...]
    rows: tuple[tuple[int, int], ...]


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
    g = pull(owner.any(1).astype(losses.dtype))
    # a loss of T entries may run on T + 1 positions (tokens and their targets in one array): the last is nobody's
    longer = jnp.pad(owner, [(0, 0), (0, 0), (0, 1)]).astype(losses.dtype)
    index = {site.number: _token_of(site, axes, records) for site in _every(found)}
    apart = any(tokens is None for tokens in index.values())
    each = jax.vmap(pull, in_axes=1, out_axes=1)(owner.astype(losses.dtype)) if apart else {}

    def make(site: Site, record: Any, grad: Any, layout: Any, shape: Any) -> Factor:
        tokens = index[site.number]
        if tokens is None:
            grad = each[site.number].reshape(-1, *site.tap_shape)
            return layouts.factor(site, _repeat(record, k), grad, layout, shape)
        if site.kind in layouts.FACTORED:
            mine = longer[:, :, tokens]
            return layouts.factor(site, record, grad, layout, shape, lambda f: f._replace(owner=mine))
        return layouts.factor(site, _repeat(record, k), _masked(site, axes, grad, longer), layout, shape)

    mine = jnp.where(owner, losses[:, None], 0).sum(-1)
    return mine.reshape(-1), assemble(found, params, records, g, make)


def positions(
    found: Sites, axes: Axes, params: Any, batch: Any, counted: Any = None, budget: int = DIRECT_BUDGET
) -> tuple[Any, Factors]:
    """Losses `[B, T]`, and the factors of B * T gradients: what runs through each position, which is the site's own
    index along the sequence (a loss that turns its sequence round inside is answered in the turned order). Only losses
    that are `counted` `[B, T]` (padding is not) count.

    Raises:
        TapError: a use of a parameter does not run over the sequence.
    """
    losses, records, pull = forward(found, params, batch)
    count, length = losses.shape
    check_budget(found, count * length, budget)
    index = {site.number: _token_of(site, axes, records) for site in _every(found)}
    for leaf in (*found.leaves, *found.derived):
        for site in leaf.sites:
            tokens = index[site.number]
            if tokens is None or tokens.max() >= length:
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

    counted = jnp.ones(losses.shape, bool) if counted is None else counted
    factors = assemble(found, params, records, pull(counted.astype(losses.dtype)), make)
    return jnp.where(counted, losses, 0), factors


def entries(found: Sites, params: Any, batch: Any, budget: int = DIRECT_BUDGET) -> tuple[Any, Factors]:
    """Losses `[B, K]` of a loss with K entries, and the factors of B * K gradients, row by row: one forward pass, K
    backward passes, all at once."""
    losses, records, pull = forward(found, params, batch)
    count, k = losses.shape
    check_budget(found, count * k, budget)
    each = jax.vmap(pull, in_axes=1, out_axes=1)(jnp.broadcast_to(jnp.eye(k, dtype=losses.dtype), (count, k, k)))
    g = {number: x.reshape(-1, *x.shape[2:]) for number, x in each.items()}
    records = {number: _repeat(record, k) for number, record in records.items()}
    return losses, assemble(found, params, records, g, layouts.factor)


def tokens(
    found: Sites,
    params: Any,
    batch: Any,
    finish: Callable[[Factors], Any],
    counted: Any = None,
    budget: int = DIRECT_BUDGET,
) -> tuple[Any, Any]:
    """Losses `[B, T]`, and what `finish` makes of the factors of each token's loss, stacked `[B, T, ...]`; zeros where
    `counted` `[B, T]` is False.

    One forward pass and T backward passes, `CHUNK` at a time.
    """
    losses, records, pull = forward(found, params, batch)
    count, length = losses.shape
    check_budget(found, count * min(CHUNK, length), budget)

    counted = jnp.ones(losses.shape, bool) if counted is None else counted

    def one(cotangent: Any) -> Any:
        g = pull(cotangent * counted.astype(losses.dtype))
        return finish(assemble(found, params, records, g, layouts.factor))

    made = jax.lax.map(one, jnp.eye(length, dtype=losses.dtype)[:, None], batch_size=min(CHUNK, length))
    return jnp.where(counted, losses, 0), jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)


def _every(found: Sites) -> list[Site]:
    return [site for leaf in (*found.leaves, *found.derived) for site in leaf.sites]


def _repeat(record: Any, count: int) -> Any:
    return None if record is None else jnp.repeat(record, count, 0)


def _masked(site: Site, axes: Axes, g: Any, owner: Any) -> Any:
    """A plain gradient's cotangent `[B, ..., T, ...]` for each owner of positions: `[B * K, ..., T, ...]`."""
    axis, rank = axes.sites[site.number], len(site.tap_shape)
    assert axis is not None
    owner = owner[:, :, : site.tap_shape[axis]]
    mask = owner.reshape(*owner.shape[:2], *(1,) * axis, owner.shape[2], *(1,) * (rank - axis - 1))
    return (g[:, None] * mask.astype(g.dtype)).reshape(-1, *site.tap_shape)


def _token_of(site: Site, axes: Axes, records: Any) -> np.ndarray | None:
    """The token that each position of a site's factor belongs to; None where no axis, or one of the parameter's own,
    runs over the sequence."""
    axis = axes.sites[site.number]
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
    for other, resized in itertools.product(dict.fromkeys((length - 1, length // 2, 2 * length)), _sequences(
        [shape for shape, _ in example_spec], length
    )):  # fmt: skip
        rows = [list(shape) for shape, _ in example_spec]
        for leaf, axis in resized:
            rows[leaf][axis] += other - length
        specs = [jax.ShapeDtypeStruct(tuple(s), dtype) for s, (_, dtype) in zip(rows, example_spec, strict=True)]
        example = jax.tree.unflatten(example_tree, specs)
        try:
            again = sites(task, params, example)
            cut = None if task.segments is None else jax.eval_shape(task.segments, example).shape
        except Exception as error:  # whatever the reader's own loss raises at a length it was not made for
            reason = reason or error
            continue
        fits = again.program.out_avals[0].shape == (other,) and cut in (None, (other,))
        if fits and len(_every(again)) == len(_every(found)):
            return Axes(_compared(found, again, length, other), resized)
    raise TapError(
        f"the loss cannot be followed at another length than {length}, so which axes run over the sequence stays "
        f"unknown ({type(reason).__name__ if reason else 'its shape or its uses do not follow'}: {reason}). Take the "
        "length from the row's arrays instead of a number, or do not pack and do not ask for single positions."
    ) from reason


def _sequences(shapes: list[tuple[int, ...]], length: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """The (leaf, axis) pairs of a row that may run over the sequence together, likeliest first: the leading axes of
    that length (or one more: tokens with their targets), then fewer of them, then any axes. At most `TRIES`."""
    every = [(k, axis) for k, shape in enumerate(shapes) for axis, n in enumerate(shape) if n in (length, length + 1)]
    leading = [pair for pair in every if pair[1] == 0]
    sets = (
        chosen
        for pool in (leading, every)
        for size in range(len(pool), 0, -1)
        for chosen in itertools.combinations(pool, size)
    )
    yield from dict.fromkeys(itertools.islice(sets, TRIES))


def _compared(found: Sites, again: Sites, length: int, other: int) -> tuple[int | None, ...]:
    here, there = ({site.number: site for site in _every(sites)} for sites in (found, again))
    axes: list[int | None] = [None] * (1 + max(here))
    for number, site in here.items():
        pairs = list(zip(site.tap_shape, there[number].tap_shape, strict=False))
        changed = [axis for axis, (mine, its) in enumerate(pairs) if mine != its]
        sequence = len(changed) == 1 and pairs[changed[0]] in ((length, other), (length + 1, other + 1))
        if site.kind == there[number].kind and sequence:
            axes[number] = changed[0]
    return tuple(axes)
