"""Directions by solving: a curvature that is applied to the queries' gradients through products with it or passes over
the rows (CG, LiSSA, Arnoldi, dense; DataInf), instead of being measured once and for all."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from uimjax.curvature import harmonic, operator, rotated, source
from uimjax.curvature.blocks import Laid
from uimjax.curvature.harmonic import Harmonic
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.operator import PLAIN, Operator, Precondition
from uimjax.curvature.rotated import Rotated
from uimjax.curvature.source import Source
from uimjax.errors import UsageError
from uimjax.interpret import curved
from uimjax.rows import Pass
from uimjax.task import Task

Gradients = dict[str, Any]  # {path: [Q, *parameter shape]}
Solver = Callable[[Gradients], Gradients]


def solver(
    choice: Operator | Harmonic, task: Task, laid: Laid, params: Any, data: Any, asked: Laid, queries: Any,
    how: Pass,
) -> tuple[Solver, dict[str, Any]]:  # fmt: skip
    """(`g -> H^-1 g`, what to say of it: filled in as it is used).

    Raises: as `operator.solve` and `harmonic.solve`; UsageError: the damping cannot be chosen for this task.
    """
    if isinstance(choice, Harmonic):
        batches = lambda: how.over(data)  # noqa: E731  # a stream for each of two passes
        said = {"curvature": str(choice), "damping": f"damping {choice.damping:g} x mean eigenvalue of each parameter"}
        return functools.partial(harmonic.solve, laid.sites, params, batches, damping=choice.damping), said
    value, why, near = _damping(choice, task, laid, params, data, asked, queries, how)
    told: dict[str, Any] = {"curvature": str(choice), "damping": f"damping {value:.3g} ({why})", "solves": []}

    def solve(gradients: Gradients) -> Gradients:
        found, said = operator.solve(choice, laid.sites, task, params, data, gradients, how, value, near)
        told["solves"].append({key: np.asarray(x).tolist() for key, x in said.items() if key != "curvature"})
        return found

    return solve, told


def _damping(
    choice: Operator, task: Task, laid: Laid, params: Any, data: Any, asked: Laid, queries: Any, how: Pass
) -> tuple[float, str, Precondition]:
    """(an absolute damping, why that, EK-FAC to precondition with where it is at hand). Left open it is EK-FAC's by the
    agreement of halves: its eigenvalues are those of the same matrix, and two halves of a solve would have to be solved
    again for every value tried."""
    if choice.damping is not None:
        mean = operator.mean_eigenvalue(choice, laid.sites, task, params, data, how)
        if not mean > 0:
            raise UsageError(
                f"the mean eigenvalue of the {choice.matrix} is {mean:.3g}, so a multiple of it is no damping; take "
                "matrix='ggn'"
            )
        return choice.damping * mean, f"{choice.damping:g} x mean eigenvalue", PLAIN
    if task.outputs is None:
        raise UsageError(
            f"{choice}: its damping is chosen by EK-FAC's Fisher matrix, which needs the model's outputs. Give the "
            "task outputs(params, example) -> logits, or choose a damping (a multiple of the mean eigenvalue)."
        )
    made = source.gradients(Source("fisher"), task, laid, params, data)
    del made  # refused here, if at all, in the words of the source
    cure = f"Operator({choice.kind!r}, damping=0.1)"
    inverse, chosen = curved.curvature(Kronecker("ekfac"), task, laid, params, data, asked, queries, how, cure)
    near = Precondition(_divided(laid), inverse) if choice.kind == "cg" else PLAIN
    return next(iter(inverse.damping.values())), f"EK-FAC's, {chosen}", near


@functools.lru_cache(maxsize=16)
def _divided(laid: Laid) -> Callable[[Rotated, Gradients], Gradients]:
    def divided(inverse: Rotated, v: Gradients) -> Gradients:
        found = rotated.solve(laid, inverse, {path: x[None] for path, x in v.items()})
        return {path: found[path][0].astype(x.dtype) for path, x in v.items()}

    return divided
