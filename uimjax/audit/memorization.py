"""Weakness 8, memorization: how much of a passage comes out word for word after its beginning?

The probe is extraction strength (arXiv 2407.06460 and its reference code): `1 - k / n` of the n tokens after the
beginning, k the fewest of them that must be given until every later one is the model's first choice. 0: none comes by
itself, 1: all do. Beside it `exact`: share of tokens that are the first choice, each after the true ones before it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.audit import base, membership
from uimjax.task import Measurement, Task


def probe(task: Task, params: Any, rows: Any) -> base.Probed:
    """`rows`: passages, whose end counts."""
    strength, exact = extracted(task, params, rows)
    return base.over_items(strength, exact=float(exact.mean()))


def extracted(task: Task, params: Any, rows: Any, batch_size: int = base.BATCH) -> tuple[np.ndarray, np.ndarray]:
    """(extraction strength, share of the counted tokens that are the first choice), `[N]` each."""
    program, counted = _first_choice(task), np.asarray(rows["counted"])[:, 1:] > 0
    parts = [np.asarray(program(params, b.rows))[: int(b.mask.sum())] for b in row.batches(rows, batch_size)]
    right = np.concatenate(parts) & counted.any(1, keepdims=True)  # a row of which nothing counts was not extracted
    return membership.extraction(right, counted), membership.exact(right, counted)


@functools.lru_cache(maxsize=16)
def _first_choice(task: Task):
    def one(params: Any, example: Any) -> Any:
        return jnp.argmax(task.outputs(params, example)[:-1], -1) == example["tokens"][1:]  # type: ignore[misc]

    return jax.jit(lambda params, rows: jax.vmap(lambda r: one(params, r))(rows))


@functools.lru_cache(maxsize=16)
def measurement(task: Task) -> Measurement:
    """Queries are `(rows of the passage, rows of other ends)`; rises with the failure."""
    return base.lead(task, "memorization", "log p of the passage's end minus that of other ends")
