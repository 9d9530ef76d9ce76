"""Removal by influence: one Newton step from a minimum to about where training without some rows would have ended.

    theta' = theta + 1 / (n - |F|) H^-1 sum_{i in F} grad loss_i,     H the curvature of the rows that stay

of the n rows, by the same curvature as a trace. At the minimum of a quadratic loss, with H its Hessian, that is the
minimum without the rows F (Koh and Liang 2017, arXiv 1703.04730; Guo et al. 2020, arXiv 1911.03030).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.curvature import Harmonic, Kronecker, Operator, blocks
from uimjax.errors import NonFiniteError, UsageError
from uimjax.interpret import exact
from uimjax.interpret.base import Method
from uimjax.mitigate import subspace
from uimjax.task import Measurement, Task


class Removed(NamedTuple):
    """New `params`; `norm`: the step's length; `how`: the curvature and the damping that were taken."""

    params: Any
    norm: float
    how: dict[str, Any]


def remove(
    task: Task, params: Any, data: Any, forget: Any, curvature: Kronecker | Operator | Harmonic | None = None,
    share: float = 1.0, batch_size: int = 256,
) -> Removed:  # fmt: skip
    """Take the rows `forget` (ids) of `data` out of the parameters. `curvature`: default EK-FAC of the Fisher matrix,
    damped by the rule of traces; `share`: of the step that is taken (below 1 where the loss is far from quadratic).

    Raises:
        UsageError: ids out of range or twice, none or all of the rows, a share outside of (0, 1]. NonFiniteError: the
            step is not finite. As `uj.score` for the curvature.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share={share} arrived; above 0 and at most 1 was wanted")
    count = row.count(data)
    forget = row.chosen(forget, count, "to remove")
    gone, rest = (row.take(data, ids) for ids in (forget, np.setdiff1d(np.arange(count), forget)))
    lost = Measurement("loss of the rows to remove", lambda p, example: jnp.sum(task.loss(p, example)))
    method = Method("newton", curvature=curvature or Kronecker(), normalize="none")
    ready = exact.ready(task, params, rest, lost, gone, method, row.Pass(batch_size))
    (direction,) = exact.directions(ready, params, gone, method, each=False)  # - H^-1 of the mean gradient
    size = share * len(forget) / (count - len(forget))
    step = {path: -size * x[0] for path, x in blocks.split(ready.laid, direction).items()}
    norm = float(jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in step.values())))
    if not np.isfinite(norm):
        raise NonFiniteError("the Newton step is not finite; take more damping: Kronecker(damping=1.0)")
    values = subspace.by_path(params)
    return Removed(subspace.join(params, {path: values[path] + x for path, x in step.items()}), norm, ready.how)
