"""Metagradients: the exact derivative of a measurement after training in the weight of each row, by reverse mode
through the training itself (MAGIC: Ilyas & Engstrom 2025, arXiv 2504.16430), of any Optax optimizer.

With row weights w the training is a function `theta(w)`, and `score_iq = n df_q(theta(w)) / dw_i`: exact to first
order, with no convexity or convergence assumed. A training that is not smooth in its weights has derivatives that
predict little, though each is right; the mean over random subsets of the rows and seeds predicts what happens to such
subsets (`smoothed`).

The states of the run are kept at about sqrt(T) of its T steps; what lies between is run again, and the replay must end
in the next kept state to the bit. All queries are cotangents of one backward pass.
"""

import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import checkpoint, steps, store
from uimjax import rows as row
from uimjax.convolutions import fast
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.interpret import bank
from uimjax.interpret.base import Scores
from uimjax.progress import Progress, quiet
from uimjax.steps import Recipe
from uimjax.task import NATS, RELATIVE, Measurement, Task

Divide = Literal["weights", "batch"]
DIVIDE = ("weights", "batch")
_PARTS, _END = "parts", "end"  # folders of what is kept


SAVE_SECONDS = 60.0  # between what is kept of a backward pass


class Order(NamedTuple):
    """What each step sees: row ids `[S, B]` and the number of the epoch `[S]`."""

    ids: Any
    epoch: Any


class Replay(NamedTuple):
    """The programs of one training. `forward(state, order, key, data, weights) -> state`; `backward(state, cotangent,
    found, order, key, data, weights) -> (end state, cotangent, found)` for the steps of a segment."""

    start: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    asked: Callable[..., Any]


def metagradient(
    task: Task,
    params: Any,
    data: Any,
    recipe: Recipe,
    measurement: Measurement,
    queries: Any,
    *,
    weights: np.ndarray | None = None,
    divide: Divide = "weights",
    folder: str | Path | None = None,
    progress: Progress = quiet,
) -> Scores:
    """`[N, Q]`: `n df_q/dw_i` at the given row weights (ones), for the training of `params` by `recipe`.

    Rows of weight 0 are met by nothing; their derivative is that of letting them in. `divide`: a batch's loss is its
    weighted sum over the sum of its "weights" (as `training.fit` and the banks have it), or over the size of the
    "batch", so that lower weights take shorter steps. With `folder` the backward pass is kept there once a minute and
    its end for good, under a digest of everything it follows from: a run that was stopped goes on, to the same bits.

    Raises:
        NonFiniteError: training or its derivative diverges. UsageError: weights of another length.
    """
    count = row.count(data)
    weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    if weights.shape != (count,) or not weights.sum() > 0:
        raise UsageError(f"weights of shape {weights.shape} for {count} rows; [N], not all 0, was wanted")
    found = _unrolled(task, params, data, recipe, measurement, queries, weights, divide, folder, progress)
    return Scores(found.T * count, f"metagradient, {recipe.epochs} epochs", _unit(measurement))


def _unit(measurement: Measurement) -> str:
    return NATS if measurement.unit == "nats" else RELATIVE


def _unrolled(
    task: Task, params: Any, data: Any, recipe: Recipe, measurement: Measurement, queries: Any, weights: Any,
    divide: Divide, folder: str | Path | None, progress: Progress,
) -> np.ndarray:  # fmt: skip
    """`df_q/dw_i` `[Q, N]`."""
    if divide not in DIVIDE:
        raise UnknownNameError("way to divide a batch's loss", divide, DIVIDE)
    where = None
    if folder is not None:
        cause = bank.cause(task, measurement, params, data, queries, recipe, divide, derived=True)
        where = Path(folder) / store.stage_key("metagradient", cause, store.digest_array(np.asarray(weights)))
        if checkpoint.latest(where / _END) is not None:
            blank = np.zeros((row.count(queries), row.count(data)), np.float32)
            return np.asarray(checkpoint.load(where / _END, (blank,))[1][0], np.float64)
    found = _backward(task, params, data, recipe, measurement, queries, weights, divide == "batch", where, progress)
    if where is not None:
        checkpoint.save(where / _END, 0, (found,))
        shutil.rmtree(where / _PARTS, ignore_errors=True)  # as large as the parameters, a query
    return found.astype(np.float64)


