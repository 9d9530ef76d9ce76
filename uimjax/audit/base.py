"""What the audits of text share: token losses, greedy decoding, and the loss on clean text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.task import Task

BATCH = 128


def token_losses(task: Task, params: Any, rows: Any) -> np.ndarray:
    """`[N, T]` nats; 0 where a token does not count."""
    parts = [np.asarray(_losses(task)(params, b.rows))[: int(b.mask.sum())] for b in row.batches(rows, BATCH)]
    return np.concatenate(parts)


def held_out_loss(task: Task, params: Any, rows: Any) -> float:
    """Mean loss of a counted token, in nats."""
    return float(token_losses(task, params, rows).sum(dtype=np.float64) / max(rows["counted"][:, 1:].sum(), 1))


def greedy(task: Task, params: Any, rows: Any) -> np.ndarray:
    """`[N]` bool: greedy decoding from what stands before the counted tokens writes exactly these."""
    parts = [np.asarray(_greedy(task)(params, b.rows))[: int(b.mask.sum())] for b in row.batches(rows, BATCH)]
    return np.concatenate(parts)


@functools.lru_cache(maxsize=16)
def _losses(task: Task):
    return jax.jit(lambda params, rows: jax.vmap(lambda r: task.loss(params, r))(rows))


@functools.lru_cache(maxsize=16)
def _greedy(task: Task):
    def one(params, example):
        best = jnp.argmax(task.outputs(params, example)[:-1], -1)  # type: ignore[misc]  # a decoder's
        return jnp.all((best == example["tokens"][1:]) | (example["counted"][1:] == 0))

    return jax.jit(lambda params, rows: jax.vmap(lambda r: one(params, r))(rows))
