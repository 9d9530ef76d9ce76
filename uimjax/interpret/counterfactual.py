"""Counterfactual truth, the smallest form: train again without some rows and see what changes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from uimjax import rows as row
from uimjax.errors import UsageError
from uimjax.steps import Recipe
from uimjax.task import Task
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
