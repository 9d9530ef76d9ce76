"""Scores without a sketch: the curvature in its own basis, the training gradients as factors, streamed.

`score_iq = - <H^-1 grad f_q, grad loss_i>` over all parameters. Only the queries' directions stand in memory, a chunk
of them at a time (`DIRECTION_BYTES`); a training row is seen once a chunk. Directions may be kept as few outer products
instead (`separable`): where gradients have rank one by few terms of the inverse, else by few singular pairs.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.curvature import adam, blocks, rotated, separable
from uimjax.curvature.adam import Adam
from uimjax.curvature.blocks import Block, Laid
from uimjax.curvature.harmonic import Harmonic
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.operator import Operator
from uimjax.curvature.rotated import Outer, Rotated
from uimjax.curvature.separable import Low, Terms, Thin
from uimjax.interpret import base, curved, solved
from uimjax.interpret.base import Method
from uimjax.interpret.solved import Solver
from uimjax.rows import Pass
from uimjax.taps import capture
from uimjax.task import Measurement, Task

DIRECTION_BYTES = 256 << 20  # of directions held at once
FORMED_BYTES = 64 << 20  # of training gradients formed at once, where they are no outer products
THIN = 4  # a matrix is worth R terms, or singular pairs, where they are so many times fewer numbers than it


class Ready(NamedTuple):
    """A method made ready for a model: the blocks of its loss and of the measurement, the curvature, and what to say.
    `terms`: `{path: Terms}` of the parameters whose directions stay outer products; `low`: `{path: rank}` of those that
    keep few singular pairs of their directions. `solve`: where the curvature is no
    diagonal in some basis, from gradients to `H^-1` of them."""

    laid: Laid
    asked: Laid
    inverse: Rotated
    terms: dict[str, Terms]
    how: dict[str, Any]
    low: Mapping[str, int] = MappingProxyType({})
    solve: Solver | None = None
    question: str = ""  # the measurement's name


def ready(
    task: Task, params: Any, data: Any, measurement: Measurement, queries: Any, method: Method, how: Pass,
    optimizer: Any = None,
) -> Ready:  # fmt: skip
    """Measure the curvature, choose its damping, prepare what the scores need; `optimizer`: the state that Adam's
    metric is read from. Raises as `methods.score`."""
    found = base.training_sites(task, params, data)
    laid = curved.laid_out(found, params, data)
    asked = curved.laid_out(base.query_sites(found, measurement, params, queries), params, queries, laid)
    choice = method.curvature
    if choice is None:
        laid, asked = (Laid(its.sites, ()) for its in (laid, asked))
        return Ready(laid, asked, rotated.identity(laid), {}, {})
    if isinstance(choice, Adam):
        laid, asked = (Laid(its.sites, ()) for its in (laid, asked))
        return Ready(laid, asked, adam.metric(choice, laid, optimizer), {}, {"curvature": str(choice)})
    if isinstance(choice, Operator | Harmonic):
        solve, said = solved.solver(choice, task, laid, params, data, asked, queries, how)
        plain, question = (Laid(its.sites, ()) for its in (laid, asked))
        return Ready(plain, question, rotated.identity(plain), {}, said, solve=solve)
    assert isinstance(choice, Kronecker)
    inverse, chosen = curved.curvature(choice, task, laid, params, data, asked, queries, how)
    terms, shapes = {}, blocks.shapes(laid)
    if choice.terms:
        thin = _rank_one(laid, params, data) & _rank_one(asked, params, queries)
        worth = {path: THIN * choice.terms * (i + o) < n * i * o for path, (n, i, o) in shapes.items()}
        terms = {path: separable.terms(inverse, path, choice.terms) for path in sorted(thin) if worth[path]}
    rank = choice.query_rank
    said: dict[str, Any] = {"curvature": str(choice), "damping": chosen}
    if not rank:
        return Ready(laid, asked, inverse, terms, said)
    low = {path: rank for path, (_, i, o) in shapes.items() if THIN * rank * (i + o) < i * o}
    return Ready(laid, asked, inverse, terms, said | {"query_rank": {"lost": 0.0}}, low)


def _rank_one(laid: Laid, params: Any, rows: Any) -> set[str]:
    """The blocks whose gradient of one row is an outer product; nothing is computed."""
    few = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), jax.typeof(x).dtype), rows)
    found: set[str] = set()

    def look(params: Any, rows: Any) -> int:
        made = blocks.blocks(laid, capture(laid.sites, params, rows)[1])
        found.update(block.path for block in made if block.rank_one)
        return 0

    jax.eval_shape(look, params, few)
    return found


def directions(its: Ready, params: Any, queries: Any, method: Method, each: bool) -> Iterator[dict[str, Any]]:
    """`- H^-1 grad f` in the basis where rows are `met`, over the query's own norm where the method normalises it:
    `{path: formed [Q, n, I, O], Thin or Low}`, a chunk of queries after the other; of their mean without `each`."""
    thin, low, values = its.terms if each else {}, its.low if each else {}, its.inverse.values
    wide = 4 * sum(x.size for path, x in values.items() if path not in thin)
    ranks = {path: its.terms[path].u.shape[1] for path in thin} | {**low}
    size = 4 * sum(x.size for path, x in values.items() if path not in ranks)
    size += 4 * sum(rank * values[path].shape[0] * sum(values[path].shape[1:]) for path, rank in ranks.items())
    chunk = int(np.clip(DIRECTION_BYTES // max(size, 1), 1, row.count(queries)))
    piece = int(np.clip(FORMED_BYTES // max(wide, 1), 1, chunk))  # what is formed on the way is a multiple of it
    if not each:
        yield _finish(
            its, {path: x / row.count(queries) for path, x in _sums(its, params, queries, piece).items()}, method
        )
        return
    program = _program(its.asked, method.normalize, its.solve is not None)
    for first in range(0, row.count(queries), chunk):
        some = row.take(queries, np.arange(first, min(first + chunk, row.count(queries))))
        parts = []
        for batch in row.batches(some, piece):
            found, total = program(params, batch.rows, its.inverse, thin)
            base.finite(total, f"gradients of the measurement {its.question!r}")
            found = _cut(its, found, low)
            parts.append(found if batch.mask.all() else _first(found, int(batch.mask.sum())))
        together = {path: _joined([part.pop(path) for part in parts]) for path in list(parts[0])}
        yield together if its.solve is None else _finish(its, together, method)


def _sums(its: Ready, params: Any, queries: Any, piece: int) -> dict[str, Any]:
    """The measurement's gradients added up over the queries, `{path: [1, n, I, O]}`."""
    program, whole = _program(its.asked, "", True), None
    for batch in row.batches(queries, piece):
        found, total = program(params, batch.rows, its.inverse, {})
        base.finite(total, f"gradients of the measurement {its.question!r}")
        added = {path: x[: batch.mask.sum()].sum(0, keepdims=True) for path, x in found.items()}
        whole = added if whole is None else jax.tree.map(jnp.add, whole, added)
    assert whole is not None
    return whole


