"""What the built-in trainers learn: rows, networks, and all that a run draws from its seed.

A run follows from its settings and its seed alone, by NumPy's generators `g(*k) = np.random.default_rng([seed, *k])`:

- its data are the rows `g(0).permutation(N)[:data]`, so that of two runs of a seed the larger one has the rows of the
  smaller one too;
- `round(corruption n)` of its n labels (or tokens) are those first in `g(2).permutation(n)`; to each, modulo the
  number of classes (tokens), the number at its place in `g(2)`'s next `integers(1, classes, size=n)` is added;
- the orders `g(1, epoch).permutation(data)` of epochs 0, 1, ... stand one after the other, and every `batch_size` of
  them are a batch, also where it spans two epochs.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.errors import ShapeError, UsageError
from uimjax.models import classifiers, decoder
from uimjax.models.blocks import Shape
from uimjax.store import digest_tree
from uimjax.task import Task
from uimjax.understand.scaling.runs import Settings

ROWS, ORDER, NOISE = 0, 1, 2  # what a run's generators are for
Rows = dict[str, np.ndarray]


class Labelled(NamedTuple):
    """`x` `[N, ...]` floats and `y` `[N]` integers from 0; `test_x` `[M, ...]` and `test_y` `[M]` are held out."""

    x: Any
    y: Any
    test_x: Any
    test_y: Any


class Tokens(NamedTuple):
    """`tokens` `[N, T]` integers, `test_tokens` `[M, T]` held out. `vocabulary` 0: one more than the largest token."""

    tokens: Any
    test_tokens: Any
    vocabulary: int = 0


class Problem(NamedTuple):
    """What the runs of a sweep learn. `shared` rows are the same for all runs; `own(order, share, generator)` gives the
    rows that a run has for itself, those of `order`, corrupted. `units`: examples, or predicted tokens, in a row;
    `replaceable`: labels, or tokens, that noise may hit in it.
    `uniform`: the loss of a uniform guess. `make(settings)` gives a function of a seed or key to (task, parameters);
    `right(outputs, row)` the share of a row that is predicted rightly."""

    rows: int
    units: int
    replaceable: int
    uniform: float
    shared: Rows
    held_out: Rows
    own: Callable[[np.ndarray, float, np.random.Generator], Rows]
    make: Callable[[Settings], Callable[[Any], tuple[Task, Any]]]
    right: Callable[[Any, Any], Any]
    digest: str


def problem(trainer: str, data: Any) -> Problem:
    """Of a built-in trainer; the digits where "mlp" is given no data.

    Raises:
        UsageError: data of another kind. ShapeError, NonFiniteError: what arrived and what was wanted.
    """
    wanted = Labelled if trainer == "mlp" else Tokens
    if data is None and trainer == "mlp":
        data = _digits()
    if not isinstance(data, wanted):
        raise UsageError(
            f"trainer {trainer!r} learns from {wanted.__name__}({', '.join(wanted._fields)}) and data is "
            f"{type(data).__name__}: uimjax.scaling.sweep(..., data=uimjax.scaling.{wanted.__name__}(...)), or a "
            "trainer of your own, pkg.module:fn, that reads its data"
        )
    return _classes(data) if isinstance(data, Labelled) else _language(data)


def _digits() -> Labelled:
    from uimjax.corpora.handwritten import digits  # reads scikit-learn, which takes a second

    corpus = digits()
    return Labelled(corpus.train["image"], corpus.train["label"], corpus.test["image"], corpus.test["label"])


def _classes(data: Labelled) -> Problem:
    x, test_x = (np.asarray(part, np.float32) for part in (data.x, data.test_x))
    y, test_y = (_whole(name, getattr(data, name), 1) for name in ("y", "test_y"))
    rows = {"train": {"image": x, "label": y}, "test": {"image": test_x, "label": test_y}}
    for name, part in rows.items():
        row.count(part)
        row.check_finite(part, f"{name} rows")
    if x.ndim < 2 or x.shape[1:] != test_x.shape[1:]:
        raise ShapeError(f"x of shape {list(x.shape)} and test_x of {list(test_x.shape)}; [N, ...] and [M, ...] wanted")
    classes = int(max(y.max(), test_y.max())) + 1
    if classes < 2:
        raise ShapeError("all labels are 0; at least two classes were wanted")

    def own(order: np.ndarray, share: float, rng: np.random.Generator) -> Rows:
        return {"label": replaced(y[order], share, classes, rng)}

    def make(settings: Settings) -> Any:
        return _perceptron(x.shape[1:], classes, settings["width"], settings["depth"])

    return Problem(
        len(x), 1, 1, math.log(classes), {"image": x}, rows["test"], own, make, _right_class, digest_tree(rows)
    )


def _language(data: Tokens) -> Problem:
    tokens, test = (_whole(name, getattr(data, name), 2) for name in ("tokens", "test_tokens"))
    if not len(tokens) or not len(test) or tokens.shape[1] != test.shape[1] or tokens.shape[1] < 2:
        raise ShapeError(
            f"tokens {list(tokens.shape)} and test_tokens {list(test.shape)}; [N, T] and [M, T], of T = 2 or more, "
            "were wanted"
        )
    largest, length = int(max(tokens.max(), test.max())), tokens.shape[1]
    size = data.vocabulary or max(largest + 1, 2)
    if largest >= size:
        raise UsageError(f"the token {largest} does not belong to a vocabulary of {size}")

    def own(order: np.ndarray, share: float, rng: np.random.Generator) -> Rows:
        return {"tokens": replaced(tokens[order], share, size, rng)}

    def make(settings: Settings) -> Any:
        return _decoder(Shape(size, length, settings["depth"], settings["width"], settings["heads"]))

    digest = digest_tree({"tokens": tokens, "test": test, "vocabulary": np.int64(size)})
    return Problem(
        len(tokens), length - 1, length, math.log(size), {}, {"tokens": test}, own, make, _right_tokens, digest
    )


def _whole(name: str, given: Any, axes: int) -> np.ndarray:
    found = np.asarray(given)
    if found.ndim != axes or found.dtype.kind not in "iu" or (found.size and found.min() < 0):
        raise ShapeError(
            f"{name} is {found.dtype}{list(found.shape)}; integers from 0, of {axes} "
            f"{'axes' if axes > 1 else 'axis'}, were wanted"
        )
    return found.astype(np.int32)


def noise_of(learnt: Problem, settings: Settings, unique: int) -> float:
    """The share of a run's labels or tokens that is really replaced, of `unique` rows: whole ones alone are."""
    count = unique * learnt.replaceable
    return round(settings["corruption"] * count) / count


