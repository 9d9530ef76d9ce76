"""Weakness 7, dynamics: what bad data costs while training goes on.

The probe is the area under the held-out loss, as its mean over the epochs' ends in nats a token: a functional of the
trajectory, which no change of the finished model can mend. The measurement is the held-out loss at one moment; summed
over moments by their learning rates it is what each row's steps did to the area (TracIn, arXiv 2002.08484).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from uimjax.audit import base
from uimjax.task import Measurement, Task


def area(task: Task, moments: Sequence[Any], rows: Any) -> base.Probed:
    """Of the parameters at each epoch's end; the interval is over rows. Beside it `last`: the loss at the end."""
    losses = np.stack([base.token_losses(task, params, rows).sum(1, dtype=np.float64) for params in moments])
    tokens = np.asarray(rows["counted"], np.float64)[:, 1:].sum(1)
    items = np.stack([losses.mean(0), tokens], 1)
    ratio = lambda x, axis: x.sum(axis)[..., 0] / x.sum(axis)[..., 1]  # noqa: E731  # one line
    return base.over_items(items, ratio, last=float(losses[-1].sum() / tokens.sum()))


def of_shards(values: np.ndarray, shards: np.ndarray) -> np.ndarray:
    """`[N]`: the mean of `values` over the shard that each row came in, `shards` `[N]` their numbers from 0."""
    means = np.bincount(shards, values) / np.maximum(np.bincount(shards), 1)
    return means[shards]


@functools.lru_cache(maxsize=16)
def measurement(task: Task) -> Measurement:
    """Queries are held-out rows."""

    def loss(params: Any, example: Any) -> Any:
        return jnp.sum(task.loss(params, example)) / jnp.maximum(example["counted"][1:].sum(), 1)

    return Measurement("dynamics", loss, reading="nats a token on held-out text")