def _cut(its: Ready, found: dict[str, Any], low: Mapping[str, int]) -> dict[str, Any]:
    """Few singular pairs in place of formed directions; `how` holds the largest share of a query's squared norm, over
    the matrices that are cut, that is lost so."""
    cut = {path: separable.truncated(found[path], rank) for path, rank in low.items() if path in found}
    if not cut:  # none asked for, or of parameters that the measurement does not touch
        return found
    lost, whole = (sum(np.asarray(made[k], np.float64) for made in cut.values()) for k in (1, 2))
    share = float(np.max(lost / np.maximum(whole, 1e-300)))
    its.how["query_rank"] = {"lost": max(share, its.how["query_rank"]["lost"])}
    return found | {path: made[0] for path, made in cut.items()}


def _first(found: dict[str, Any], count: int) -> dict[str, Any]:
    """Of directions those of real queries, which come before the padding."""
    return {
        path: jax.tree.map(lambda x: x[:, :, :count], v) if isinstance(v, Thin | Low) else v[:count]
        for path, v in found.items()
    }


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    axis = 2 if isinstance(parts[0], Thin | Low) else 0
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis), *parts)


@functools.lru_cache(maxsize=32)
def _program(asked: Laid, normalize: str, plain: bool):
    """Compiled `(params, queries, inverse, terms) -> (directions, or the formed gradients alone; sums to check)`."""

    def program(params: Any, rows: Any, inverse: Rotated, thin: dict[str, Terms]) -> Any:
        inside = curved.inside(asked, params, rows, inverse.bases)
        total = jnp.stack([jnp.sum(x) for x in jax.tree.leaves(inside)])
        formed = {path: rotated.formed(x) for path, x in inside.items()}
        return (formed if plain else _divided(inverse, inside, thin, normalize)), total

    return jax.jit(program)


def _finish(its: Ready, formed: dict[str, Any], method: Method) -> dict[str, Any]:
    """Directions of formed gradients."""
    if its.solve is None:
        return _divided(its.inverse, formed, {}, method.normalize)
    plain = blocks.split(its.laid, formed)
    return {path: -x for path, x in blocks.together(its.laid, its.solve(plain)).items()}