def _backward(
    task: Task, params: Any, data: Any, recipe: Recipe, measurement: Measurement, queries: Any, weights: Any,
    fixed: bool, where: Path | None, progress: Progress,
) -> np.ndarray:  # fmt: skip
    count, key = row.count(data), jax.random.key(recipe.seed)
    data, queries, weights = jax.tree.map(jnp.asarray, (data, queries, weights))
    made = _replay(task, steps.static(recipe, count), measurement, count, fixed)
    order = _orders(key, recipe.epochs, count, recipe.batch_size)
    kept, end = _forward(made, made.start(params), order, key, data, weights)
    carried = made.asked(end, queries), jnp.zeros((row.count(queries), count), jnp.float32)
    done, saved = 0, time.monotonic()
    if where is not None and checkpoint.latest(where / _PARTS):
        done, carried = checkpoint.load(where / _PARTS, carried)
    behind = list(enumerate(reversed(kept)))
    for number, (first, state) in progress(behind, "differentiating through training", unit="segments", skip=done):
        if number >= done:
            again, *carried = made.backward(state, *carried, _cut(order, first, kept), key, data, weights)
            _same_to_the_bit(again, end)
            if where is not None and time.monotonic() - saved >= SAVE_SECONDS:
                checkpoint.save(where / _PARTS, number + 1, tuple(carried))
                saved = time.monotonic()
        end = state
    found = carried[1]
    if not bool(jnp.isfinite(found).all()):
        raise NonFiniteError("the derivative through training is not finite: it diverges; lower the learning rate")
    return np.asarray(found)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _orders(key: Any, epochs: int, count: int, size: int) -> Order:
    found = jax.vmap(lambda epoch: steps.order(key, epoch, count, size))(jnp.arange(epochs))
    return Order(found.reshape(-1, size), jnp.repeat(jnp.arange(epochs), found.shape[1]))


def _forward(
    made: Replay, state: Any, order: Order, key: Any, data: Any, weights: Any
) -> tuple[list[tuple[int, Any]], Any]:
    """([(number of a step, the state before it)], the end)."""
    length = max(1, math.isqrt(len(order.ids)))
    kept = []
    for first in range(0, len(order.ids), length):
        kept.append((first, state))
        state = made.forward(state, _between(order, first, first + length), key, data, weights)
    if not all(bool(jnp.isfinite(x).all()) for x in _floats(state)):
        raise NonFiniteError("training diverged: its parameters are not finite; lower the learning rate")
    return kept, state


def _between(order: Order, first: int, stop: int) -> Order:
    return jax.tree.map(lambda x: x[first:stop], order)


def _cut(order: Order, first: int, kept: list[tuple[int, Any]]) -> Order:
    following = [start for start, _ in kept if start > first]
    return _between(order, first, min(following, default=len(order.ids)))


def _bits(state: Any) -> Any:
    """Typed random keys as their data."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state)


def _same_to_the_bit(again: Any, end: Any) -> None:
    for one, other in zip(*(jax.tree.leaves(_bits(x)) for x in (again, end)), strict=True):
        if not np.array_equal(np.asarray(one), np.asarray(other)):
            raise NonFiniteError(
                "a segment of the training ended elsewhere when it was run again: some operation is not deterministic "
                "here. On a GPU set XLA_FLAGS=--xla_gpu_deterministic_ops=true and start again."
            )


@functools.lru_cache(maxsize=16)
def _replay(task: Task, static: steps.Static, measurement: Measurement, count: int, fixed: bool) -> Replay:
    made = steps.optimizer(static)

    def step(state: Any, at: Order, key: Any, data: Any, weights: Any) -> Any:
        return moved(state, at, key, *steps.gather(data, at.ids, weights))

    def moved(state: Any, at: Order, key: Any, rows: Any, weight: Any) -> Any:
        params, optimizer = state
        size = jnp.sum(at.ids < count) if fixed else None  # a short last batch has its own size
        keys = steps.noise(task, key, at.epoch, at.ids)
        return steps.step(task, made.update, params, optimizer, rows, weight, size, keys)[:2]

    @jax.jit
    def forward(state: Any, order: Order, key: Any, data: Any, weights: Any) -> Any:
        return jax.lax.scan(lambda s, at: (step(s, at, key, data, weights), None), state, order)[0]

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def backward(state: Any, cotangent: Any, found: Any, order: Order, key: Any, data: Any, weights: Any) -> Any:
        end, states = jax.lax.scan(lambda s, at: (step(s, at, key, data, weights), s), state, order)

        def back(carry: Any, met: Any) -> tuple[Any, None]:
            cotangent, found = carry
            before, at = met
            rows, weight = steps.gather(data, at.ids, weights)
            _, pull = jax.vjp(lambda s, w: _floats(moved(_with(before, s), at, key, rows, w)), _floats(before), weight)
            cotangent, touched = fast(jax.vmap(pull))(cotangent)
            return (cotangent, found.at[:, at.ids].add(touched, mode="drop")), None

        (cotangent, found), _ = jax.lax.scan(back, (cotangent, found), (states, order), reverse=True)
        return end, cotangent, found

    @jax.jit
    def asked(state: Any, queries: Any) -> Any:
        """The gradients of all queries in the final state's float leaves."""

        def one(query: Any) -> Any:
            return jax.grad(lambda s: measurement.fun(_with(state, s)[0], query))(_floats(state))

        return jax.vmap(one)(queries)

    return Replay(jax.jit(lambda params: (params, made.init(params))), forward, backward, asked)