def replaced(values: np.ndarray, share: float, kinds: int, rng: np.random.Generator) -> np.ndarray:
    """`round(share n)` of n integers below `kinds`, each replaced by another one, all others as likely."""
    found = values.reshape(-1).copy()
    hit = rng.permutation(len(found))[: round(share * len(found))]
    shift = rng.integers(1, kinds, size=len(found))
    found[hit] = (found[hit] + shift[hit]) % kinds
    return found.reshape(values.shape)


@functools.lru_cache(maxsize=64)
def _perceptron(shape: tuple[int, ...], classes: int, width: int, depth: int) -> Callable[[Any], tuple[Task, Any]]:
    module = functools.partial(classifiers.MLP, widths=(width,) * depth)
    return lambda seed: classifiers.build(module, shape, classes, seed)


@functools.lru_cache(maxsize=64)
def _decoder(shape: Shape) -> Callable[[Any], tuple[Task, Any]]:
    def make(seed: Any) -> tuple[Task, Any]:
        task, params = decoder.build_decoder(shape, seed)
        return _per_token(task), params

    return make


@functools.lru_cache(maxsize=64)
def _per_token(task: Task) -> Task:
    """The mean over predicted tokens instead of their sum: nats a token, and gradients of one scale for all lengths."""

    def row(example: Any) -> Any:
        return {"tokens": example["tokens"], "counted": jnp.ones(example["tokens"].shape, jnp.float32)}

    def loss(params: Any, example: Any) -> Any:
        return jnp.sum(task.loss(params, row(example))) / (example["tokens"].shape[0] - 1)

    outputs = task.outputs
    assert outputs is not None
    return Task(loss=loss, outputs=lambda params, example: outputs(params, row(example)))


def _right_class(logits: Any, example: Any) -> Any:
    return (jnp.argmax(logits) == example["label"]).astype(jnp.float32)


def _right_tokens(logits: Any, example: Any) -> Any:
    return jnp.mean((jnp.argmax(logits[:-1], axis=-1) == example["tokens"][1:]).astype(jnp.float32))


# ---------------------------------------------------------------- what a run draws, on the host


def generator(settings: Settings, *what: int) -> np.random.Generator:
    return np.random.default_rng([settings["seed"], *what])


def chosen(settings: Settings, rows: int) -> np.ndarray:
    """The rows `[data]` that a run learns from."""
    return generator(settings, ROWS).permutation(rows)[: settings["data"]]


def unique(settings: Settings) -> int:
    """How many of its rows a run meets."""
    return min(settings["data"], settings["steps"] * settings["batch_size"])


def met(settings: Settings, first: int, stop: int) -> np.ndarray:
    """Which of its own rows a run meets in the steps [first, stop): `[stop - first, batch_size]`."""
    size, data = settings["batch_size"], settings["data"]
    begin, end = first * size, stop * size
    epochs = range(begin // data, -(-end // data))
    orders = np.concatenate([generator(settings, ORDER, epoch).permutation(data) for epoch in epochs])
    return orders[begin - epochs[0] * data :][: end - begin].reshape(stop - first, size)


def own_rows(learnt: Problem, runs: Sequence[Settings], most: int) -> tuple[np.ndarray, Rows]:
    """(which rows of all `[K, most]`, what the runs have for themselves `[K, most, ...]`), padded with the last."""
    orders, owned = [], []
    for settings in runs:
        order = chosen(settings, learnt.rows)
        fill = np.minimum(np.arange(most), len(order) - 1)
        own = learnt.own(order, settings["corruption"], generator(settings, NOISE))
        orders.append(order[fill].astype(np.int32))
        owned.append({name: values[fill] for name, values in own.items()})
    return np.stack(orders), {name: np.stack([its[name] for its in owned]) for name in owned[0]}
