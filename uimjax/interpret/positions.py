"""Scores of single tokens: which of a document's tokens made it a proponent, and of which of the question's.

The score of a row is linear in its gradient, and the gradient of a row is the sum of the gradients of its tokens'
losses. So the token's share is `-<H^-1 grad f, grad loss_it>`, scaled as the row is, and the shares of a row add up to
the row's own score. One product along the direction gives all T shares of a row; no gradient of a token is formed. It
is taken by differentiating the backward pass, so that a loss without a forward-mode derivative (custom_vjp) has it too.
(What runs *through* position t, the term a_t (x) g_t, is another thing: it mixes the losses of later tokens.)

The other side likewise: a measurement that is a sum over the question's tokens has shares `-<grad f_t, H^-1 grad
loss_i>`, which add up to the same score.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax.errors import ShapeError
from uimjax.interpret import base
from uimjax.interpret.trace import Asked
from uimjax.sketch import AnySketch
from uimjax.taps import Sites
from uimjax.task import Task


def token_scores(
    asked: Asked, task: Task, params: Any, documents: Any, batch_size: int = 64, number: int = 0
) -> np.ndarray:
    """`[N, T]`: each token's share of its row's score for question `number` of those made ready.

    `documents` are rows like the training rows; `task.loss` must return `[T]`. Summed over T: the row's own score.

    Raises:
        ShapeError: the loss is a scalar.
    """
    _check_tokens(task, params, documents)
    parts = []
    for unit, norms, shares in _units(
        asked, task, params, documents, batch_size, asked.directions[number : number + 1]
    ):
        scale = base.row_scale(asked.method, asked.inverse, unit, norms) / jnp.maximum(norms, 1e-30)
        parts.append(np.asarray(shares * scale[:, None]))
    return np.concatenate(parts)


def query_token_scores(
    asked: Asked, parts: Callable[[Any, Any], Any], task: Task, params: Any, query: Any, documents: Any,
    number: int = 0, batch_size: int = 64,
) -> np.ndarray:  # fmt: skip
    """`[N, T]`: for each of the `documents` the share of each token of the question in the row's score, which they add
    up to. `query`: one row, question `number` of those made ready; `parts(params, query)` `[T]`: numbers whose
    gradients add up to the measurement's.

    Raises:
        ShapeError: `parts` is one number.
    """
    found = base.training_sites(task, params, documents, check=False)
    if len(jax.eval_shape(parts, params, query).shape) != 1:
        raise ShapeError("parts of a measurement are one number a token, [T]")
    drawn, program = sketching.drawn(found, asked.held.sketch), _lifted(parts, found, asked.held.sketch)
    method, rows = asked.method, []
    for unit, norms, _ in _units(asked, task, params, documents, batch_size, None):
        solved = unit if method.of_rows is None else method.of_rows.solve(asked.inverse, unit, power=-1.0)
        solved = solved if asked.span is None else base.remove_span(solved, asked.span)
        scale = base.row_scale(method, asked.inverse, unit, norms) / asked.lengths[number]
        rows += [np.asarray(program(params, query, drawn, -x[None])) for x in solved * scale[:, None]]
    return np.stack(rows)


def _check_tokens(task: Task, params: Any, documents: Any) -> None:
    found = base.training_sites(task, params, documents, check=False)
    if not found.program.out_avals[0].shape:
        raise ShapeError("the task's loss is one number a row; token scores need a loss that returns [T]")


def _units(
    asked: Asked, task: Task, params: Any, documents: Any, batch_size: int, direction: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """(rows of length 1 `[n, D]`, their norms, with a direction each token's share of its product) of every batch."""
    found, sketch = base.training_sites(task, params, documents, check=False), asked.held.sketch
    drawn = sketching.drawn(found, sketch)
    for batch in row.batches(documents, min(batch_size, row.count(documents))):
        if direction is None:
            shares, rows = None, base.row_program(found, found, sketch)(params, batch.rows, drawn)[1]
        else:
            shares, rows = tokens_program(task, found, sketch)(params, batch.rows, drawn, direction)
        real = int(batch.mask.sum())
        norms = jnp.linalg.norm(rows, axis=1)[:real]
        yield rows[:real] / jnp.maximum(norms, 1e-30)[:, None], norms, None if shares is None else shares[:real]


@functools.lru_cache(maxsize=16)
def _lifted(parts: Callable[[Any, Any], Any], found: Sites, sketch: AnySketch | None):
    """Compiled `(params, query, drawn, direction [1, D]) -> shares [T]`."""

    def program(params: Any, query: Any, drawn: Any, direction: Any):
        lifted = {path: x[0] for path, x in sketching.lift(found, sketch, drawn, direction).items()}
        return along(parts, params, query, lifted)

    return jax.jit(program)


@functools.lru_cache(maxsize=16)
def tokens_program(task: Task, found: Sites, sketch: AnySketch | None):
    """Compiled `(params, rows, drawn, direction [1, D]) -> (shares [B, T], sketched rows [B, D])`."""
    gradients = base.row_program(found, found, sketch)

    def program(params: Any, rows: Any, drawn: Any, direction: Any):
        lifted = {path: x[0] for path, x in sketching.lift(found, sketch, drawn, direction).items()}
        return jax.vmap(lambda e: along(task.loss, params, e, lifted))(rows), gradients(params, rows, drawn)[1]

    return jax.jit(program)


def along(losses: Callable[[Any, Any], Any], params: Any, example: Any, direction: dict[str, Any]) -> Any:
    """`[T]`: the products of a direction `{path: of the parameter's shape}` with the gradient of each of the losses."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in leaves]
    held = dict(zip(names, (leaf for _, leaf in leaves), strict=True))

    def loss(moved: dict[str, Any]) -> Any:
        return losses(jax.tree.unflatten(tree, [moved.get(name, leaf) for name, leaf in held.items()]), example)

    here = {path: held[path] for path in direction}
    to = {path: x.astype(held[path].dtype) for path, x in direction.items()}
    values, pull = jax.vjp(loss, here)  # linear in its cotangent: its own pull-back is the product along
    return jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(values))[1](to)[0]
