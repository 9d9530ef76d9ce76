"""Counterfactual truth: train again without some rows, or a step more on some, and see what changes.

Leave-one-out and leave-k-out (`effects`), removal curves and QLD (`removal_curve`), tail-patch (`tail_patch`). Batches
keep their places ("masked"), so nothing differs but the rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.errors import ShapeError, UsageError
from uimjax.interpret.bank import train_bank
from uimjax.progress import Progress, quiet
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task
from uimjax.training import Fitted, fit


class Removal(NamedTuple):
    """A measured effect: `before` with all rows, `after` retraining without them; `change` = after - before."""

    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


def retrain_without(task: Task, params: Any, data: Any, ids: np.ndarray, recipe: Recipe) -> Fitted:
    """Train from the same initial parameters, order and seed, with weight 0 on the rows `ids`.

    Batches keep their places (masked, not re-batched), so nothing differs but the rows.

    Raises:
        UsageError: an id outside the data.
    """
    count, ids = row.count(data), np.asarray(ids, np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= count):
        raise UsageError(f"row ids {ids.min()} to {ids.max()} to leave out, of {count} rows")
    weights = np.ones(count, np.float32)
    weights[ids] = 0.0
    return fit(task, params, data, recipe, weights=weights)


def removal_effect(
    task: Task,
    params: Any,
    data: Any,
    ids: np.ndarray,
    recipe: Recipe,
    measure: Callable[[Any], float],
    before: float,
) -> Removal:
    """The effect on `measure(params)` of never having seen the rows."""
    return Removal(before, measure(retrain_without(task, params, data, ids, recipe).params))


class Effects(NamedTuple):
    """`before` `[S, Q]`: the measurement after training on all rows with each seed; `after` `[K, S, Q]`: without each
    of K sets of them."""

    before: np.ndarray
    after: np.ndarray

    @property
    def change(self) -> np.ndarray:
        """`[K, Q]`, the mean over seeds of after - before (the same seed's)."""
        return (self.after - self.before[None]).mean(1)


def effects(
    task: Task,
    initial: Callable[[int], Any],
    data: Any,
    recipe: Recipe,
    removed: Sequence[np.ndarray],
    measurement: Measurement,
    queries: Any,
    *,
    seeds: tuple[int, ...] = (0, 1),
    folder: Path | None = None,
    progress: Progress = quiet,
) -> Effects:
    """Leave out each of K sets of row ids (one id each: leave-one-out) and train again. Raises as `train_bank`;
    UsageError for an id outside the data, or a set that leaves nothing."""
    count = row.count(data)
    kept = np.ones((1 + len(removed), count), bool)
    for mask, ids in zip(kept[1:], removed, strict=True):
        ids = np.asarray(ids, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < count:
            raise UsageError(f"row ids {ids.min()} to {ids.max()} to leave out, of {count} rows")
        mask[ids] = False
    bank = train_bank(
        task, initial, data, recipe, kept, measurement, queries, seeds=seeds, protocol="masked", folder=folder,
        progress=progress,
    )  # fmt: skip
    return Effects(bank.values[0], bank.values[1:])


class Curve(NamedTuple):
    """The mean change of f over queries after removing the `sizes` strongest proponents, and as many rows drawn blindly
    (`random`, with the standard deviation over draws): where a method works, `top` falls below `random`."""

    sizes: tuple[int, ...]
    top: np.ndarray
    random: np.ndarray
    spread: np.ndarray

    @property
    def qld(self) -> np.ndarray:
        """Change without the top rows less that without random ones, for each size; the more negative the better."""
        return self.top - self.random


def removal_curve(
    task: Task,
    initial: Callable[[int], Any],
    data: Any,
    recipe: Recipe,
    scores: np.ndarray,
    measurement: Measurement,
    queries: Any,
    *,
    shares: Sequence[float] = (0.01, 0.05, 0.1),
    draws: int = 3,
    seeds: tuple[int, ...] = (0, 1),
    folder: Path | None = None,
    progress: Progress = quiet,
) -> Curve:
    """Remove the top rows by `scores` `[N]` or `[N, 1]` (a question asked of the queries' mean), retrain, measure.

    Raises:
        ShapeError: scores of other rows, or of each query apart. As `effects`.
    """
    scores, count = np.asarray(scores), row.count(data)
    if scores.shape not in ((count,), (count, 1)):
        raise ShapeError(f"scores {list(scores.shape)}; one a row, [{count}], of the queries' mean, was wanted")
    order, rng = np.argsort(-scores.ravel(), kind="stable"), np.random.default_rng(0)
    sizes = tuple(max(1, round(share * count)) for share in shares)
    sets = [order[:size] for size in sizes] + [rng.permutation(count)[:size] for size in sizes for _ in range(draws)]
    found = effects(
        task, initial, data, recipe, sets, measurement, queries, seeds=seeds, folder=folder, progress=progress
    ).change.mean(1)
    blind = found[len(sizes) :].reshape(len(sizes), draws)
    return Curve(sizes, found[: len(sizes)], blind.mean(1), blind.std(1))


def tail_patch(
    task: Task, params: Any, data: Any, ids: np.ndarray, measurement: Measurement, queries: Any, rate: float
) -> np.ndarray:
    """`[Q]`: the change of f_q after one step of gradient descent at `rate` on the rows `ids[q]` of `[Q, k]` alone
    (Chang et al. 2024, arXiv 2410.17413). Proponents of the failure raise f.

    Raises:
        ShapeError: ids of other queries.
    """
    ids = np.asarray(ids, np.int64)
    if ids.ndim != 2 or len(ids) != row.count(queries):
        raise ShapeError(f"ids {list(ids.shape)} for {row.count(queries)} queries; [Q, k] was wanted")

    def one(chosen: Any, query: Any) -> Any:
        rows = jax.tree.map(lambda x: jnp.asarray(x)[chosen], data)
        loss = lambda p: jax.vmap(lambda r: jnp.sum(task.loss(p, r)))(rows).mean()  # noqa: E731  # differentiated below
        gradient = jax.grad(loss, allow_int=True)(params)
        moved = jax.tree.map(lambda p, g: p - rate * g if jnp.issubdtype(p.dtype, jnp.inexact) else p, params, gradient)
        return measurement.fun(moved, query) - measurement.fun(params, query)

    return np.asarray(jax.jit(lambda i, q: jax.lax.map(lambda iq: one(*iq), (i, q)))(ids, queries))
