"""Scores of the single tokens of a document: which of its tokens' losses made it a proponent.

The score of a row is linear in its gradient, and the gradient of a row is the sum of the gradients of its tokens'
losses. So the token's share is `-<H^-1 grad f, grad loss_it>`, scaled as the row is, and the shares of a row add up to
the row's own score. One product along the direction gives all T shares of a row; no gradient of a token is formed. It
is taken by differentiating the backward pass, so that a loss without a forward-mode derivative (custom_vjp) has it too.
(What runs *through* position t, the term a_t (x) g_t, is another thing: it mixes the losses of later tokens.)
"""

import functools
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


def token_scores(asked: Asked, task: Task, params: Any, documents: Any, batch_size: int = 64) -> np.ndarray:
    """`[N, T]`: each token's share of its row's score for a question made ready (its first direction).

    `documents` are rows like the training rows; `task.loss` must return `[T]`. Summed over T: the row's own score.

    Raises:
        ShapeError: the loss is a scalar.
    """
    found = base.training_sites(task, params, documents, check=False)
    if not found.program.out_avals[0].shape:
        raise ShapeError("the task's loss is one number a row; token scores need a loss that returns [T]")
    drawn = sketching.drawn(found, asked.held.sketch)
    program = _program(task, found, asked.held.sketch)
    parts = []
    for batch in row.batches(documents, batch_size):
        shares, rows = program(params, batch.rows, drawn, asked.directions[:1])
        norms = jnp.linalg.norm(rows, axis=1)
        unit = rows / jnp.maximum(norms, 1e-30)[:, None]
        scale = base.row_scale(asked.method, asked.inverse, unit, norms) / jnp.maximum(norms, 1e-30)
        parts.append(np.asarray(shares * scale[:, None])[: int(batch.mask.sum())])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=16)
def _program(task: Task, found: Sites, sketch: AnySketch | None):
    """Compiled `(params, rows, drawn, direction [1, D]) -> (shares [B, T], sketched rows [B, D])`."""
    gradients = base.row_program(found, found, sketch)

    def program(params: Any, rows: Any, drawn: Any, direction: Any):
        lifted = {path: x[0] for path, x in sketching.lift(found, sketch, drawn, direction).items()}
        return jax.vmap(lambda e: along(task, params, e, lifted))(rows), gradients(params, rows, drawn)[1]

    return jax.jit(program)


def along(task: Task, params: Any, example: Any, direction: dict[str, Any]) -> Any:
    """`[T]`: the products of a direction `{path: of the parameter's shape}` with the gradient of each token's loss."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in leaves]
    held = dict(zip(names, (leaf for _, leaf in leaves), strict=True))

    def loss(moved: dict[str, Any]) -> Any:
        return task.loss(jax.tree.unflatten(tree, [moved.get(name, leaf) for name, leaf in held.items()]), example)

    here = {path: held[path] for path in direction}
    to = {path: x.astype(held[path].dtype) for path, x in direction.items()}
    losses, pull = jax.vjp(loss, here)  # linear in its cotangent: its own pull-back is the product along
    return jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(losses))[1](to)[0]
