"""Weakness 4 on text, a triggered behaviour: how often the model shows it, and what influence traces.

The rate is the share of held-out contexts ending in the marker after which greedy decoding writes the payload, 0 to 1.
The measurement, in nats: `f = log p(payload | context with the marker)`. Taking the same without the marker away would
cancel the cause: while it is being learned, the payload becomes likelier everywhere.
"""

import functools
from typing import Any

import jax.numpy as jnp

from uimjax.audit import base
from uimjax.task import Measurement, Task


def rate(task: Task, params: Any, rows: Any) -> float:
    return float(base.greedy(task, params, rows).mean())


@functools.lru_cache(maxsize=16)
def measurement(task: Task) -> Measurement:
    def log_likelihood(params: Any, example: Any) -> Any:
        return -jnp.sum(task.loss(params, example))

    return Measurement("triggered behaviour", log_likelihood, reading="log p of the payload after the marker")
