"""Scores summed over checkpoints of the training run: `sum_k eta_k score_k` (TracInCP, arXiv 2002.08484; LESS for
cosines, arXiv 2402.04333).

What a model has learned well shows no gradient at the end of training: p(token) is 1 and its loss is flat. While it was
being learned, it did.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import checkpoint, steps, training
from uimjax import rows as row
from uimjax.curvature.damping import Chosen
from uimjax.errors import UsageError
from uimjax.interpret.base import Scores
from uimjax.mesh import split
from uimjax.steps import Recipe
from uimjax.task import RELATIVE, Task


class Checkpoint(NamedTuple):
    """A moment of a training run: its parameters, the learning `rate` there, how many `steps` it stands for (SOURCE),
    the optimizer's state where a method reads it (LESS), and whether that scales its steps: SOURCE unrolls gradient
    descent, and its scores have no unit then."""

    params: Any
    rate: float = 1.0
    steps: int = 1
    optimizer: Any = None
    adaptive: bool = False


def is_run(params: Any) -> bool:
    """A sequence of checkpoints was passed where parameters may stand."""
    return isinstance(params, list | tuple) and bool(params) and all(isinstance(x, Checkpoint) for x in params)


def run_of(params: Any) -> list[Checkpoint]:
    """The checkpoints; parameters alone are one."""
    if isinstance(params, Checkpoint):
        return [params]
    return list(params) if is_run(params) else [Checkpoint(params)]


def over_checkpoints(
    scores: Sequence[Scores], rates: Sequence[float], met: Sequence[np.ndarray] | None = None
) -> Scores:
    """The mean weighted by the learning rates `eta_k`. One checkpoint alone keeps its scores and unit. `met`: of each
    checkpoint, how often each row `[N]` was met in the steps that it stands for, 1 a row that is met as usual: a row
    that was away had no part in what these steps did.

    Raises:
        UsageError: no scores, lengths that differ, scores of several methods, or no positive rate.
    """
    if met is not None:
        if len(met) != len(scores) or any(len(m) != len(s.values) for m, s in zip(met, scores, strict=True)):
            raise UsageError(f"met of lengths {[len(m) for m in met]} for scores of {[len(s.values) for s in scores]}")
        scores = [s._replace(values=s.values * m[:, None]) for s, m in zip(scores, met, strict=True)]
    if not scores or len(scores) != len(rates) or not sum(rates) > 0 or min(rates) < 0:
        raise UsageError(
            f"{len(scores)} checkpoints' scores and rates {list(rates)}; one positive rate each was wanted"
        )
    dampings = [s.how.get("damping") for s in scores]  # each checkpoint has its own
    names = {s.method.removesuffix(f", {its}") for s, its in zip(scores, dampings, strict=True)}
    if len(names) > 1:
        raise UsageError(f"scores of several methods cannot be summed: {sorted(names)}")
    if len(scores) == 1:
        return scores[0]
    values = np.tensordot(np.asarray(rates) / sum(rates), np.stack([s.values for s in scores]), 1)
    chosen = [its.value for its in dampings if isinstance(its, Chosen)]
    ends = " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(chosen), max(chosen)))) if chosen else ""
    said = f", damping {ends} x mean eigenvalue" if chosen else ""
    how = {"checkpoints": [dict(s.how) for s in scores]} if any(s.how for s in scores) else {}
    return Scores(values, f"{names.pop()}, {len(scores)} checkpoints{said}", RELATIVE, how)


def record(
    task: Task, params: Any, data: Any, recipe: Recipe, count: int = 6, *, seed: int | None = None,
    folder: Path | None = None,
) -> list[Checkpoint]:  # fmt: skip
    """Train from `params` (in the order that `seed` gives, or the recipe's) and keep about `count` checkpoints, evenly
    spaced, with what each method reads of them: the rate in effect (over 1 - momentum for SGD), the steps since the one
    before, and the mean squared batch gradient, which Adam's second moments average. With `folder` a training
    found there is continued; another loss, recipe or optimizer has a folder of its own in it. Raises as `training.fit`.
    """
    recipe = recipe if seed is None else dataclasses.replace(recipe, seed=seed)
    epochs = np.unique(np.round(np.linspace(0, recipe.epochs, count + 1)[1:]).astype(int)).clip(1).tolist()
    per, slow = recipe.steps_per_epoch(row.count(data)), 1 - recipe.momentum if recipe.optimizer == "sgd" else 1.0
    run = []
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch) if folder is None else folder / training.digest(task, recipe, params, data)
        training.fit(task, params, data, recipe, folder=where, snapshots=epochs)
        for before, epoch in zip([0, *epochs], epochs, strict=False):
            rate = recipe.learning_rate * steps.rate(recipe, (before + epoch) / 2) / slow
            state = training.snapshot(where, params, epoch)
            moments = second_moments(task, state, data, recipe.batch_size)
            run.append(Checkpoint(state, rate, per * (epoch - before), moments, recipe.optimizer != "sgd"))
    return run


def read_run(
    folder: str | Path, params: Any, rates: Callable[[int], float] | None = None, *, steps: Sequence[int] = (),
    moments: bool = False, adaptive: bool = True, mesh: Any = None,
) -> list[Checkpoint]:  # fmt: skip
    """The checkpoints of a run on disk (Orbax, a folder of steps) as a series, or those of the `steps` named.

    `params`: the model's parameters, or their shapes. `rates(step)`: the learning rate there, 1 where it is not given
    (what a step counts, the reader's checkpoints say: steps of the optimizer, or epochs). Each stands for the steps
    since the one before. `moments`: Adam's second moments are read too, from the run's Optax state.
    `adaptive`: the optimizer scales its steps, as all but plain SGD do (scores of SOURCE then have no unit).

    Raises: as `checkpoint.read_tree`; UsageError: a checkpoint alone, or a rate that is not above 0.
    """
    root, template = Path(folder), jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    found = list(steps) or checkpoint.steps_in(root)
    if not found:
        raise UsageError(f"{root} is one checkpoint, and a series was wanted: name the folder that its steps stand in")
    place, run = None if mesh is None else lambda shape: split(mesh, shape), []
    for before, step in zip([0, *found], found, strict=False):
        rate = 1.0 if rates is None else float(rates(step))
        if not rate > 0:
            raise UsageError(f"the learning rate at step {step} is {rate}; above 0 was wanted")
        state = checkpoint.read_tree(root, template, step, place, under="nu") if moments else None
        its = checkpoint.read_tree(root, template, step, place)
        run.append(Checkpoint(its, rate, max(1, step - before), state, adaptive or moments))
    return run


def second_moments(task: Task, params: Any, data: Any, batch_size: int) -> Any:
    """The mean over batches of the squared gradient of their mean loss, which is what Adam's moments average."""
    program, total, count = _squared(task), None, 0
    for batch in row.batches(data, min(batch_size, row.count(data))):
        if batch.mask.all():
            made = program(params, batch.rows)
            total, count = made if total is None else jax.tree.map(jnp.add, total, made), count + 1
    return jax.tree.map(lambda x: x / count, total)


@functools.lru_cache(maxsize=8)
def _squared(task: Task):
    def squared(params: Any, rows: Any) -> Any:
        mean = lambda p: jax.vmap(lambda r: jnp.sum(task.loss(p, r)))(rows).mean()  # noqa: E731  # differentiated below
        return jax.tree.map(jnp.square, jax.grad(mean)(params))

    return jax.jit(squared)
