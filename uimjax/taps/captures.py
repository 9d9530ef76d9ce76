"""The taps' two calls: `sites` (shapes only, proven against `jax.grad` by `verify`) and `capture` (factored gradients).

Guarantees: the model is never changed; every float parameter is accounted for; the result does not depend on the
other examples of the batch.
"""

import difflib
import fnmatch
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import BudgetError, ShapeError, TapError, UsageError
from uimjax.taps import _compat, layouts, plan, run
from uimjax.taps.base import Direct, Factor, Leaf
from uimjax.task import Task

DIRECT_BUDGET = 2 << 30  # bytes a batch may spend on dense per-example gradients of direct sites
Factors = dict[str, tuple[Factor, ...]]


@dataclass(frozen=True, eq=False)
class Sites:
    """Where the parameters of a loss meet data. `leaves`: one entry a float parameter that is attributed; `excluded`:
    (path, shape) of those that the task leaves out; `closed`: float constants the loss closes over (shape, dtype),
    which get no gradient. Prints as a table."""

    leaves: tuple[Leaf, ...]
    numbers: tuple[int, ...]  # of the leaves among all leaves of the parameters
    excluded: tuple[tuple[str, tuple[int, ...]], ...]
    derived: tuple[Leaf, ...]
    closed: tuple[tuple[tuple[int, ...], str], ...]
    program: Any
    constants: tuple[Any, ...]
    plan: plan.Plan
    params_tree: Any
    example_tree: Any

    @property
    def coverage(self) -> float:
        """Share of the float parameters' numbers that are attributed: below 1 only where the task excludes some, for
        one whose gradient is not accounted for has raised before."""
        mine = sum(leaf.size for leaf in self.leaves)
        return mine / (mine + sum(math.prod(shape) for _, shape in self.excluded))

    @property
    def used(self) -> tuple[Leaf, ...]:
        """The parameters that have a gradient at all."""
        return tuple(leaf for leaf in self.leaves if leaf.used)

    def __str__(self) -> str:
        total = sum(leaf.size for leaf in self.leaves) + sum(math.prod(shape) for _, shape in self.excluded)
        rows = [("parameter", "kinds", "shape", "repeats", "share")]
        for leaf in self.leaves:
            through = ["derived"] if leaf.through else []
            kinds = ", ".join([site.kind for site in leaf.sites] + through) or "unused"
            repeats = max((site.repeats for site in leaf.sites), default=1)
            share = f"{leaf.size / total:.1%}"
            rows.append((leaf.path, kinds, "x".join(map(str, leaf.shape)) or "scalar", str(repeats), share))
        for path, shape in self.excluded:
            share = f"{math.prod(shape) / total:.1%}"
            rows.append((path, "excluded", "x".join(map(str, shape)) or "scalar", "", share))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.append(f"coverage {self.coverage:.0%} of {total:,} parameters")
        lines += [f"closed over (no gradient): {dtype}{list(shape)}" for shape, dtype in self.closed]
        return "\n".join(line.rstrip() for line in lines)


def sites(task: Task, params: Any, example: Any, like: Sites | None = None) -> Sites:
    """Follow one example's loss; nothing is computed. `params` and `example` may be arrays or `ShapeDtypeStruct`s.

    `like`: lay each parameter out in rows and columns as these sites do, so that the sketches of two programs over
    the same parameters (a training loss and a measurement) can be multiplied; the same parameters are attributed.

    Raises:
        UsageError: `include` leaves nothing, or a pattern matches no parameter.
        TapError: the loss has no reverse-mode derivative there, or no data reach it.
        ShapeError: the loss is neither a scalar nor `[T]`.
    """
    leaves, params_tree = jax.tree_util.tree_flatten_with_path(params)
    example_leaves, example_tree = jax.tree_util.tree_flatten(example)
    paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in leaves)
    spec = tuple(_spec(leaf) for _, leaf in leaves), tuple(_spec(leaf) for leaf in example_leaves)
    fixed = tuple((leaf.path, leaf.layout) for leaf in like.leaves) if like else ()
    floats = [path for path, (_, dtype) in zip(paths, spec[0], strict=True) if jnp.issubdtype(dtype, jnp.inexact)]
    chosen = frozenset(path for path, _ in fixed) if like else _chosen(task, floats)
    return _sites(task, paths, params_tree, example_tree, *spec, fixed, chosen)


def _chosen(task: Task, paths: list[str]) -> frozenset[str]:
    """The parameters that the task's patterns leave in."""
    if not paths:  # said below, once the loss has been followed
        return frozenset()
    kept = matching(paths, task.include, task.exclude)
    if not kept:
        raise UsageError(f"include={task.include} and exclude={task.exclude} leave no parameter to attribute")
    return frozenset(kept)


