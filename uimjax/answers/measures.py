"""What a failure of a language model is measured by: each by name, oriented to rise with the failure.

All are of rows `{"bad": {"tokens", "counted"}, "good": ..., ...}` and a task whose loss is `[T]` nats; `counted` is 1
for the tokens of a completion.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from uimjax.task import Task

Part = Callable[[Task, Any, Any], Any]


@dataclass(frozen=True)
class Measure:
    """`parts(task, params, row)`: numbers, one a token of the row's sides (`bad`, then `good`), whose gradients add up
    to that of `fun(task, params, row)`. `needs`: keys of a line that it is about; `together`: one question of all
    lines; `logits`: it reads the task's outputs."""

    fun: Part
    parts: Part
    reading: str
    unit: str = "relative"
    needs: tuple[str, ...] = ()
    together: bool = False
    logits: bool = False


def _sum(parts: Part) -> Part:
    return functools.partial(_summed, parts)  # one object a measure: compiled programs are kept by it


def _summed(parts: Part, task: Task, params: Any, row: Any) -> Any:
    return parts(task, params, row).sum()


def _logprob(task: Task, params: Any, row: Any) -> Any:
    return -task.loss(params, row["bad"])


def _loss(task: Task, params: Any, row: Any) -> Any:
    return task.loss(params, row["bad"]) / jnp.maximum(row["bad"]["counted"].sum(), 1)


def _differential(task: Task, params: Any, row: Any) -> Any:
    return jnp.concatenate([_logprob(task, params, row), task.loss(params, row["good"])])


def _preference(task: Task, params: Any, row: Any) -> Any:
    return jax.nn.softplus(_differential(task, params, row).sum())


def _preference_parts(task: Task, params: Any, row: Any) -> Any:
    """By the chain rule: the slope of softplus, held fixed, times the parts of the difference."""
    parts = _differential(task, params, row)
    return jax.lax.stop_gradient(jax.nn.sigmoid(parts.sum())) * parts


def _said(task: Task, params: Any, row: Any) -> tuple[Any, Any, Any]:
    """(logits `[T, V]` of the token at each place, itself one-hot, 1 where it counts)."""
    assert task.outputs is not None
    logits = task.outputs(params, row["bad"])
    logits = jnp.concatenate([jnp.zeros_like(logits[:1]), logits[:-1]])  # of the token AT each place
    tokens, counted = row["bad"]["tokens"], row["bad"]["counted"]
    counted = counted * (jnp.arange(len(tokens)) > 0)
    return logits, jax.nn.one_hot(tokens, logits.shape[-1], dtype=logits.dtype), counted.astype(logits.dtype)


def _logit(task: Task, params: Any, row: Any) -> Any:
    logits, own, counted = _said(task, params, row)
    return (logits * own).sum(-1) * counted


def _margin(task: Task, params: Any, row: Any) -> Any:
    logits, own, counted = _said(task, params, row)
    return ((logits * own).sum(-1) - jax.nn.logsumexp(jnp.where(own > 0, -jnp.inf, logits), -1)) * counted


def _extraction(task: Task, params: Any, row: Any) -> Any:
    logits, own, counted = _said(task, params, row)
    lead = (logits * own).sum(-1) - jnp.where(own > 0, -jnp.inf, logits).max(-1)
    weakest = jnp.argmin(jnp.where(counted > 0, lead, jnp.inf))
    return lead * jax.nn.one_hot(weakest, len(lead), dtype=lead.dtype)


def _group_gap(task: Task, params: Any, row: Any) -> Any:
    return row["weight"] * _logprob(task, params, row)


def _contrast(task: Task, params: Any, row: Any) -> Any:
    others = jax.vmap(lambda twin: task.loss(params, twin))(row["contrast"])  # [K, T]
    share = row["twins"] / row["twins"].sum()
    return jnp.concatenate([_logprob(task, params, row), (share[:, None] * others).sum(0)])


MEASURES: dict[str, Measure] = {
    "logprob": Measure(_sum(_logprob), _logprob, "log p of what was said, given the prompt", "nats"),
    "loss": Measure(_sum(_loss), _loss, "nats a token of `bad`, here the text that should be known"),
    "logit": Measure(_sum(_logit), _logit, "logits of the tokens that were said, added up", logits=True),
    "margin": Measure(
        _sum(_margin), _margin, "log odds of each token that was said, added up (TRAK, arXiv 2303.14186)", logits=True
    ),
    "extraction": Measure(
        _sum(_extraction),
        _extraction,
        "lead in logits of the weakest token said over the next best: above 0, greedy decoding says it all",
        logits=True,
    ),  # fmt: skip
    "differential": Measure(
        _sum(_differential), _differential, "log p of the bad answer minus log p of the good one", "nats", ("good",)
    ),
    "preference": Measure(
        _preference,
        _preference_parts,
        "loss of preferring the good answer to the bad one (DPO without a reference, arXiv 2305.18290)",
        needs=("good",),
    ),  # fmt: skip
    "contrast": Measure(
        _sum(_contrast),
        _contrast,
        "log p of what was said, minus its mean over the matched safe twins",
        "nats",
        ("contrast",),
    ),  # fmt: skip
    "group_gap": Measure(
        _sum(_group_gap),
        _group_gap,
        "mean log p over one group minus that over the other",
        "nats",
        ("group",),
        together=True,
    ),  # fmt: skip
}
