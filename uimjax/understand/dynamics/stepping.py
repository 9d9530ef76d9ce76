"""One step of training that also tells the collector what it saw, of the same forward and backward pass."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import rows as row
from uimjax import steps
from uimjax.convolutions import fast
from uimjax.curvature.source import check_nll, nll_of
from uimjax.errors import DataError, ShapeError, UsageError
from uimjax.task import Task
from uimjax.understand.dynamics.collector import Collector
from uimjax.understand.dynamics.gradients import graded


class Stepped(NamedTuple):
    """After a step: parameters, the optimizer's state, the collector's, and `losses` `[B]` before the step."""

    params: Any
    optimizer: Any
    dynamics: Any
    losses: Any


def check(task: Task, collector: Collector, params: Any, data: Any, weights: Any = None) -> None:
    """Refuse a task that cannot give what is collected, before anything is compiled. Rows of weight 0 need no label.

    Raises:
        UsageError: no outputs or no label. DataError: a label that is no class, with its row. MismatchError: `nll` of
            `outputs` is not the `loss`. As `graded`.
    """
    if needs_logits(collector):
        if task.outputs is None or task.label is None:
            raise UsageError(
                f"{', '.join(collector.what)} are collected of logits and classes: give the task outputs(params, "
                "example) and label(example) (of language: uimjax.models.decoder.next_token), or collect loss (and "
                "grand) alone: Collector(N, ('loss',))"
            )
        shape = jax.eval_shape(task.outputs, params, row.example_spec(data)).shape
        _check_labels(task, shape, data, weights)
        if task.trained is None:
            check_nll(task, params, data, shape)
    if "grand" in collector.what:
        jax.eval_shape(lambda p, r: graded(task, p, r), params, jax.tree.map(lambda x: x[:1], data))


def _check_labels(task: Task, shape: tuple[int, ...], data: Any, weights: Any) -> None:
    """Of one class a row, each in 0..C-1; of sequences below C, where negative ones are padding."""
    assert task.label is not None  # checked before
    labels = np.asarray(jax.vmap(task.label)(jax.tree.map(jnp.asarray, data)))
    if len(shape) not in (1, 2) or labels.shape[1:] != shape[:-1] or labels.dtype.kind not in "iu":
        raise ShapeError(f"labels {labels.dtype} of shape {list(labels.shape[1:])} a row arrived with outputs of shape "
                         f"{list(shape)}; integers [] with logits [C], or [T] with [T, C], fit")  # fmt: skip
    classes = shape[-1]
    odd = (labels >= classes) | ((labels < 0) if len(shape) == 1 else False)
    odd = odd.reshape(len(labels), -1).any(1) & (True if weights is None else np.asarray(weights) > 0)
    if odd.any():
        at = int(np.flatnonzero(odd)[0])
        told = labels[at].reshape(-1)
        raise DataError(f"row {at} has the label {told[(told >= classes) | (told < 0)][0]}, and {int(odd.sum())} rows "
                        f"have one outside 0..{classes - 1} (there are {classes} logits); mend them, or give these "
                        "rows the weight 0")  # fmt: skip


def needs_logits(collector: Collector) -> bool:
    return bool({"margin", "probability", "correct", "el2n"} & set(collector.what))


def step(
    task: Task, collector: Collector, update: Callable[..., Any], params: Any, optimizer: Any, dynamics: Any,
    rows: Any, weight: Any, ids: Any, epoch: Any, keys: Any = None, distinct: bool = False,
) -> Stepped:  # fmt: skip
    """As `steps.step`; rows of weight 0 (padding, left out) are not met. `distinct`: as `Collector.update`.

    The logits are those that the loss was made of. A loss with noise of its own (`task.trained`) has none to show:
    they are then of a forward pass without it, which costs a third of a step.
    """
    logits, norms = None, None
    if "grand" in collector.what:
        gradient, losses, norms, logits = _graded(task, params, rows, weight, keys, needs_logits(collector))
    elif needs_logits(collector) and task.trained is None:
        gradient, (losses, logits) = fast(jax.grad(lambda p: _composed(task, p, rows, weight), has_aux=True))(params)
    else:
        loss = lambda p: steps.batch_loss(task, p, rows, weight, keys=keys)  # noqa: E731  # one line
        gradient, losses = fast(jax.grad(loss, has_aux=True))(params)
        logits = _clean(task, params, rows) if needs_logits(collector) else None
    labels = None if logits is None else jax.vmap(task.label)(rows)  # type: ignore[arg-type]  # checked before
    dynamics = collector.update(
        dynamics, ids, logits=logits, labels=labels, losses=losses, norms=norms, mask=weight > 0, epoch=epoch,
        distinct=distinct,
    )  # fmt: skip
    updates, optimizer = update(gradient, optimizer, params)
    return Stepped(optax.apply_updates(params, updates), optimizer, dynamics, losses)


def _composed(task: Task, params: Any, rows: Any, weight: Any) -> tuple[Any, tuple[Any, Any]]:
    """(the weighted mean loss, (each row's, its logits)): the loss made of the outputs, both of one pass."""
    nll = nll_of(task)

    def one(example: Any) -> tuple[Any, Any]:
        made = task.outputs(params, example)  # type: ignore[misc]  # checked before
        return jnp.sum(nll(made, example)), made

    losses, logits = jax.vmap(one)(rows)
    total = jnp.sum(weight)
    return jnp.sum(losses * weight) / jnp.where(total > 0, total, 1.0), (losses, jax.lax.stop_gradient(logits))


def _graded(task: Task, params: Any, rows: Any, weight: Any, keys: Any, logits: bool) -> Any:
    if task.trained is None:
        return graded(task, params, rows, weight, outputs=logits)
    trained = task.trained
    noisy = dataclasses.replace(
        task, loss=lambda p, e: jnp.sum(trained(p, e[0], e[1])), outputs=None, nll=None, sample=None, trained=None,
        batch_loss=None,
    )  # fmt: skip
    found = graded(noisy, params, (rows, keys), weight)
    return found._replace(outputs=_clean(task, params, rows) if logits else None)


def _clean(task: Task, params: Any, rows: Any) -> Any:
    """Logits without the noise that a training draws."""
    return jax.vmap(lambda r: task.outputs(params, r))(rows)  # type: ignore[misc]  # checked before
