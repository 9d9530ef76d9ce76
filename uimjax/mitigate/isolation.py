"""Anti-backdoor learning, stage 1 (ABL: Li et al. 2021, arXiv 2110.11571): what is learned first and too well.

A training that holds the loss at `level` learns a trigger within few epochs, while clean rows stay near that loss; the
rows of the lowest loss are isolated. Stage 2 unlearns them: `unlearn(..., Unlearning("grad_diff"))`, at ABL's 5e-4.

    flooding   |L - level| + level              ascent   sign(L - level) L

L is a batch's mean loss, as in the released code; the paper writes the losses of single rows there, which then stay at
the level all alike, triggered or not.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import rows as row
from uimjax import steps
from uimjax.convolutions import fast
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.progress import Progress, quiet
from uimjax.steps import Recipe
from uimjax.task import Task

KINDS = ("flooding", "ascent")
BATCH = 256


class Isolated(NamedTuple):
    """`rows` `[K]`: the lowest losses first; `losses` `[N]` nats, of every row once the training has ended."""

    rows: np.ndarray
    losses: np.ndarray


def isolate(
    task: Task, params: Any, data: Any, recipe: Recipe, share: float = 0.01, level: float = 0.5,
    kind: Literal["flooding", "ascent"] = "ascent", progress: Progress = quiet,
) -> Isolated:  # fmt: skip
    """Train `params` (initial ones) with the mean loss held at `level`, and isolate the share of the rows whose loss is
    lowest. The paper trains 20 epochs of 100 and isolates 1%.

    Raises:
        UnknownNameError, UsageError: share outside of (0, 1), level not above 0, a loss with noise of its own.
        NonFiniteError: it diverged.
    """
    if kind not in KINDS:
        raise UnknownNameError("isolation", kind, KINDS)
    if not 0 < share < 1 or not level > 0:
        raise UsageError(f"share={share}, level={level} arrived; (0, 1) and a loss above 0 were wanted")
    if task.trained is not None:
        raise UsageError("the task trains by a loss with noise of its own; isolation holds the plain loss at a level")
    count, placed = row.count(data), jax.tree.map(jnp.asarray, data)
    static = steps.static(recipe, count)
    program, state = _epoch(task, static, level, kind), steps.optimizer(static).init(params)
    for number in progress(range(recipe.epochs), "isolating", unit="epochs"):
        params, state = program(params, state, placed, jax.random.key(recipe.seed), number)
    parts = [np.asarray(_losses(task)(params, b.rows))[: int(b.mask.sum())] for b in row.batches(data, BATCH)]
    losses = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(losses).all():
        raise NonFiniteError(f"the training diverged; lower its learning rate ({recipe.learning_rate})")
    return Isolated(np.argsort(losses, kind="stable")[: max(1, round(share * len(losses)))], losses)


def held(loss: Any, level: float, kind: str) -> Any:
    """The mean loss of a batch, turned round below the level."""
    return jnp.abs(loss - level) + level if kind == "flooding" else jnp.sign(loss - level) * loss


@functools.lru_cache(maxsize=16)
def _epoch(task: Task, static: steps.Static, level: float, kind: str):
    update = steps.optimizer(static).update

    def program(params: Any, state: Any, data: Any, key: Any, number: Any) -> Any:
        weights = jnp.ones(row.count(data))

        def step(carry: Any, ids: Any) -> Any:
            rows, weight = steps.gather(data, ids, weights)
            loss = lambda p: held(steps.batch_loss(task, p, rows, weight)[0], level, kind)  # noqa: E731  # one line
            updates, after = update(fast(jax.grad(loss))(carry[0]), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), after), None

        order = steps.order(key, number, row.count(data), static.batch_size)
        return jax.lax.scan(step, (params, state), order)[0]

    return jax.jit(program)


@functools.lru_cache(maxsize=16)
def _losses(task: Task):
    return jax.jit(lambda params, rows: jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(rows))
