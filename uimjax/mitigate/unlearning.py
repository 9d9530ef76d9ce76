"""Unlearning losses and the loop that minimises `gamma * forget + alpha * retain`.

Forget losses of one example, NLL in nats (summed over tokens), `ref` the model before:

    grad_diff   - NLL                                             (GradDiff; Liu et al. 2022)
    npo         - (2 / beta) log sigmoid(beta (NLL - NLL_ref))    (NPO; Zhang et al. 2024, arXiv 2404.05868)

The retain loss is the mean NLL over rows that are not forgotten.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import rows as row
from uimjax.errors import NonFiniteError, UsageError
from uimjax.task import Task


def grad_diff(nll: Any, reference: Any, beta: float) -> Any:
    del reference, beta
    return -nll


def npo(nll: Any, reference: Any, beta: float) -> Any:
    return -(2.0 / beta) * jax.nn.log_sigmoid(beta * (nll - reference))


LOSSES: dict[str, Callable[[Any, Any, float], Any]] = {"grad_diff": grad_diff, "npo": npo}


@dataclass(frozen=True)
class Unlearning:
    """How to unlearn: AdamW steps, `batch_size` forget rows and `retain_size` retain rows each.

    After `steps` of both losses, `heal_steps` of the retain loss alone let the rest of the model recover. The rate
    falls linearly from `learning_rate` to 0: at a constant one the last few retain rows drawn move every probe.
    """

    loss: Literal["npo", "grad_diff"] = "npo"
    beta: float = 0.1
    gamma: float = 0.3
    alpha: float = 1.0
    steps: int = 60
    heal_steps: int = 240
    learning_rate: float = 1e-3
    batch_size: int = 32
    retain_size: int = 128


def unlearn(task: Task, params: Any, data: Any, forget: np.ndarray, choice: Unlearning, seed: int) -> Any:
    """New parameters. `forget` holds row ids; every other row may be drawn as a retain row.

    Raises:
        UsageError: nothing to forget, ids out of range, or nothing left to retain. NonFiniteError: it diverged.
    """
    count = row.count(data)
    forget = np.unique(np.asarray(forget, np.int64))
    if not len(forget) or forget[0] < 0 or forget[-1] >= count or len(forget) == count:
        raise UsageError(f"{len(forget)} row ids to forget, of {count} rows: some, not all, and each in 0..{count - 1}")
    retain = np.setdiff1d(np.arange(count), forget)
    program = _program(task, choice)
    new = program(params, jax.tree.map(jnp.asarray, data), forget, retain, jax.random.key(seed))
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(new)):
        raise NonFiniteError(f"unlearning diverged; lower its learning rate ({choice.learning_rate}) or steps")
    return new


@functools.lru_cache(maxsize=16)
def _program(task: Task, choice: Unlearning):
    falling = optax.linear_schedule(choice.learning_rate, 0.0, choice.steps + choice.heal_steps)
    optimizer = optax.adamw(falling, weight_decay=0.0)
    forget_loss = LOSSES[choice.loss]

    def nll(params, data, ids):
        return jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(jax.tree.map(lambda x: x[ids], data))

    def program(params, data, forget, retain, key):
        reference = jax.lax.map(lambda i: nll(params, data, i[None])[0], forget, batch_size=choice.batch_size)

        def step(carry, key, forgetting):
            current, state = carry
            one, two = jax.random.split(key)
            good = jax.random.choice(two, retain, (choice.retain_size,))

            def total(current):
                kept = choice.alpha * nll(current, data, good).mean()
                if not forgetting:
                    return kept
                k = jax.random.choice(one, len(forget), (choice.batch_size,))
                return (
                    kept + choice.gamma * forget_loss(nll(current, data, forget[k]), reference[k], choice.beta).mean()
                )

            updates, state = optimizer.update(jax.grad(total)(current), state, current)
            return (optax.apply_updates(current, updates), state), None

        keys = jax.random.split(key, choice.steps + choice.heal_steps)
        carry = params, optimizer.init(params)
        carry = jax.lax.scan(functools.partial(step, forgetting=True), carry, keys[: choice.steps])[0]
        return jax.lax.scan(functools.partial(step, forgetting=False), carry, keys[choice.steps :])[0][0]

    return jax.jit(program)
