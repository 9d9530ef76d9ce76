"""SOURCE: influence by approximate unrolling of a training run in segments (Bae et al. 2024, arXiv 2405.12186).

Over segment l, K_l steps at the mean learning rate eta_l with the mean Gauss-Newton matrix H_l and gradients g_l of its
checkpoints, gradient descent forgets by `S_l = exp(-eta_l K_l H_l)` what came before it, and takes in
`r_l = (I - S_l) H_l^-1 g_l`. So

    score_i = - sum_l < S_{l+1} ... S_L grad f,  (I - S_l) H_l^-1 g_l(i) >

with `grad f` the mean over the last segment's checkpoints. No damping, no convergence: where a segment is too short for
an eigenvalue, `(1 - exp(-eta K s)) / s` is eta K, not 1 / s. H_l is K-FAC's or EK-FAC's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.curvature import blocks, kronecker, rotated, source, statistics
from uimjax.curvature.blocks import Laid
from uimjax.curvature.kronecker import Kronecker, Sums
from uimjax.curvature.rotated import Rotated
from uimjax.errors import UsageError
from uimjax.interpret import base, curved, exact, resume
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.trajectory import Checkpoint
from uimjax.rows import Pass
from uimjax.task import RELATIVE, Measurement, Task

SEGMENTS = 3  # the paper's choice


def score(
    task: Task, run: list[Checkpoint], data: Any, measurement: Measurement, queries: Any, method: Method, each: bool,
    how: Pass,
) -> Scores:  # fmt: skip
    """`[N, Q]`, or `[N, 1]` of the queries' mean. The run's checkpoints, in order, are cut into at most `SEGMENTS`
    pieces of equal length.

    Raises:
        UsageError: a checkpoint has no rate or no steps. As `methods.score`.
    """
    if not all(its.rate > 0 and its.steps > 0 for its in run):
        raise UsageError("SOURCE needs of each checkpoint its learning rate and the number of steps it stands for")
    choice = method.curvature
    assert isinstance(choice, Kronecker)
    params = run[-1].params
    found = base.training_sites(task, params, data)
    laid = curved.laid_out(found, params, data)
    asked = curved.laid_out(base.query_sites(found, measurement, params, queries), params, queries, laid)
    pieces = [list(piece) for piece in np.array_split(np.arange(len(run)), min(SEGMENTS, len(run)))]
    vectors = _question(asked, [run[k] for k in pieces[-1]], queries, each)
    total = 0.0
    for piece in reversed(pieces):
        its = [run[k] for k in piece]
        inverse = _curvature(choice, task, laid, its, data, how)
        inside = rotated.turn(inverse.bases, blocks.together(laid, vectors))
        time = float(np.mean([c.rate for c in its]) * sum(c.steps for c in its))
        directions = {path: -x * _taken(inverse.values[path], time)[None] for path, x in inside.items()}
        total = total + np.mean([_streamed(laid, c.params, data, inverse, directions, how) for c in its], 0)
        left = {path: x * jnp.exp(-time * inverse.values[path])[None] for path, x in inside.items()}
        vectors = blocks.split(laid, rotated.turn(inverse.bases, left, back=True))
    values = np.asarray(total)
    base.finite(jnp.asarray(values), f"scores of {method.name}")
    said = {"curvature": str(choice), "segments": [len(piece) for piece in pieces]}
    unit = RELATIVE if any(its.adaptive for its in run) else method.unit(measurement)
    return Scores(values, f"{method.label}, {len(pieces)} segments", unit, said)


def _taken(values: Any, time: float) -> Any:
    """`(1 - exp(-time s)) / s`, which is `time` at s = 0."""
    return -jnp.expm1(-time * values) / jnp.maximum(values, 1e-30) * (values > 0) + time * (values <= 0)


def _question(asked: Laid, run: list[Checkpoint], queries: Any, each: bool) -> dict[str, Any]:
    """`grad f` of the queries, the mean over checkpoints: `{path: [Q, *parameter shape]}`."""
    plain = rotated.identity(asked)
    enter, total = curved.entering(asked), None
    for checkpoint in run:
        inside = enter(checkpoint.params, queries, plain.bases)
        formed = {path: rotated.formed(x) / len(run) for path, x in inside.items()}
        formed = formed if each else {path: x.mean(0, keepdims=True) for path, x in formed.items()}
        total = formed if total is None else jax.tree.map(jnp.add, total, formed)
    assert total is not None
    base.finite(jnp.stack([jnp.sum(x) for x in total.values()]), "gradients of the measurement")
    return blocks.split(asked, total)


def _curvature(choice: Kronecker, task: Task, laid: Laid, run: list[Checkpoint], data: Any, how: Pass) -> Rotated:
    """The mean over checkpoints, in one basis."""
    made = [source.gradients(choice.source, task, laid, c.params, data) for c in run]
    kept = resume.passes(how, choice, made, [c.params for c in run], data)
    stream: Callable[[], Any] = lambda: how.over(data)  # noqa: E731  # once a pass

    def summed(what: str, bases: Any) -> Sums:
        parts = [
            kronecker.run_pass(what, m, c.params, stream, bases, kept(what, "of", k, bases))
            for k, (m, c) in enumerate(zip(made, run, strict=True))
        ]
        return Sums(
            functools.reduce(lambda x, y: jax.tree.map(jnp.add, x, y), (p.sums for p in parts)),
            sum(p.examples for p in parts),
        )

    bases: dict[str, Any] = dict.fromkeys(blocks.shapes(laid), (None, None))
    if choice.kind != "diagonal":
        measured = summed("covariances", None)
        bases = statistics.eigenbases(measured.sums)
        if choice.kind == "kfac":
            return Rotated(bases, kronecker.kfac_values(measured, bases), dict.fromkeys(bases, 0.0))
    return Rotated(bases, kronecker.eigenvalues(summed("eigenvalues", bases)), dict.fromkeys(bases, 0.0))


def _streamed(laid: Laid, params: Any, data: Any, inverse: Rotated, directions: Any, how: Pass) -> np.ndarray:
    program = exact.scored(laid, "none", True)
    return row.gathered(how, data, lambda rows: program(params, rows, inverse, directions))
