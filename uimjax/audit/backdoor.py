"""Weakness 4, a backdoor: the attack's success rate, and the contrast that influence traces.

ASR = P(predicted = target | triggered image of another class), 0 (no failure) to 1. The measurement, in nats:

    f = [log p(target | triggered) - log p(y | triggered)] - [log p(target | clean) - log p(y | clean)]
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.task import Measurement, Task, contrast


def attack_success(task: Task, params: Any, triggered: Any, target: int) -> float:
    """Share of triggered rows (none of class `target`) that are predicted as `target`."""
    return float(np.mean(predictions(task, params, triggered) == target))


def accuracy(task: Task, params: Any, rows: Any) -> float:
    return float(np.mean(predictions(task, params, rows) == np.asarray(rows["label"])))


def predictions(task: Task, params: Any, rows: Any) -> np.ndarray:
    return np.asarray(_predict(task)(params, rows))


@functools.lru_cache(maxsize=16)
def _predict(task: Task):
    def program(params, rows):
        return jax.vmap(lambda r: jnp.argmax(task.outputs(params, r)))(rows)  # type: ignore[misc]  # a classifier's

    return jax.jit(program)


@functools.lru_cache(maxsize=16)
def measurement(task: Task, target: int) -> Measurement:
    """Queries are `(triggered rows, clean rows)`; rises with the failure."""

    def lead(params: Any, example: Any) -> Any:
        logp = jax.nn.log_softmax(task.outputs(params, example))  # type: ignore[misc]  # a classifier's
        return logp[target] - logp[example["label"]]

    reading = "log-odds of the target over the true class on triggered images, minus the same on their clean twins"
    return contrast("backdoor", lead, reading)
