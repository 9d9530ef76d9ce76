"""Relearning, the audit of unlearning: what was hidden and not removed comes back sooner than it is learned.

Whoever holds a few of the forgotten rows fine-tunes on them for a few steps (Hu et al. 2024, arXiv 2406.13356; Lucki et
al. 2024, arXiv 2409.18025). Afterwards the failure is measured, beside that of a model that never saw these rows before
and got the same steps on them.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import rows as row
from uimjax.convolutions import fast
from uimjax.errors import NonFiniteError, UsageError
from uimjax.mitigate.unlearning import FEW
from uimjax.task import Task


@dataclass(frozen=True)
class Relearning:
    """AdamW steps at a constant rate on rows drawn from those that are known again."""

    steps: int = 10
    batch_size: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self):
        if min(self.steps, self.batch_size) < 1 or not self.learning_rate > 0:
            raise UsageError(f"steps and batch_size of 1 and more and a learning rate above 0 were wanted: {self}")


def relearn(task: Task, params: Any, data: Any, rows: Any, how: Relearning = Relearning(), seed: int = 0) -> Any:
    """New parameters after `how.steps` on the rows (ids) of `data`; those that came in stay as they are.

    Raises:
        UsageError: no rows, ids out of range or twice. NonFiniteError: it diverged.
    """
    ids = np.asarray(rows, np.int64)
    if not len(ids) or ids.min() < 0 or ids.max() >= row.count(data) or len(set(ids.tolist())) < len(ids):
        raise UsageError(f"{len(ids)} rows to learn again, of {row.count(data)}; one at least, each there and once")
    padded = np.resize(ids, max(FEW, 1 << (len(ids) - 1).bit_length()))  # so that programs are shared; never drawn
    keys = jax.random.split(jax.random.key(seed), how.steps)
    made = _program(task, how)(params, jax.tree.map(jnp.asarray, row.take(data, padded)), len(ids), keys)
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(made)):
        raise NonFiniteError(f"relearning diverged; lower its learning rate ({how.learning_rate})")
    return made


@functools.lru_cache(maxsize=8)
def _program(task: Task, how: Relearning):
    optimizer = optax.adamw(how.learning_rate, weight_decay=0.0)

    def program(params: Any, data: Any, count: Any, keys: Any) -> Any:
        def step(state: tuple[Any, Any], key: Any) -> tuple[tuple[Any, Any], None]:
            ids = jax.random.randint(key, (how.batch_size,), 0, count)
            some = jax.tree.map(lambda x: x[ids], data)
            mean = lambda p: jnp.mean(jax.vmap(lambda r: jnp.sum(task.loss(p, r)))(some))  # noqa: E731  # a scalar's
            updates, after = optimizer.update(fast(jax.grad(mean))(state[0]), state[1], state[0])
            return (optax.apply_updates(state[0], updates), after), None

        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return jax.jit(program)
