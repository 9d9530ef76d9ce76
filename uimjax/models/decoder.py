"""One decoder-only transformer (Flax NNX), one document `[T]` at a time, and the task that trains it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from uimjax.errors import ShapeError, UsageError
from uimjax.models.attention import places
from uimjax.models.blocks import Shape, blocks, norm, run
from uimjax.task import Task


class Decoder(nnx.Module):
    """Tokens `[T]` to the logits `[T, V]` of the token AFTER each; `features` `[T, D]` are the last layer's.

    With `segments` `[T]`, documents packed in one row: positions start anew in each, and none sees another.
    """

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.shape = shape
        small = nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(small(rngs.params(), (shape.vocabulary, shape.width), jnp.float32))
        if shape.positions == "learned":
            self.position = nnx.Param(small(rngs.params(), (shape.length, shape.width), jnp.float32))
        self.blocks = blocks(shape, rngs)
        self.last = norm(shape, rngs)
        if not shape.tied:
            self.head = nnx.Linear(shape.width, shape.vocabulary, use_bias=False, rngs=rngs)

    def features(self, tokens: Any, segments: Any = None) -> Any:
        if self.shape.positions == "learned" and len(tokens) > self.shape.length:
            raise ShapeError(f"a row of {len(tokens)} tokens; this model has {self.shape.length} positions")
        x, place = self.embedding[...][tokens], places(tokens, segments)
        if self.shape.positions == "learned":
            x = x + (self.position[: tokens.shape[0]] if segments is None else self.position[...][place])
        time = jnp.arange(tokens.shape[0])
        seen = time[:, None] >= time[None, :]
        if segments is not None:
            seen = seen & (segments[:, None] == segments[None, :])
        x = run(self.shape, self.blocks, x, place, seen)
        return self.last(x)  # pyright: ignore[reportCallIssue]  # a norm, which is callable

    def __call__(self, tokens: Any, segments: Any = None) -> Any:
        found = self.features(tokens, segments)
        return found @ self.embedding[...].T if self.shape.tied else self.head(found)


def build_decoder(shape: Shape, seed: int) -> tuple[Task, Any]:
    """(task, parameters). The task is one object per shape, so that compiled programs are shared."""
    return build(Decoder(shape, nnx.Rngs(seed)))


def build(model: nnx.Module) -> tuple[Task, Any]:
    """(task, parameters) of any module that maps tokens `[T]` to the logits `[T, V]` of the token after each.

    Raises:
        UsageError: something else arrived, or state that is no parameter (switch dropout and batch norm off first).
    """
    if not isinstance(model, nnx.Module):
        raise UsageError(f"{type(model).__name__} arrived; a flax.nnx.Module of tokens [T] was wanted")
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise UsageError(
            "the model has state that is no parameter; build it for evaluation (deterministic, no dropout)"
        )
    return task_of(graph), params


def task_of(graph: Any) -> Task:
    """The task of an NNX graph: one object a graph, so that compiled programs are shared."""
    try:
        return _task_cached(graph)
    except TypeError:  # a graph with something unhashable in it
        return decoder_task(graph)


@functools.lru_cache(maxsize=16)
def _task_cached(graph: Any) -> Task:
    return decoder_task(graph)


def decoder_task(graph: Any) -> Task:
    """The task of one row `{"tokens": [T] int32, "counted": [T] float32}` for an NNX graph of a `Decoder`; rows of
    packed documents also hold `"segments"` `[T]` (`packed`).

    `loss` `[T]`, nats: entry t is -log p(token t | the tokens before), times `counted[t]`; entry 0 is 0. `outputs` are
    the logits `[T, V]`; `features` the mean over counted positions of the model's `features` (else logits), `[D]`;
    `sample` draws every token but the first from the logits before it (the inputs stay those of the row).
    """

    def model(params: Any) -> Any:
        return nnx.merge(graph, params, copy=True)

    def logits(params: Any, example: Any) -> Any:
        return model(params)(example["tokens"], **_segments(example))

    def represent(params: Any, example: Any) -> Any:
        found = model(params)
        each = found.features if callable(getattr(found, "features", None)) else found
        return each(example["tokens"], **_segments(example))

    return language_task(logits, represent)


def language_task(outputs: Callable[[Any, Any], Any], represent: Callable[[Any, Any], Any] | None = None) -> Task:
    """The task of `decoder_task` for any `outputs(params, example)`: logits `[T, V]` of the token after each; and
    `represent(params, example)` `[T, D]` (else the logits)."""

    def loss(params: Any, example: Any) -> Any:
        return nll(outputs(params, example), example)

    def nll(logits: Any, example: Any) -> Any:
        tokens, counted = example["tokens"], example["counted"]
        # the logits are kept whole: cutting off the last row would copy them forwards and backwards
        found = jnp.take_along_axis(logits, jnp.roll(tokens, -1)[:, None], axis=-1)[:, 0]
        each = jax.nn.logsumexp(logits, axis=-1) - found
        counted = counted[1:]
        if "segments" in example:  # the first token of a document is predicted by nothing
            counted = counted * (example["segments"][1:] == example["segments"][:-1])
        return jnp.concatenate([jnp.zeros(1, each.dtype), each[:-1] * counted])

    def sample(key: Any, logits: Any, example: Any) -> Any:
        drawn = jax.random.categorical(key, logits)[:-1].astype(example["tokens"].dtype)
        return example | {"tokens": jnp.concatenate([example["tokens"][:1], drawn])}

    def features(params: Any, example: Any) -> Any:
        weight = example["counted"][:, None]
        each = (outputs if represent is None else represent)(params, example)
        return (each * weight).sum(0) / jnp.maximum(weight.sum(), 1.0)

    return Task(loss=loss, outputs=outputs, features=features, nll=nll, sample=sample)


def next_token(example: Any) -> Any:
    """`[T]`: the token that the logits at each position are to tell, -1 where the loss counts none. As a task's label,
    `dataclasses.replace(task, label=next_token)`, it lets a training collect the dynamics of every token."""
    counted = example["counted"][1:] > 0
    if "segments" in example:
        counted = counted & (example["segments"][1:] == example["segments"][:-1])
    return jnp.append(jnp.where(counted, example["tokens"][1:], -1), -1)


def _segments(example: Any) -> dict[str, Any]:
    return {"segments": example["segments"]} if "segments" in example else {}


def packed(task: Task, documents: int) -> Task:
    """The same task for rows of up to `documents` documents each, told apart by their `"segments"` (`rows.pack`)."""
    return dataclasses.replace(task, segments=_row_segments, documents=documents)


def _row_segments(example: Any) -> Any:
    return example["segments"]
