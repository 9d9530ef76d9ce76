"""Scores without a sketch: the curvature in its own basis, the training gradients as factors, streamed.

`score_iq = - <H^-1 grad f_q, grad loss_i>` over all parameters. Only the queries' directions stand in memory, a chunk
of them at a time (`DIRECTION_BYTES`); a training row is seen once a chunk. Where gradients have rank one, directions
may be kept as few outer products instead (`separable`), all queries at once.
"""

import functools
import math
from collections.abc import Iterator
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
from uimjax.curvature.separable import Terms, Thin
from uimjax.interpret import base, curved, solved
from uimjax.interpret.base import Method
from uimjax.interpret.solved import Solver
from uimjax.taps import capture
from uimjax.task import Measurement, Task

DIRECTION_BYTES = 256 << 20  # of directions held at once
FORMED_BYTES = 64 << 20  # of training gradients formed at once, where they are no outer products
THIN = 4  # a matrix is worth R terms where they are so many times fewer numbers than it


class Ready(NamedTuple):
    """A method made ready for a model: the blocks of its loss and of the measurement, the curvature, and what to say.
    `terms`: `{path: Terms}` of the parameters whose directions stay outer products. `solve`: where the curvature is no
    diagonal in some basis, from gradients to `H^-1` of them."""

    laid: Laid
    asked: Laid
    inverse: Rotated
    terms: dict[str, Terms]
    how: dict[str, Any]
    solve: Solver | None = None
    question: str = ""  # the measurement's name


def ready(
    task: Task, params: Any, data: Any, measurement: Measurement, queries: Any, method: Method, batch_size: int,
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
        solve, how = solved.solver(choice, task, laid, params, data, asked, queries, batch_size)
        plain, question = (Laid(its.sites, ()) for its in (laid, asked))
        return Ready(plain, question, rotated.identity(plain), {}, how, solve)
    assert isinstance(choice, Kronecker)
    inverse, chosen = curved.curvature(choice, task, laid, params, data, asked, queries, batch_size)
    terms = {}
    if choice.terms:
        thin = _rank_one(laid, params, data) & _rank_one(asked, params, queries)
        shapes = blocks.shapes(laid)
        worth = {path: THIN * choice.terms * (i + o) < n * i * o for path, (n, i, o) in shapes.items()}
        terms = {path: separable.terms(inverse, path, choice.terms) for path in sorted(thin) if worth[path]}
    return Ready(laid, asked, inverse, terms, {"curvature": str(choice), "damping": chosen})


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
    """`- H^-1 grad f` in the rotated basis, over the query's own norm where the method normalises it: `{path: formed
    [Q, n, I, O], or Thin}`, a chunk of queries after the other; of their mean without `each`."""
    thin = its.terms if each else {}
    size = 4 * sum(x.size for path, x in its.inverse.values.items() if path not in thin)
    size += 4 * sum(its.terms[path].u.shape[1] * sum(its.inverse.values[path].shape[1:]) for path in thin)
    chunk = int(np.clip(DIRECTION_BYTES // max(size, 1), 1, row.count(queries)))
    enter, whole = curved.entering(its.asked), None
    for batch in row.batches(queries, chunk):
        inside = jax.tree.map(lambda x, m=batch.mask: x[m], enter(params, batch.rows, its.inverse.bases))
        base.finite(
            jnp.stack([jnp.sum(x) for x in jax.tree.leaves(inside)]), f"gradients of the measurement {its.question!r}"
        )
        if each:
            yield _divided(its, inside, thin, method)
            continue
        added = {path: rotated.formed(x).sum(0, keepdims=True) for path, x in inside.items()}
        whole = added if whole is None else jax.tree.map(jnp.add, whole, added)
    if whole is not None:
        yield _divided(its, {path: x / row.count(queries) for path, x in whole.items()}, {}, method)


def _divided(its: Ready, inside: dict[str, Any], thin: dict[str, Terms], method: Method) -> dict[str, Any]:
    inverse = its.inverse
    if its.solve is not None:
        plain = blocks.split(its.laid, {path: rotated.formed(block) for path, block in inside.items()})
        return {path: -x for path, x in blocks.together(its.laid, its.solve(plain)).items()}
    power = {"unit": -1.0, "update": 0.0}.get(method.normalize)
    scale = jnp.full(jax.tree.leaves(inside)[0].shape[0], -1.0)
    if power is not None:
        scale = scale / jnp.maximum(jnp.sqrt(sum(rotated.square(inverse, inside, power).values())), 1e-30)
    out = {}
    for path, block in inside.items():
        if path in thin and isinstance(block, Outer):
            out[path] = separable.thin(Outer(block.a * scale[:, None, None], block.g), thin[path])
        else:
            divided = rotated.formed(block) * rotated.weights(inverse, path, -1.0)[None]
            out[path] = divided * scale[:, None, None, None]
    return out


def by_parameter(
    its: Ready, params: Any, data: Any, queries: Any, method: Method, each: bool, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Each parameter's part of the scores, `{path: [N, q]}`, for one chunk of queries after the other."""
    program = scored(its.laid, method.normalize, False)
    for chunk in directions(its, params, queries, method, each):
        parts = []
        for batch in row.batches(data, batch_size):
            found = program(params, batch.rows, its.inverse, chunk)
            parts.append({path: np.asarray(x)[batch.mask] for path, x in found.items()})
        yield {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


def streamed(
    its: Ready, params: Any, data: Any, queries: Any, method: Method, each: bool, batch_size: int
) -> np.ndarray:
    """`[N, Q]`, or `[N, 1]` of the queries' mean."""
    program, columns = scored(its.laid, method.normalize, True), []
    for chunk in directions(its, params, queries, method, each):
        parts = [
            np.asarray(program(params, batch.rows, its.inverse, chunk))[batch.mask]
            for batch in row.batches(data, batch_size)
        ]
        columns.append(np.concatenate(parts))
    return np.concatenate(columns, 1)


@functools.lru_cache(maxsize=32)
def scored(laid: Laid, normalize: str, added: bool):
    """Compiled `(params, rows, inverse, directions) -> {path: [B, Q]}`, or their sum."""
    power = {"unit": -1.0, "self": -1.0, "update": -2.0}.get(normalize)

    def program(params: Any, rows: Any, inverse: Rotated, chunk: Any) -> Any:
        made = blocks.blocks(laid, capture(laid.sites, params, rows)[1])
        size = made[0].examples
        wide = sum(math.prod(block.shape) for block in made if not block.rank_one)
        some = int(np.clip(FORMED_BYTES // (4 * max(wide, 1)), 1, size))
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
        products = rotated.products(inside, {path: v for path, v in chunk.items() if path not in thin})
        products |= {path: separable.products(inside[path], v) for path, v in thin.items()}
        if power is not None:
            scale = row_scale(inverse, inside, power)
            products = {path: x * scale[:, None] for path, x in products.items()}
        return sum(products.values()) if added else products

    return jax.jit(program)


def row_scale(inverse: Rotated, inside: dict[str, Any], power: float) -> Any:
    """One over the row's own norm; a row without any gradient caused nothing and scores 0."""
    length = jnp.sqrt(sum(rotated.square(inverse, inside, power).values()))
    return jnp.where(length > 0, 1 / jnp.maximum(length, 1e-30), 0.0)
