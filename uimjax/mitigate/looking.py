"""An example as a forget loss sees it: losses of its tokens, logits and hidden states, under one set of parameters."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import programs
from uimjax import rows as row
from uimjax.errors import MismatchError, ShapeError, UsageError
from uimjax.mitigate.forgetting import Seen
from uimjax.models.decoder import next_token
from uimjax.store import stage_key
from uimjax.taps import _compat
from uimjax.task import Task

Look = Callable[[Any, Any], Seen]  # of (params, example)


def labelled(task: Task, data: Any) -> Task:
    """The task with a label: rows of our language tasks, `{"tokens", "counted"}`, have the next token for one."""
    if task.label is None and isinstance(data, dict) and {"tokens", "counted"} <= set(data):
        return _of_tokens(task)
    return task


@functools.lru_cache(maxsize=64)
def _of_tokens(task: Task) -> Task:
    return dataclasses.replace(task, label=next_token)


@functools.lru_cache(maxsize=64)
def look(task: Task, needs: frozenset[str], by_token: bool, hidden: Callable[[Any, Any], Any] | None = None) -> Look:
    """`(params, example) -> Seen`. By tokens, of the outputs and labels; else of the task's own loss."""

    def one(params: Any, example: Any) -> Seen:
        found = _of_loss(task, params, example)
        if by_token and task.label is not None and task.outputs is not None:
            found = _of_logits(task, params, example, bool({"logits", "logits before"} & needs))
        if "hidden" not in needs:
            return found
        h = (hidden or task.features)(params, example)  # type: ignore[misc]  # checked before
        return found._replace(hidden=h[None] if h.ndim == 1 else h)

    return one


def _of_loss(task: Task, params: Any, example: Any) -> Seen:
    each = jnp.reshape(task.loss(params, example), -1)
    return Seen(each, jnp.ones(each.shape, bool))


def _of_logits(task: Task, params: Any, example: Any, logits: bool) -> Seen:
    z, labels = task.outputs(params, example), jnp.asarray(task.label(example))  # type: ignore[misc]  # there are both
    z, labels = (z[None], labels[None]) if z.ndim == 1 else (z, labels)
    at = jnp.maximum(labels, 0)
    each = jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, at[:, None], -1)[:, 0]
    return Seen(each, labels >= 0, at if logits else None, z if logits else None)


def check(
    task: Task, params: Any, data: Any, needs: frozenset[str], by_token: bool, hidden: Any = None, others: Any = None
) -> None:
    """Refuse a task that cannot show what is looked at, before anything is compiled.

    Raises:
        UsageError: no label, outputs, features or other answers. ShapeError: they do not fit each other.
        MismatchError: labels and outputs do not give the loss.
    """
    if task.segments is not None:
        raise UsageError("rows hold several documents (packed), and one is to be forgotten; unlearn unpacked rows")
    spec = row.example_spec(data)
    if ("other" in needs) != (others is not None):
        told = "one row for each to forget, with the answer that is to come instead" if others is None else "nothing"
        raise UsageError(f"others={'None' if others is None else 'rows'} arrived; {told} was wanted by this loss")
    long = jax.eval_shape(task.loss, params, spec).ndim > 0
    whole = task.label is not None and task.outputs is not None
    if {"logits", "logits before"} & needs and not whole:
        raise UsageError("this loss looks at logits: give the task outputs(params, example) and label(example)")
    if by_token and long and not whole:
        raise UsageError("this loss looks at tokens one by one: give the task outputs(params, example) -> logits [T, "
                         "C] and label(example) -> [T], negative where a token does not count")  # fmt: skip
    if by_token and whole:
        _check_loss(task, params, data)
    if "hidden" in needs:
        if hidden is None and task.features is None:
            raise UsageError("this loss looks at hidden states: give hidden(params, example) -> [T, D], or the task "
                             "features(params, example)")  # fmt: skip
        seen = jax.eval_shape(look(task, needs, by_token, hidden), params, spec)
        if seen.hidden.ndim != 2 or seen.hidden.shape[0] != seen.counted.shape[0]:
            raise ShapeError(f"hidden states {list(seen.hidden.shape)} of {seen.counted.shape[0]} tokens arrived; "
                             "[T, D], or [D] of one class, were wanted")  # fmt: skip


def digest(task: Task, params: Any, data: Any, needs: frozenset[str], by_token: bool, hidden: Any = None) -> str:
    """Of the program of the loss and of what is looked at, constants included."""
    found = []
    for fun in (task.loss, look(task, needs, by_token, hidden)):
        made = jax.make_jaxpr(fun)(params, row.example_spec(data))
        found.append(programs.digest(made, _compat.constants(made)))
    return stage_key(found, jax.__version__)


def _check_loss(task: Task, params: Any, data: Any) -> None:
    mine, loss = (np.asarray(x) for x in _both(task)(params, jax.tree.map(lambda x: x[:4], data)))
    if not np.allclose(mine, loss, rtol=1e-3, atol=1e-4):
        raise MismatchError(
            f"the first rows' losses are {loss.tolist()} and the cross-entropy of outputs and labels {mine.tolist()}: "
            "tokens that this loss would unlearn are not those that were learned; mend label(example)"
        )


@functools.lru_cache(maxsize=64)
def _both(task: Task) -> Callable[[Any, Any], Any]:
    """Compiled `(params, rows) -> (cross-entropy of the outputs, loss)` `[B]` each."""

    def one(params: Any, example: Any) -> tuple[Any, Any]:
        return _of_logits(task, params, example, False).total, jnp.sum(task.loss(params, example))

    return jax.jit(jax.vmap(one, (None, 0)))
