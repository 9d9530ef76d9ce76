"""Proof on real rows: factors add up to `jax.grad`, batches to their examples, and packed documents stay apart."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from uimjax.errors import CoverageError, ShapeError
from uimjax.taps import layouts, parts
from uimjax.taps.captures import Sites, forward
from uimjax.task import Task

_HURRIED = {
    "cpu": {"xla_backend_optimization_level": 0},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


def verify(task: Task, found: Sites, params: Any, batch: Any, examples: int = 4) -> None:
    """Prove coverage on real rows: factors formed and summed must equal `jax.grad` of the summed loss, leaf by leaf.

    Relative tolerance 1e-9 in float64, 1e-3 in float32, 5e-2 where anything is coarser (mixed precision). Where the
    task gives `batch_loss`, its value must equal the sum over examples; where rows are packed, no document may see
    another.

    Raises:
        CoverageError: names the parameter that differs, `batch_loss`, or the line where documents meet.
        ShapeError: `segments` does not fit the loss.
    """
    if task.segments is not None:
        check_segments(task, batch, found.program.out_avals[0].shape)
        batch = _fullest(task, batch)  # the rows that would show it if documents saw each other
    batch = jax.tree.map(lambda x: x[:examples], batch)
    if task.segments is not None:
        _prove_apart(task, found, params, batch)
    gradients, total = _both_ways(task, found)
    mine = gradients(params, batch)
    summed, truth = total(params, batch)
    named = jax.tree_util.tree_flatten_with_path(truth)[0]
    reference = {jax.tree_util.keystr(path, simple=True, separator="/") or "params": leaf for path, leaf in named}
    rough = max(_tolerance(dtype) for dtype in _dtypes(found))
    sizes = jax.device_get(_differences(mine, {leaf.path: reference[leaf.path] for leaf in found.leaves}))
    whole_norm = math.sqrt(sum(float(scale) ** 2 for _, scale in sizes.values()))
    for leaf in found.leaves:
        error, scale = sizes[leaf.path]
        if not error <= rough * (scale + 1e-3 * whole_norm):
            raise CoverageError(
                f"the per-example gradients of {leaf.path} do not add up to jax.grad: off by {error:.3g} where the "
                f"gradient's norm is {scale:.3g}. Please report it with this loss; meanwhile move the parameter out of "
                f"the loss, or write its use as a matmul. Uses: {[f'{s.kind} at {s.line}' for s in leaf.sites]}"
            )
    if task.batch_loss is not None:
        whole = float(task.batch_loss(params, batch))
        if not abs(whole - float(summed)) <= 1e-3 * max(abs(float(summed)), 1e-6):
            raise CoverageError(
                f"batch_loss gives {whole:.6g} on the first {len(jax.tree.leaves(batch)[0])} examples and the sum over "
                "single examples is "
                f"{float(summed):.6g}. Examples are coupled (batch norm in training mode, MoE capacity), or batch_loss "
                "is a mean where the sum was wanted. Put normalisation in evaluation mode, then try again."
            )


def check_segments(task: Task, batch: Any, loss_shape: tuple[int, ...]) -> int:
    """Refuse segments that are no `[T]` integers, and numbers of documents that nobody would get a gradient for. The
    largest number of documents in a row.

    Raises:
        ShapeError: what arrived and what was wanted.
    """
    assert task.segments is not None
    found = jax.eval_shape(jax.vmap(task.segments), batch)
    if found.shape[1:] != loss_shape or not loss_shape or not jnp.issubdtype(found.dtype, jnp.integer):
        raise ShapeError(
            f"segments returned {found.dtype}{list(found.shape[1:])} and the loss {list(loss_shape)} for one row; "
            "an integer [T] and a float [T] were wanted, with one entry a token"
        )
    low, high, most = (int(x) for x in _span(task, batch))
    if low < 0 or high > task.documents:
        raise ShapeError(
            f"segments hold numbers from {low} to {high}; 0 (padding) to {task.documents} were wanted, the task's "
            f"`documents` a row. Give Task(documents={max(high, 1)}), or pack fewer."
        )
    return most


@functools.partial(jax.jit, static_argnums=0)
def _span(task: Task, batch: Any) -> tuple[Any, Any, Any]:
    segments = jax.vmap(task.segments)(batch)  # type: ignore[arg-type]  # checked before
    return segments.min(), segments.max(), parts.owners(task, batch).any(2).sum(1).max()


@functools.partial(jax.jit, static_argnums=0)
def _fullest(task: Task, batch: Any) -> Any:
    """The rows in order of how many documents they hold, the fullest first."""
    order = jnp.argsort(-parts.owners(task, batch).any(2).sum(1))
    return jax.tree.map(lambda x: x[order], batch)


def _prove_apart(task: Task, found: Sites, params: Any, batch: Any) -> None:
    """No document's loss may have a gradient through the positions of another, nor change with another's content."""
    axes = parts.axes_of(task, found, params, batch)
    every = [(leaf, site) for leaf in (*found.leaves, *found.derived) for site in leaf.sites]
    seen, changed = jax.device_get(_met(task, found, axes)(params, batch))
    for leaf, site in every:
        outside, all_of_it = seen.get(site.number, (0.0, 0.0))
        if not outside <= 1e-6 * all_of_it:
            raise CoverageError(
                f"the loss of one packed document has a gradient through the positions of another ({outside:.3g} of "
                f"{all_of_it:.3g}), first seen where {leaf.path} is used at {site.line}. Mask the attention by "
                "segment, start positions and states anew in each, mask the target after a document's last token, and "
                "keep the order of the sequence."
            )
    if not changed <= 1e-5:
        raise CoverageError(
            f"the loss of one packed document changes by {changed:.3g} of itself with what another holds, though no "
            "gradient runs between them: something discrete couples them, such as the capacity of a mixture of "
            "experts. Do not pack, or let each document have its own."
        )


def _counts(leaf: Any, segments: Any) -> Any:
    """Does an array of whole numbers count positions, or name the document? Then it is no content: within each document
    it rises by the same step, 0 or 1, everywhere."""
    if leaf.ndim != 1 or not jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.shape != segments.shape:
        return False
    inside, steps = segments[1:] == segments[:-1], leaf[1:] - leaf[:-1]
    return jnp.where(inside, steps == 0, True).all() | jnp.where(inside, steps == 1, True).all()


def _once(fun: Any) -> Any:
    """Compiled in a hurry: a proof runs once, on a few rows. Searching for the fastest products took an H200 75 s for
    one of these programs where 7 do without (and without kernels of XLA's own, which need it). A CPU's compiler takes
    two thirds of the time without optimising."""
    return jax.jit(fun, compiler_options=_HURRIED.get(jax.default_backend()))


@functools.lru_cache(maxsize=16)
def _met(task: Task, found: Sites, axes: parts.Axes):
    """Compiled: the share of each site's squared gradients that lies outside the document whose loss it is of, and the
    largest relative change of a document's loss when its neighbours hold other tokens."""
    length = found.program.out_avals[0].shape[0]

    def exchanged(row: Any, other: Any, owner: Any, which: int) -> Any:
        """A row with the content of every second document taken from another row, in reverse order. Leaf by leaf: those
        that run over the sequence, and only where the row is still cut into the same documents."""
        (leaves, tree), others = jax.tree.flatten(row), jax.tree.leaves(other)
        taken, before = owner[which::2].any(0), task.segments(row)  # type: ignore[misc]  # packed
        for k, axis in axes.rows:
            mine = jnp.moveaxis(leaves[k], axis, 0)
            where = jnp.pad(taken, (0, mine.shape[0] - length)).reshape(-1, *(1,) * (mine.ndim - 1))
            moved = jnp.where(where, jnp.moveaxis(others[k], axis, 0)[::-1], mine)
            moved = jnp.where(_counts(mine, before), mine, moved)
            moved = jnp.moveaxis(moved, 0, axis)
            trial = jax.tree.unflatten(tree, [*leaves[:k], moved, *leaves[k + 1 :]])
            same = (task.segments(trial) == before).all()  # type: ignore[misc]  # packed
            leaves[k] = jnp.where(same, moved, leaves[k])
        return jax.tree.unflatten(tree, leaves)

    def program(params: Any, batch: Any) -> Any:
        owner = parts.owners(task, batch)
        losses, _, pull = forward(found, params, batch)
        mine = jnp.where(owner, losses[:, None], 0).sum(-1)
        each = jax.vmap(pull, in_axes=1, out_axes=1)(owner.astype(losses.dtype))
        seen = {}
        for number, g in each.items():
            if (axis := axes.sites[number]) is not None:
                g = jnp.moveaxis(g, 2 + axis, 2)
                squares = jnp.square(g).reshape(*g.shape[:3], -1).sum(-1)
                own = jnp.pad(owner, [(0, 0), (0, 0), (0, g.shape[2] - length)])
                seen[number] = jnp.where(own, 0, squares).sum(), squares.sum()
        change = []
        for which in (0, 1):
            others = jax.tree.map(lambda x: jnp.roll(x, 1, 0), batch)
            moved = jax.vmap(functools.partial(exchanged, which=which))(batch, others, owner)
            there = jax.vmap(functools.partial(task.loss, params))(moved)
            there = jnp.where(owner, there[:, None], 0).sum(-1)
            off = jnp.abs(there - mine) / jnp.maximum(jnp.abs(mine), 1e-3)
            change.append(off[:, 1 - which :: 2].max(initial=0.0))
        return seen, jnp.maximum(*change)

    return _once(program)


@functools.lru_cache(maxsize=32)
def _both_ways(task: Task, found: Sites):
    """Compiled: the summed gradients from the factors, by path; and the summed loss with its `jax.grad`."""

    def gradients(params, batch):
        _, factors = parts.each_example(task, found, params, batch)
        formed = {leaf.path: layouts.form(leaf, factors[leaf.path]) for leaf in found.leaves}
        return {
            leaf.path: jnp.zeros(leaf.shape, leaf.dtype) if formed[leaf.path] is None else formed[leaf.path].sum(0)
            for leaf in found.leaves
        }

    def total(params, batch):
        losses = jax.vmap(functools.partial(task.loss, params))(batch)
        if task.segments is not None:  # padding is no document
            losses = jnp.where(parts.owners(task, batch).any(1), losses, 0)
        return jnp.sum(losses)

    return _once(gradients), _once(jax.value_and_grad(total, allow_int=True))


@jax.jit
def _differences(mine: dict[str, Any], truth: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(norm of the difference, norm of the truth) by path; numbers, which every process can read."""

    def norm(x):
        largest = jnp.max(jnp.abs(x), initial=0.0)  # squares of it may overflow
        return largest * jnp.linalg.norm((x / jnp.where(largest > 0, largest, jnp.ones_like(largest))).ravel())

    def wide(x):
        return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)

    return {path: (norm(wide(mine[path]) - wide(g)), norm(wide(g))) for path, g in truth.items()}


def _dtypes(found: Sites) -> set[Any]:
    """Of parameters and of the values they meet: the coarsest decides how near two ways of adding up can come."""
    every = (*found.leaves, *found.derived)
    return {leaf.dtype for leaf in every} | {site.tap_dtype for leaf in every for site in leaf.sites}


def _tolerance(dtype: Any) -> float:
    return {8: 1e-9, 4: 1e-3}.get(jnp.dtype(dtype).itemsize, 5e-2)