def matching(paths: list[str], include: tuple[str, ...], exclude: tuple[str, ...]) -> list[str]:
    """The paths of float parameters that patterns leave in, in their order.

    Raises:
        UsageError: a pattern matches nothing.
    """
    for pattern in (*include, *exclude):
        if not fnmatch.filter(paths, pattern):
            near = difflib.get_close_matches(pattern.strip("*"), paths, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the paths are {', '.join(paths[:8])}"
            raise UsageError(f"the pattern {pattern!r} matches no float parameter{hint}")
    matched = [path for path in paths if any(fnmatch.fnmatchcase(path, p) for p in include)]
    return [path for path in matched if not any(fnmatch.fnmatchcase(path, p) for p in exclude)]


def _spec(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype as JAX will see them (a NumPy int64 is an int32 unless x64 is on)."""
    return tuple(np.shape(leaf)), leaf.dtype if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf).dtype


@functools.lru_cache(maxsize=64)
def _sites(task: Task, paths, params_tree, example_tree, params_spec, example_spec, fixed, chosen) -> Sites:
    params_in = [jax.ShapeDtypeStruct(*s) for s in params_spec]
    example_in = [jax.ShapeDtypeStruct(*s) for s in example_spec]

    def flat(*args):
        params = jax.tree.unflatten(params_tree, args[: len(params_in)])
        return task.loss(params, jax.tree.unflatten(example_tree, args[len(params_in) :]))

    program = jax.make_jaxpr(flat)(*params_in, *example_in)
    out = program.out_avals
    if len(out) != 1 or len(out[0].shape) > 1 or not jnp.issubdtype(out[0].dtype, jnp.floating):
        raise ShapeError(
            f"the loss of one example returned {[str(a) for a in out]}; a float scalar, or [T] with one entry a token, "
            "was wanted. Sum or index it inside the loss."
        )
    built, state, loss_class = plan.build(program, params_in, {k for k, p in enumerate(paths) if p in chosen})
    if loss_class is not plan.DATA:
        raise TapError("the loss does not depend on the example, so no training example can have caused anything")
    groups: dict[int, list[Any]] = {}
    for site in state.sites:
        groups.setdefault(site.source, []).append(site)

    layout_of = dict(fixed)
    derived = [n for n in range(len(params_in), len(state.sources)) if n in groups]

    def leaf(source: int, path: str) -> Leaf:
        shape, dtype = state.sources[source].shape, state.sources[source].dtype
        used = tuple(groups.get(source, ()))
        through = tuple(n for n in derived if source in state.sources[n].leaves)
        return Leaf(path, shape, dtype, layout_of.get(path) or layouts.choose(used, shape), used, through)

    for k, p in enumerate(params_in):
        if jnp.issubdtype(p.dtype, jnp.complexfloating):
            raise TapError(f"{paths[k]} is complex ({p.dtype}); keep real and imaginary parts as two real arrays")
    floats = [k for k, p in enumerate(params_in) if jnp.issubdtype(p.dtype, jnp.floating)]
    attributed = tuple(k for k in floats if paths[k] in chosen)
    leaves = tuple(leaf(k, paths[k]) for k in attributed)
    excluded = tuple((paths[k], tuple(params_in[k].shape)) for k in floats if paths[k] not in chosen)
    if not any(found.used for found in leaves):
        raise TapError("no float parameter has a gradient in this loss, so there is nothing to attribute")
    constants = tuple(_compat.constants(program))
    consts = [c for c in constants if jnp.issubdtype(jax.typeof(c).dtype, jnp.floating) and np.ndim(c)]
    return Sites(
        leaves,
        attributed,
        excluded,
        tuple(leaf(k, f"derived/{k}") for k in derived),
        tuple((tuple(c.shape), str(c.dtype)) for c in consts),
        program,
        constants,
        built,
        params_tree,
        example_tree,
    )


def capture(found: Sites, params: Any, batch: Any, budget: int = DIRECT_BUDGET) -> tuple[Any, Factors]:
    """Losses `[B]` (nats, summed over tokens) and each parameter's factors, in ONE forward and backward pass.

    Pure and jittable. The gradient of example b with respect to a parameter is the sum over its factors; no parameter
    gradient is formed unless the site is direct.

    Raises:
        BudgetError: the dense per-example gradients of direct sites would exceed `budget` bytes.
    """
    check_budget(found, jax.tree.leaves(batch)[0].shape[0], budget)
    losses, records, pull = forward(found, params, batch)
    factors = assemble(found, params, records, pull(jnp.ones_like(losses)), layouts.factor)
    return losses.sum(tuple(range(1, losses.ndim))), factors


def forward(found: Sites, params: Any, batch: Any) -> tuple[Any, Any, Callable[[Any], dict[int, Any]]]:
    """(losses `[B]` or `[B, T]`, the records of the sites, and the backward pass: from a cotangent of the losses to the
    gradients `g` at the sites, by number)."""
    args, rows = jax.tree.leaves(params), jax.tree.leaves(batch)
    size = rows[0].shape[0]

    def one(row: Any, zeros: Any) -> Any:
        outs, records = run.run(found.plan, [*args, *row], zeros)
        return outs[0], records

    every = [site for leaf in (*found.leaves, *found.derived) for site in leaf.sites]
    zeros = {site.number: jnp.zeros((size, *site.tap_shape), site.tap_dtype) for site in every}
    losses, pull, records = jax.vjp(lambda zeros: jax.vmap(one)(rows, zeros), zeros, has_aux=True)
    return losses, records, lambda cotangent: pull(cotangent)[0]


def assemble(found: Sites, params: Any, records: Any, g: Any, make: Callable[..., Factor]) -> Factors:
    """Each parameter's factors from what its sites recorded and their gradients: `make` is `layouts.factor`, or one
    that takes rows apart on the way."""
    factors = {leaf.path: _leaf_factors(leaf, records, g, make) for leaf in found.leaves}
    return _pull_back(found, jax.tree.leaves(params), records, g, factors, make) if found.derived else factors


def _leaf_factors(leaf: Leaf, records: Any, g: Any, make: Callable[..., Factor]) -> tuple[Factor, ...]:
    """Factored uses one by one; plain gradients of the same parameter are added into one."""
    made = [make(site, records.get(site.number), g[site.number], leaf.layout, leaf.shape) for site in leaf.sites]
    plain = [f.gradient for f in made if isinstance(f, Direct)]
    factored = tuple(f for f in made if not isinstance(f, Direct))
    return (*factored, Direct(functools.reduce(jnp.add, plain))) if plain else factored


def _pull_back(found: Sites, args: list[Any], records: Any, g: Any, factors: Factors, make: Any) -> Factors:
    """Gradients of derived values, formed and carried back to the parameters by the parameter-only part's own vjp."""
    numbers = [int(leaf.path.split("/")[1]) for leaf in found.derived]
    cotangents = []
    for leaf in found.derived:
        formed = layouts.form(leaf, _leaf_factors(leaf, records, g, make))
        assert formed is not None  # a derived value without a use is none
        cotangents.append(formed.astype(leaf.dtype))

    def derive(moved):
        full = list(args)
        for k, value in zip(found.numbers, moved, strict=True):
            full[k] = value
        known = run.derived_values(found.plan, full)
        return [known[n] for n in numbers]

    _, vjp = jax.vjp(derive, [args[k] for k in found.numbers])
    (pulled,) = jax.vmap(vjp)(cotangents)
    return {
        leaf.path: _add_direct(factors[leaf.path], extra) if leaf.through else factors[leaf.path]
        for leaf, extra in zip(found.leaves, pulled, strict=True)
    }


def _add_direct(factors: tuple[Factor, ...], extra: Any) -> tuple[Factor, ...]:
    if factors and isinstance(factors[-1], Direct):
        return (*factors[:-1], Direct(factors[-1].gradient + extra))
    return (*factors, Direct(extra))


def check_budget(found: Sites, batch_size: int, budget: int = DIRECT_BUDGET) -> None:
    """Refuse a batch whose dense per-example gradients would not fit, naming the parameter."""
    for leaf in (*found.leaves, *found.derived):
        for size, line in _formed(found, leaf):
            need = batch_size * jnp.dtype(leaf.dtype).itemsize * size
            if need > budget:
                raise BudgetError(
                    f"{leaf.path} {list(leaf.shape)} meets data at {line} in a way that has no factored form, and "
                    f"its per-example gradients for a batch of {batch_size} need {need / 2**30:.1f} GiB "
                    f"(budget {budget / 2**30:.1f} GiB). Use a batch of at most {max(1, budget * batch_size // need)}, "
                    "or rewrite that line as a matmul, a convolution, an embedding or an elementwise scale."
                )


def _formed(found: Sites, leaf: Leaf) -> list[tuple[int, str]]:
    """(numbers an example, line) of each gradient of this parameter that is formed."""
    out = [(leaf.size, "a value derived from parameters")] if leaf.through or leaf in found.derived else []
    for site in leaf.sites:
        if site.kind == "direct" or (
            site.kind in layouts.FACTORED and layouts.orientation(site, leaf.layout) == "apart"
        ):
            out.append((max(leaf.size, math.prod(site.tap_shape)), site.line))
    return out
