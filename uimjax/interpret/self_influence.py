"""Self-influence: how much a training row's own loss depends on that row. Large for what is learned by heart alone:
wrong labels, outliers, rare cases.

    s_i = grad loss_i^T (H + damping)^-1 grad loss_i

is the influence of row i on its own loss with the sign turned (`tau_ii = -s_i`, see `uimjax.task`), so it is never
negative, and taking the row out is predicted to raise its loss by s_i / N nats (Koh & Liang 2017, arXiv 1703.04730;
mislabelled rows rank first: Pruthi et al. 2020, arXiv 2002.08484, section 4.1, there with H = I). H is a curvature in
its own basis, where s_i is a weighted sum of squares and no gradient of a matrix is formed for one position a row.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.curvature import rotated
from uimjax.curvature.blocks import Laid
from uimjax.curvature.damping import Chosen
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.rotated import Rotated
from uimjax.errors import MismatchError, UsageError
from uimjax.interpret import base, curved
from uimjax.taps import Sites
from uimjax.task import Task


class Measured(NamedTuple):
    """The damped curvature of a task over its rows, the blocks it is laid out in, and the evidence for its damping."""

    inverse: Rotated
    laid: Laid
    damping: Chosen


def measure(
    choice: Kronecker, task: Task, params: Any, data: Any, batch_size: int = 256, folder: Path | None = None
) -> Measured:
    """The curvature over the training rows; its sums are kept in `folder`, as by `uj.score`. Damping that is left open
    is chosen by the influence of rows on other rows (a row's own would drown theirs), which is as little as the noise
    allows. Wrong labels are found better with more, 1 x mean eigenvalue, and in the last layer alone (`Task.include`):
    see `benchmarks/mislabel.py`.

    Raises:
        UsageError: the task lacks what the curvature's source needs. As `uj.score` for parameters, rows and loss.
    """
    laid = curved.laid_out(base.training_sites(task, params, data), params, data)
    count = row.count(data)
    compared = np.arange(count)[:: max(1, count // curved.ROWS)][: curved.ROWS]
    others = np.setdiff1d(np.arange(count), compared)
    queries = row.take(data, others if len(others) else compared)
    inverse, chosen = curved.curvature(
        choice, task, laid, params, data, laid, queries, row.Pass(batch_size, folder=folder)
    )
    return Measured(inverse, laid, chosen)


def self_influence(task: Task, params: Any, data: Any, measured: Measured, batch_size: int = 256) -> np.ndarray:
    """`s_i` of every row, `[N]`, in nats, streamed: memory is one batch and the curvature. The rows need not be those
    that the curvature was measured on.

    >>> import jax.numpy as jnp, uimjax as uj
    >>> from uimjax.curvature.kronecker import Kronecker
    >>> from uimjax.curvature.source import Source
    >>> task = uj.Task(lambda w, x: jnp.sum(jnp.square(x @ w)))
    >>> rows = jnp.asarray([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    >>> measured = measure(Kronecker("ekfac", Source("empirical"), damping=0.1), task, jnp.ones((2, 2)), rows)
    >>> self_influence(task, jnp.ones((2, 2)), rows, measured).argsort().tolist()
    [0, 2, 1]

    *Guarantees*: never negative; a row without any gradient has 0; each value depends on its row alone, so batches may
    be cut and ordered in any way.

    Raises:
        MismatchError: the curvature is of other parameters. UsageError: it is singular without damping.
        NonFiniteError, ShapeError, TapError: from parameters, rows or loss.
    """
    found = base.training_sites(task, params, data)
    _check(found, measured)
    laid = curved.laid_out(found, params, data, measured.laid)
    program, parts = _squared(laid), []
    for batch in row.batches(data, min(batch_size, row.count(data))):
        parts.append(np.asarray(program(params, batch.rows, measured.inverse))[batch.mask])
    values = np.concatenate(parts)
    base.finite(jnp.asarray(values), "self-influences")
    return values


@functools.lru_cache(maxsize=32)
def _squared(laid: Laid):
    """Compiled `(params, rows, inverse) -> s [B]`."""

    def program(params: Any, rows: Any, inverse: Rotated) -> Any:
        return sum(rotated.square(inverse, curved.inside(laid, params, rows, inverse.bases)).values())

    return jax.jit(program)


def _check(found: Sites, measured: Measured) -> None:
    wanted, given = ({leaf.path: leaf.layout.shape for leaf in its.used} for its in (found, measured.laid.sites))
    if wanted != given:
        odd = sorted({path for path, _ in wanted.items() ^ given.items()})[:4]
        raise MismatchError(
            f"the curvature is of other parameters than the loss: {', '.join(odd)} "
            f"({[given.get(path) for path in odd]} against {[wanted.get(path) for path in odd]}). Measure it with the "
            "same task and parameters."
        )
    for path, values in measured.inverse.values.items():
        if not float(jnp.min(values) + measured.inverse.damping[path]) > 0:
            raise UsageError(
                f"the curvature of {path} has eigenvalues of 0 and no damping, so its inverse is infinite: give "
                "Kronecker(damping=...), or leave it None for the rule"
            )
