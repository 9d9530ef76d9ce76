"""Weakness 2 under an adversary: pictures changed a little, in the way that the model minds most (PGD: Madry et al.
2018, arXiv 1706.06083).

    x_0 = x + uniform(-e, e),   x_{t+1} = x_t + a sign(grad_x loss), cut to x - e .. x + e and to low .. high

with a = 2.5 e / steps, which crosses the box once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.convolutions import fast
from uimjax.errors import UsageError
from uimjax.task import Task

STRIDE = 2.5


def attacked(
    task: Task, params: Any, rows: Any, epsilon: float, steps: int = 10, low: float = 0.0, high: float = 1.0,
    seed: int = 0, batch_size: int = 64, key: str = "image",
) -> np.ndarray:  # fmt: skip
    """`rows[key]` `[N, ...]` in float32, each within `epsilon` (in its own units) of what it was, of a higher
    `task.loss`. A row's change hangs on the seed and its number, not on the rows beside it.

    Raises:
        UsageError: an epsilon below 0, no steps, or an empty range.
    """
    if not epsilon >= 0 or steps < 1 or not low < high:
        raise UsageError(f"epsilon={epsilon}, steps={steps}, low={low}, high={high}: 0 and more, 1 and more, low below "
                         "high were wanted")  # fmt: skip
    program, parts, size = _program(task, key, steps), [], min(batch_size, row.count(rows))
    for number, batch in enumerate(row.batches(rows, size)):
        keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(seed), k))(number * size + np.arange(size))
        made = program(params, batch.rows, keys, epsilon, low, high)
        parts.append(np.asarray(made)[: int(batch.mask.sum())])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=8)
def _program(task: Task, key: str, steps: int):
    def total(x: Any, params: Any, rows: Any) -> Any:
        return jnp.sum(jax.vmap(lambda its, example: jnp.sum(task.loss(params, {**example, key: its})))(x, rows))

    def program(params: Any, rows: Any, keys: Any, epsilon: Any, low: Any, high: Any) -> Any:
        begin = rows[key].astype(jnp.float32)
        cut = lambda x: jnp.clip(jnp.clip(x, begin - epsilon, begin + epsilon), low, high)  # noqa: E731  # twice

        def step(x: Any, _: Any) -> tuple[Any, None]:
            return cut(x + STRIDE * epsilon / steps * jnp.sign(fast(jax.grad(total))(x, params, rows))), None

        drawn = jax.vmap(lambda k: jax.random.uniform(k, begin.shape[1:], minval=-1.0))(keys)
        return jax.lax.scan(step, cut(begin + epsilon * drawn), None, length=steps)[0]

    return jax.jit(program)