def _floats(state: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _with(state: Any, floats: list[Any]) -> Any:
    """The state with its float leaves replaced; counters and keys stay."""
    queue = iter(floats)
    leaves, tree = jax.tree.flatten(state)
    return tree.unflatten([next(queue) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in leaves])


# ---------------------------------------------------------------- smoothed


class Smoothed(NamedTuple):
    """`values` `[N, Q]` over `masks` subsets, `error` `[N, Q]` their standard error (NaN with one). `smoothness` `[Q]`:
    how metasmooth the training is, the mean correlation over rows of the derivatives at two masks (1: the measurement
    is linear in the weights; 0: a derivative at one weighting tells nothing about another; NaN with one mask)."""

    values: np.ndarray
    error: np.ndarray
    masks: int
    unit: str
    smoothness: np.ndarray

    def scores(self) -> Scores:
        its = "" if self.masks == 1 else f", metasmoothness {np.mean(self.smoothness):.2f}"
        return Scores(self.values, f"smoothed metagradient, {self.masks} masks{its}", self.unit)


def smoothed(
    task: Task,
    initial: Callable[[int], Any],
    data: Any,
    recipe: Recipe,
    measurement: Measurement,
    queries: Any,
    *,
    masks: int = 10,
    share: float = 0.5,
    seed: int = 0,
    divide: Divide = "batch",
    folder: str | Path | None = None,
    progress: Progress = quiet,
) -> Iterator[Smoothed]:
    """Metagradients averaged over random subsets (a `share` of the rows) and seeds: after each mask the result so far,
    so that one may stop when `error` is small enough. `initial(seed)` gives the parameters that a run starts from.
    `folder`: as for `metagradient`; masks that are done are not run again.

    With `X_m` `[N, Q]` the metagradient of mask m and `s_m` `[Q]` its standard deviation over the rows,
    `values = median_m(s_m) mean_m(X_m / s_m)`: every run has the same say about a query. The size of a derivative
    through a training that is not smooth varies tenfold between runs, and tells nothing; in a plain mean the largest
    would decide (Fashion-MNIST, 6 masks: an LDS of .57, and of .67 so).

    Divided by the size of the batch, a run on half of the rows takes half steps and is smoother: on MNIST single runs
    had an LDS of .30 to .42 so, and of .20 to .35 divided by the weights.
    """
    count, sizes = row.count(data), []
    kept = bank.subsets(count, masks, share, seed)
    total = squares = np.zeros((count, row.count(queries)))
    for m in range(masks):
        its = dataclasses.replace(recipe, seed=recipe.seed + m)
        start, weights = initial(recipe.seed + m), kept[m].astype(np.float32)
        found = _unrolled(task, start, data, its, measurement, queries, weights, divide, folder, progress).T * count
        sizes.append(found.std(0))
        found = found / np.maximum(sizes[-1], 1e-30)
        total, squares = total + found, squares + found**2
        mean, size = total / (m + 1), np.median(sizes, axis=0)
        variance = np.maximum(squares / (m + 1) - mean**2, 0) * (m + 1) / max(m, 1)
        error = np.sqrt(variance / (m + 1)) if m else np.full_like(mean, np.nan)
        pairs = max(m * (m + 1), 1)  # of unlike masks; the variance of a sum of m unit ones is m + pairs x correlation
        alike = (total.var(0) - (m + 1)) / pairs if m else np.full(len(size), np.nan)
        yield Smoothed(mean * size, error * size, m + 1, RELATIVE, alike)
