"""Encoders (Flax NNX) of one example: images cut in patches (ViT), texts (BERT); a head for classes or words."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from uimjax.errors import ShapeError
from uimjax.models.blocks import ACTIVATIONS, Shape, blocks, norm, run
from uimjax.task import Task

_SMALL = nnx.initializers.normal(0.02)


@dataclass(frozen=True)
class ImageShape:
    """A ViT: its layers, images of `side` pixels and `channels`, patches of `patch` pixels, `classes`."""

    layer: Shape
    side: int
    patch: int
    channels: int
    classes: int


class ViT(nnx.Module):
    """Images `[H, W, C]` to logits (Dosovitskiy et al. 2021, arXiv 2010.11929); `features`: the class token's, last."""

    def __init__(self, choice: ImageShape, rngs: nnx.Rngs):
        self.choice, shape = choice, choice.layer
        size = (choice.patch, choice.patch)
        self.cut = nnx.Conv(choice.channels, shape.width, size, strides=size, padding="VALID", rngs=rngs)
        self.token = nnx.Param(_SMALL(rngs.params(), (shape.width,), jnp.float32))
        self.position = nnx.Param(_SMALL(rngs.params(), (shape.length, shape.width), jnp.float32))
        self.blocks, self.last = blocks(shape, rngs), norm(shape, rngs)
        self.head = nnx.Linear(shape.width, choice.classes, rngs=rngs)

    def features(self, image: Any) -> Any:
        shape = self.choice.layer
        patches = self.cut(image).reshape(-1, shape.width)
        x = jnp.concatenate([self.token[...][None], patches]) + self.position[...]
        x = run(shape, self.blocks, x, None, jnp.ones((len(x), len(x)), bool))
        return self.last(x)[0]  # pyright: ignore[reportCallIssue]  # a norm, which is callable

    def __call__(self, image: Any) -> Any:
        return self.head(self.features(image))


@dataclass(frozen=True)
class TextShape:
    """A BERT: its layers, kinds of segments, and the head: `classes` of the first token (tanh before), or 0: words at
    every position. `offset`: the number of the first position (RoBERTa: 2)."""

    layer: Shape
    kinds: int = 2
    classes: int = 0
    offset: int = 0


class TextEncoder(nnx.Module):
    """Tokens `[T]`, those that count `[T]`, their segments' kinds `[T]`, to logits `[classes]` or `[T, V]` (Devlin et
    al. 2019, arXiv 1810.04805). `features`: the first token's, after the last layer."""

    def __init__(self, choice: TextShape, rngs: nnx.Rngs):
        self.choice, shape = choice, choice.layer
        table = lambda rows: nnx.Param(_SMALL(rngs.params(), (rows, shape.width), jnp.float32))  # noqa: E731
        self.embedding, self.position, self.kind = table(shape.vocabulary), table(shape.length), table(choice.kinds)
        self.first, self.blocks = norm(shape, rngs), blocks(shape, rngs)
        self.between = nnx.Linear(shape.width, shape.width, rngs=rngs)
        if choice.classes:
            self.head = nnx.Linear(shape.width, choice.classes, rngs=rngs)
        else:
            self.after, self.bias = norm(shape, rngs), nnx.Param(jnp.zeros(shape.vocabulary))

    def _encoded(self, tokens: Any, counted: Any, kinds: Any) -> Any:
        most = self.choice.layer.length - self.choice.offset
        if len(tokens) > most:
            raise ShapeError(f"a row of {len(tokens)} tokens; this model has {most} positions")
        place = self.choice.offset + jnp.arange(len(tokens))
        x = self.embedding[...][tokens] + self.position[...][place] + self.kind[...][kinds]
        first: Any = self.first
        seen = jnp.broadcast_to(counted.astype(bool)[None, :], (len(tokens), len(tokens)))
        return run(self.choice.layer, self.blocks, first(x), None, seen)

    def features(self, tokens: Any, counted: Any, kinds: Any) -> Any:
        return self._encoded(tokens, counted, kinds)[0]

    def __call__(self, tokens: Any, counted: Any, kinds: Any) -> Any:
        x = self._encoded(tokens, counted, kinds)
        if self.choice.classes:
            return self.head(jnp.tanh(self.between(x[0])))
        after: Any = self.after
        return after(ACTIVATIONS[self.choice.layer.mlp](self.between(x))) @ self.embedding[...].T + self.bias[...][None]


def text_task(graph: Any, rest: Any, classes: int) -> Task:
    """The task of one row `{"tokens": [T], "counted": [T], "label": ...}` and, where there are two segments, `"kinds"`
    `[T]`. With classes, `label` is one of them and the loss cross-entropy in nats; without, `label` `[T]` holds the
    word at each position that is to be guessed and -1 elsewhere, and the loss is nats a position."""

    def model(params: Any) -> Any:
        return nnx.merge(graph, params, rest, copy=True)

    def inputs(example: Any) -> tuple[Any, Any, Any]:
        tokens = example["tokens"]
        counted, kinds = example.get("counted"), example.get("kinds")
        counted = jnp.ones(tokens.shape) if counted is None else counted
        return tokens, counted, jnp.zeros_like(tokens) if kinds is None else kinds

    def outputs(params: Any, example: Any) -> Any:
        return model(params)(*inputs(example))

    def loss(params: Any, example: Any) -> Any:
        found, label = jax.nn.log_softmax(outputs(params, example)), example["label"]
        if classes:
            return -found[label]
        nll = -jnp.take_along_axis(found, jnp.maximum(label, 0)[:, None], 1)[:, 0]
        return jnp.where(label >= 0, nll, 0)

    def features(params: Any, example: Any) -> Any:
        return model(params).features(*inputs(example))

    label = (lambda example: jnp.asarray(example["label"])) if classes else None
    return Task(loss=loss, outputs=outputs, features=features, label=label)