def _divided(inverse: Rotated, inside: dict[str, Any], thin: dict[str, Terms], normalize: str) -> dict[str, Any]:
    power = {"unit": -1.0, "update": 0.0}.get(normalize)
    scale = jnp.full(jax.tree.leaves(inside)[0].shape[0], -1.0)
    if power is not None:
        scale = scale / jnp.maximum(jnp.sqrt(sum(rotated.square(inverse, inside, power).values())), 1e-30)
    out = {}
    for path, block in inside.items():
        if path in thin and isinstance(block, Outer):
            out[path] = separable.thin(Outer(block.a * scale[:, None, None], block.g), thin[path])
            continue
        divided = rotated.formed(block) * rotated.weights(inverse, path, -1.0)[None] * scale[:, None, None, None]
        out[path] = divided if normalize != "none" else rotated.turn(inverse.bases, {path: divided}, back=True)[path]
    return out


def met(its: Ready, method: Method, chunk: dict[str, Any]) -> Rotated:
    """The curvature with the bases that training rows are rotated into. Where no norm of theirs is asked for, formed
    directions are turned back instead: once, not once a row."""
    if method.normalize != "none":
        return its.inverse
    thin = {path for path, v in chunk.items() if isinstance(v, Thin)}
    return its.inverse._replace(
        bases={path: basis if path in thin else (None, None) for path, basis in its.inverse.bases.items()}
    )


def by_parameter(
    its: Ready, params: Any, data: Any, queries: Any, method: Method, each: bool, how: Pass
) -> Iterator[dict[str, np.ndarray]]:
    """Each parameter's part of the scores, `{path: [N, q]}`, for one chunk of queries after the other."""
    program = scored(its.laid, method.normalize, False)
    for chunk in directions(its, params, queries, method, each):
        inverse = met(its, method, chunk)
        yield row.gathered(how, data, lambda rows: program(params, rows, inverse, chunk))  # noqa: B023  # called at once


def streamed(its: Ready, params: Any, data: Any, queries: Any, method: Method, each: bool, how: Pass) -> np.ndarray:
    """`[N, Q]`, or `[N, 1]` of the queries' mean."""
    program, whole, done = scored(its.laid, method.normalize, True), None, 0
    asked = row.count(queries) if each else 1
    for chunk in directions(its, params, queries, method, each):
        inverse = met(its, method, chunk)
        part = row.gathered(how, data, lambda rows: program(params, rows, inverse, chunk))  # noqa: B023
        if part.shape[1] == asked:
            return part
        whole = np.empty((len(part), asked), part.dtype) if whole is None else whole
        whole[:, done : done + part.shape[1]] = part
        done += part.shape[1]
    assert whole is not None
    return whole


@functools.lru_cache(maxsize=32)
def scored(laid: Laid, normalize: str, added: bool):
    """Compiled `(params, rows, inverse, directions) -> {path: [B, Q]}`, or their sum."""
    power = {"unit": -1.0, "self": -1.0, "update": -2.0}.get(normalize)

    def program(params: Any, rows: Any, inverse: Rotated, chunk: Any) -> Any:
        made = blocks.blocks(laid, capture(laid.sites, params, rows)[1])
        size = made[0].examples
        wide = max((math.prod(block.shape) for block in made if not block.rank_one), default=1)  # one stands at a time
        some = -(-size // -(-size // int(np.clip(FORMED_BYTES // (4 * wide), 1, size))))  # parts of equal length
        if some == size:
            return products_of(made, inverse, chunk)

        def cut(x: Any) -> Any:  # rows beyond the last are zeros, and cut off again
            return jnp.pad(x, [(0, -size % some)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, some, *x.shape[1:])

        found = jax.lax.map(
            lambda held: products_of(blocks.rebuilt(made, held), inverse, chunk),
            jax.tree.map(cut, blocks.arrays(made)),
        )
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[:size], found)

    def products_of(made: list[Block], inverse: Rotated, chunk: Any) -> Any:
        inside = rotated.enter(made, inverse.bases)
        thin = {path: v for path, v in chunk.items() if isinstance(v, Thin)}
        low = {path: v for path, v in chunk.items() if isinstance(v, Low)}
        products = rotated.products(inside, {path: v for path, v in chunk.items() if path not in thin | low})
        products |= {path: separable.products(inside[path], v) for path, v in thin.items()}
        products |= {path: separable.low_products(inside[path], v) for path, v in low.items() if path in inside}
        if power is not None:
            scale = row_scale(inverse, inside, power)
            products = {path: x * scale[:, None] for path, x in products.items()}
        return sum(products.values()) if added else products

    return jax.jit(program)


def row_scale(inverse: Rotated, inside: dict[str, Any], power: float) -> Any:
    """One over the row's own norm; a row without any gradient caused nothing and scores 0."""
    length = jnp.sqrt(sum(rotated.square(inverse, inside, power).values()))
    return jnp.where(length > 0, 1 / jnp.maximum(length, 1e-30), 0.0)
