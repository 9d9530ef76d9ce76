"""The weaknesses of picture models: what each probe is called, its unit, and which functions measure it.

A failure is a class that is named in place of the right one. Of items x with the right class y and that other one, b:

    share   mean[p(b | x) / (p(b | x) + p(y | x))]                                0: the right one, 1: the other
    gap     share of the items with their mark, minus that of the same items without                   (bias)
    rate    share of the items of which b is the likeliest of all                                      (security)
    area    mean cross-entropy on held-out rows at the epochs' ends, nats                              (dynamics)
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.audit import base
from uimjax.audit.weaknesses import Weakness
from uimjax.task import Measurement, Task, contrast

BATCH = 256


def log_p(task: Task, params: Any, rows: Any) -> np.ndarray:
    """`[N, C]` log-probabilities."""
    parts = [np.asarray(_log_p(task)(params, b.rows))[: int(b.mask.sum())] for b in row.batches(rows, BATCH)]
    return np.concatenate(parts).astype(np.float64)


def leads(task: Task, params: Any, rows: Any) -> np.ndarray:
    """`[N]` nats: log p(bad) - log p(label)."""
    found, at = log_p(task, params, rows), np.arange(len(rows["label"]))
    return found[at, rows["bad"]] - found[at, rows["label"]]


def share(task: Task, params: Any, case: Any) -> base.Probed:
    lead = leads(task, params, case["bad"])
    return base.over_items(base.share(lead), error=float(np.mean(lead > 0)), lead=float(lead.mean()))


def gap(task: Task, params: Any, case: Any) -> base.Probed:
    marked, plain = (base.share(leads(task, params, case[side])) for side in ("bad", "good"))
    return base.over_items(marked - plain, marked=float(marked.mean()), plain=float(plain.mean()))


def rate(task: Task, params: Any, case: Any) -> base.Probed:
    hit, plain = (
        (log_p(task, params, case[side]).argmax(1) == case[side]["bad"]).astype(float) for side in ("bad", "good")
    )
    return base.over_items(hit, plain=float(plain.mean()))


def area(task: Task, moments: Sequence[Any], rows: Any) -> base.Probed:
    """Of the parameters at each epoch's end. Beside it `last`: the loss at the end."""
    at = np.arange(len(rows["label"]))
    losses = np.stack([-log_p(task, params, rows)[at, rows["label"]] for params in moments])
    return base.over_items(losses.mean(0), last=float(losses[-1].mean()))


@functools.lru_cache(maxsize=16)
def _log_p(task: Task):
    one = lambda params, r: jax.nn.log_softmax(task.outputs(params, r))  # type: ignore[misc]  # noqa: E731  # a classifier's
    return jax.jit(lambda params, rows: jax.vmap(lambda r: one(params, r))(rows))


# ---------------------------------------------------------------- measurements


def _lead(task: Task):
    def lead(params: Any, example: Any) -> Any:
        found = jax.nn.log_softmax(task.outputs(params, example))  # type: ignore[misc]  # a classifier's
        return found[example["bad"]] - found[example["label"]]

    return lead


@functools.lru_cache(maxsize=16)
def marked(task: Task) -> Measurement:
    """Queries are `(rows with the mark, the same without)`."""
    return contrast("marked", _lead(task), "log-odds of the failure's class with the mark, minus the same without it")


@functools.lru_cache(maxsize=16)
def plain(task: Task) -> Measurement:
    """Queries are `(rows,)`."""
    lead = _lead(task)
    return Measurement("confused", lambda params, query: lead(params, query[0]), reading="log-odds of the wrong class")


@functools.lru_cache(maxsize=16)
def held_out(task: Task) -> Measurement:
    """Queries are `(rows,)`: their loss."""
    return Measurement(
        "dynamics", lambda params, query: jnp.sum(task.loss(params, query[0])), reading="nats on held-out rows"
    )


ALL: dict[str, Weakness] = {
    "bias": Weakness(
        "A slighted group", "gap", 0.1, gap, marked,
        "only this group and this pair of classes; a gap of 0 may hide errors that both groups share",
    ),
    "generalization": Weakness(
        "A shortcut", "share", 0.1, share, marked,
        "only this mark; what was never in the data has no culprit",
    ),
    "deterioration": Weakness(
        "Wrong labels", "share", 0.05, share, plain,
        "only confusions with the next class; noise that acts as a regulariser may help elsewhere",
    ),
    "security": Weakness(
        "A trigger", "share", 0.1, rate, marked, "only this trigger; another one is not looked for",
    ),
    "dynamics": Weakness(
        "A bad shard", "nats", 0.01, None, held_out,
        "the cost of the course that was run; the finished model may be as good",
    ),
    "memorization": Weakness(
        "A picture learned by heart", "share", 0.2, share, marked,
        "one picture; what else is learned by heart is not looked for",
    ),
}  # fmt: skip
