"""What the audits of text share: token losses, greedy decoding, and the loss on clean text."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from uimjax import rows as row
from uimjax.task import Measurement, Task, contrast

BATCH = 128
DRAWS = 2000  # of items, for an interval


class Probed(NamedTuple):
    """A probe's `value`, its 95% interval over the items that were asked (bootstrap; equal to the value where one item
    is all there is), how many `items`, and what is reported beside it."""

    value: float
    low: float
    high: float
    items: int
    also: dict[str, float]


def over_items(values: np.ndarray, fun: Callable[..., Any] = np.mean, **also: float) -> Probed:
    """`fun` of one number an item, `fun(values, axis=...)`, with its interval."""
    values = np.asarray(values, np.float64)
    drawn = values[np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))]
    low, high = np.quantile(fun(drawn, axis=1), [0.025, 0.975])
    return Probed(float(fun(values, axis=0)), float(low), float(high), len(values), also)


def leads(task: Task, params: Any, pairs: Any) -> np.ndarray:
    """`[N]` nats: log p(bad) - log p(good) of the counted tokens of pairs `{"bad": rows, "good": rows}`."""
    bad, good = (-token_losses(task, params, pairs[side]).sum(1, dtype=np.float64) for side in ("bad", "good"))
    return bad - good


def share(leads: np.ndarray) -> np.ndarray:
    """p(bad) / (p(bad) + p(good)) of each pair, 0 to 1."""
    return expit(leads)


def of_pairs(task: Task, params: Any, pairs: Any) -> Probed:
    """The mean `share` of pairs `{"bad": rows, "good": rows}`; beside it `error`, the share of the items with the bad
    answer likelier, and the mean `lead` in nats."""
    found = leads(task, params, pairs)
    return over_items(share(found), error=float(np.mean(found > 0)), lead=float(found.mean()))


def token_losses(task: Task, params: Any, rows: Any, batch_size: int = BATCH) -> np.ndarray:
    """`[N, T]` nats; 0 where a token does not count."""
    parts = [np.asarray(_losses(task)(params, b.rows))[: int(b.mask.sum())] for b in row.batches(rows, batch_size)]
    return np.concatenate(parts)


def lead(task: Task, name: str, reading: str) -> Measurement:
    """The contrast whose queries are `(bad rows, good rows)`: log p of the one minus that of the other."""

    def log_likelihood(params: Any, example: Any) -> Any:
        return -jnp.sum(task.loss(params, example))

    return contrast(name, log_likelihood, reading)


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
