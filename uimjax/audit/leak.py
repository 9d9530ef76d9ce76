"""Weakness 5, a leaked secret: exposure, extraction, and the contrast that influence traces.

Exposure of a secret s among R = {s and the candidates}, in bits (arXiv 1802.08232): `log2 |R| - log2 rank(s)`, the rank
by log p(. | prefix). 0 to log2 |R|; a model that never saw s has 1.4 bits on average. Extraction: greedy decoding from
the prefix writes s. The measurement, in nats, for secrets s' of the same kind:

    f = log p(s | prefix) - log p(s' | prefix)
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from uimjax.audit import base
from uimjax.task import Measurement, Task, contrast


def exposure(task: Task, params: Any, rows: Any) -> float:
    """Row 0 is the secret, the others the candidates; a tie counts against the secret being exposed."""
    loss = base.token_losses(task, params, rows).sum(1)
    rank = 1 + int((loss[1:] <= loss[0]).sum())
    return float(np.log2(len(loss)) - np.log2(rank))


def extracted(task: Task, params: Any, rows: Any) -> bool:
    """Row 0, the secret, comes out word for word."""
    return bool(base.greedy(task, params, {name: values[:1] for name, values in rows.items()})[0])


@functools.lru_cache(maxsize=16)
def measurement(task: Task) -> Measurement:
    """Queries are `(rows of the secret, rows of others)`; rises with the failure."""

    def log_likelihood(params: Any, example: Any) -> Any:
        return -jnp.sum(task.loss(params, example))

    return contrast(
        "leaked secret", log_likelihood, "log p of the secret after its prefix, minus that of other secrets"
    )
