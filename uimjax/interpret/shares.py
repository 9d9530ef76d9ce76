"""Whose part of a score it is: of each parameter, or of each token of the training row; the parts add up to the score.

For methods of whole gradients (no sketch); `positions.token_scores` splits those of an index.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.curvature import blocks
from uimjax.curvature.kronecker import Kronecker
from uimjax.errors import ShapeError, UsageError
from uimjax.interpret import base, exact, methods
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.exact import Ready
from uimjax.interpret.positions import along
from uimjax.interpret.trajectory import Checkpoint, run_of
from uimjax.task import Measurement, Task


def score_by_parameter(
    task: Task,
    params: Any,
    data: Any,
    measurement: Measurement,
    queries: Any,
    method: str | Method = "ekfac",
    *,
    each: bool = False,
    batch_size: int = 256,
) -> dict[str, Scores]:
    """`{path: scores [N, 1] or [N, Q]}`, which add up to `score`'s. A bias that is one block with its matrix has its
    part in the matrix's.

    Raises:
        UsageError: a method of sketched rows, or of several checkpoints. As `score`.
    """
    ready, its, chosen = _ready(task, params, data, measurement, queries, method, batch_size)
    parts = list(exact.by_parameter(ready, its.params, data, queries, chosen, each, row.Pass(batch_size)))
    found = {path: np.concatenate([part[path] for part in parts], 1) for path in parts[0]}
    base.finite(jnp.stack([jnp.sum(x) for x in found.values()]), f"scores of {chosen.name}")
    unit = chosen.unit(measurement)
    return {path: Scores(x, chosen.label, unit, ready.how) for path, x in found.items()}


def score_by_token(
    task: Task,
    params: Any,
    data: Any,
    measurement: Measurement,
    queries: Any,
    method: str | Method = "ekfac",
    *,
    each: bool = False,
    batch_size: int = 32,
) -> Scores:
    """`values` `[N, T, 1]` or `[N, T, Q]`: `- <H^-1 grad f, grad loss_it>`, the share of each token's loss in the score
    of its row, which they add up to. `task.loss` must return `[T]`.

    Raises:
        ShapeError: the loss is one number a row. UsageError: a method of sketched rows, of several checkpoints, or that
        divides by the row's norm. As `score`.
    """
    ready, its, chosen = _ready(task, params, data, measurement, queries, method, batch_size)
    if not ready.laid.sites.program.out_avals[0].shape:
        raise ShapeError("the task's loss is one number a row; token scores need a loss that returns [T]")
    if chosen.normalize != "none":
        raise UsageError(
            f"{chosen.name} divides by the norm of the row's gradient; take normalize='none' for its tokens"
        )
    program, columns = along_rows(task.loss), []
    for chunk in exact.directions(ready, its.params, queries, chosen, each):
        directions = blocks.split(ready.laid, chunk)
        parts = [np.asarray(program(its.params, b.rows, directions))[b.mask] for b in row.batches(data, batch_size)]
        columns.append(np.concatenate(parts))
    found = np.concatenate(columns, 2)
    base.finite(jnp.asarray(found), f"scores of {chosen.name}")
    return Scores(found, chosen.label, chosen.unit(measurement), ready.how)


def _ready(
    task: Task, params: Any, data: Any, measurement: Measurement, queries: Any, method: str | Method, batch_size: int
) -> tuple[Ready, Checkpoint, Method]:
    chosen, its = methods.get(method) if isinstance(method, str) else method, run_of(params)[-1]
    if not chosen.exact or chosen.checkpoints != "last":
        raise UsageError(
            f"{chosen.name} has no parts here: a method of whole gradients and of the last checkpoint was wanted, as "
            "ekfac or grad_dot. Token scores of an index: `positions.token_scores`."
        )
    if isinstance(chosen.curvature, Kronecker):  # few terms would be an approximation that nothing corrects
        chosen = dataclasses.replace(chosen, curvature=dataclasses.replace(chosen.curvature, terms=0, query_rank=0))
    ready = exact.ready(task, its.params, data, measurement, queries, chosen, row.Pass(batch_size), its.optimizer)
    return ready._replace(question=measurement.name), its, chosen


@functools.lru_cache(maxsize=16)
def along_rows(losses: Callable[[Any, Any], Any]):
    """Compiled `(params, rows, directions {path: [q, *shape]}) -> [B, T, q]` for `losses(params, row)` `[T]`."""

    def one(params: Any, example: Any, direction: dict[str, Any]) -> Any:
        return along(losses, params, example, direction)

    each = jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None))
    return jax.jit(lambda params, rows, directions: jnp.swapaxes(each(params, rows, directions), 1, 2))
