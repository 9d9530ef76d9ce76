"""Flax NNX classifiers of images `[H, W, C]`, one image at a time, and the task that trains them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from uimjax.errors import UnknownNameError
from uimjax.task import Task


class MLP(nnx.Module):
    """Pixels to hidden layers to logits; `features` is the last hidden layer."""

    def __init__(self, shape: tuple[int, ...], classes: int, rngs: nnx.Rngs, widths: tuple[int, ...] = (128, 64)):
        sizes = [functools.reduce(int.__mul__, shape), *widths]
        self.hidden = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in zip(sizes[:-1], sizes[1:], strict=True)])
        self.head = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def features(self, image: Any) -> Any:
        x = image.reshape(-1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return x

    def __call__(self, image: Any) -> Any:
        return self.head(self.features(image))


class SmallCNN(nnx.Module):
    """Two 3x3 convolutions, the second with stride 2, a hidden layer and logits."""

    def __init__(self, shape: tuple[int, ...], classes: int, rngs: nnx.Rngs, channels: int = 16, width: int = 64):
        height, across, depth = shape
        self.one = nnx.Conv(depth, channels, (3, 3), rngs=rngs)
        self.two = nnx.Conv(channels, 2 * channels, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(-(-height // 2) * -(-across // 2) * 2 * channels, width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def features(self, image: Any) -> Any:
        x = nnx.relu(self.two(nnx.relu(self.one(image))))
        return nnx.relu(self.hidden(x.reshape(-1)))

    def __call__(self, image: Any) -> Any:
        return self.head(self.features(image))


MODELS: dict[str, Callable[..., nnx.Module]] = {"mlp": MLP, "cnn": SmallCNN}


def build(name: str | Callable[..., nnx.Module], shape: tuple[int, ...], classes: int, seed: int) -> tuple[Task, Any]:
    """(task, parameters) of a model by name, or of the reader's own `make(shape, classes, rngs) -> nnx.Module`.

    Raises:
        UnknownNameError: names the nearest.
    """
    if isinstance(name, str) and name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    make = MODELS[name] if isinstance(name, str) else name
    graph, params, rest = nnx.split(make(shape, classes, nnx.Rngs(seed)), nnx.Param, ...)
    return _task_of(graph, rest), params


@functools.lru_cache(maxsize=16)
def _task_cached(graph: Any) -> Task:
    return classifier_task(graph)


def _task_of(graph: Any, rest: Any) -> Task:
    return classifier_task(graph, rest) if jax.tree.leaves(rest) else _task_cached(graph)


def classifier_task(graph: Any, rest: Any = None) -> Task:
    """The task of one `{"image", "label"}` row for an NNX graph: cross-entropy in nats, logits, features.

    `rest` is the model's state that is no parameter (an evaluation-mode one), merged back unchanged.
    """

    def model(params: Any) -> Any:
        states = (params,) if rest is None else (params, rest)
        return nnx.merge(graph, *states, copy=True)

    def outputs(params: Any, example: Any) -> Any:
        return model(params)(example["image"])

    def loss(params: Any, example: Any) -> Any:
        return -jax.nn.log_softmax(outputs(params, example))[example["label"]]

    def features(params: Any, example: Any) -> Any:
        found = model(params)
        return found.features(example["image"]) if hasattr(found, "features") else outputs(params, example)

    return Task(loss=loss, outputs=outputs, features=features, label=lambda example: jnp.asarray(example["label"]))
