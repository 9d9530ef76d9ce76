"""The training loop: pure epochs over in-memory rows, with every example's loss and margin recorded in the same step.

One compiled epoch serves every run of the same shapes: leaving rows out is a weight of zero, not another array, so
twins and retrainings share the program. The order of rows follows from (seed, epoch) alone; a run that was stopped and
resumed has the same loss curve to the bit.
"""

import dataclasses
import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import checkpoint, programs, room, steps
from uimjax import rows as row
from uimjax.allocator import settle
from uimjax.errors import NonFiniteError, UsageError
from uimjax.onepass import margin
from uimjax.progress import Progress, quiet
from uimjax.sinks import Sink
from uimjax.steps import Recipe
from uimjax.store import digest_tree, stage_key
from uimjax.taps import _compat
from uimjax.task import Task
from uimjax.understand.dynamics import stepping
from uimjax.understand.dynamics.collector import Collector, Statistics
from uimjax.understand.dynamics.table import write as write_dynamics


class Fitted(NamedTuple):
    """`loss` `[E]`: mean over kept rows. `example_loss`, `margin` `[E, N]`: as each row was met in that epoch, before
    its step. The margin is z_y - max_{k != y} z_k. NaN: left out (weight 0), or no `task.outputs`. `dynamics`: what the
    collector saw, if there was one."""

    params: Any
    loss: np.ndarray
    example_loss: np.ndarray
    margin: np.ndarray
    dynamics: Statistics | None = None


_SNAPSHOTS = "snapshots"


class _State(NamedTuple):
    params: Any
    optimizer: Any
    example_loss: Any  # [E, N]
    margin: Any
    dynamics: Any = ()  # the collector's


def fit(
    task: Task,
    params: Any,
    data: Any,
    recipe: Recipe,
    *,
    weights: np.ndarray | None = None,
    folder: Path | None = None,
    save_every: int = 10,
    snapshots: Sequence[int] = (),
    sinks: Sequence[Sink] = (),
    dynamics: Collector | None = None,
    progress: Progress = quiet,
) -> Fitted:
    """Minimise the weighted mean of `task.loss` (`task.trained` where there is one) over the rows.

    `weights` `[N]` (default ones): a row of weight 0 is met by nothing; `[E, N]`: of each epoch, for rows that come and
    go. With `folder`, a checkpoint is kept every
    `save_every` epochs and a run found there is continued; the parameters after each of the `snapshots` (numbers of
    finished epochs) stay there for good (`snapshot` reads them). `dynamics` collects its statistics in the same steps,
    and their table is written there too, for `uimjax dynamics FOLDER`. `sinks` get a line an epoch; its number: `step`.

    Raises:
        NonFiniteError: parameters, rows or the loss are not finite. UsageError: weights of another length.
        MismatchError: `folder` holds another run, or logits are collected and `nll` of them is not the loss.
        NoRoomError: a batch does not fit the device. DataError: logits are collected, and a row's label is no class.
    """
    count, weights = row.count(data), _checked(task, params, data, weights, dynamics, recipe.epochs)
    start = 0
    if folder is not None:
        watched = () if dynamics is None else (dynamics,)
        causes = (recipe, *map(digest_tree, (params, data, weights)), digest(task, recipe, params, data), *watched)
        start = _claim(folder, causes, snapshots)
    placed = jax.tree.map(jnp.asarray, data)
    _, state = check_room(task, params, placed, recipe, dynamics)
    if folder is not None and start:
        start, state = checkpoint.load(folder, state)
    program = epoch(task, steps.static(recipe, count), dynamics)
    key = jax.random.key(recipe.seed)
    curve, many = [], {"steps_per_epoch": recipe.steps_per_epoch(count)}  # rows of `steps.seen` a line
    for number in progress(range(recipe.epochs), "training", unit="epochs", skip=start):
        now = weights[number] if weights.ndim == 2 else weights
        if number >= start:
            begun = time.perf_counter()
            state = program(state, placed, jnp.asarray(now), key, number)
            loss = _mean(state.example_loss[number], now)
            settle(time.perf_counter() - begun)
            if not np.isfinite(loss):
                raise NonFiniteError(f"the loss became {loss} in epoch {number}; {_lower(recipe)}")
            if folder is not None and number + 1 in snapshots:
                checkpoint.save(folder / _SNAPSHOTS, number + 1, state.params, keep=None)
            for sink in sinks:
                sink.write(number, {"loss": loss, "margin": _mean(state.margin[number], now)} | many)
            if folder is not None and ((number + 1) % save_every == 0 or number + 1 == recipe.epochs):
                checkpoint.save(folder, number + 1, state)
        curve.append(_mean(state.example_loss[number], now))
    seen = None if dynamics is None else dynamics.finish(state.dynamics)
    if folder is not None and dynamics is not None and seen is not None:
        _write(folder, task, data, recipe, dynamics, seen)
    return Fitted(state.params, np.asarray(curve), np.asarray(state.example_loss), np.asarray(state.margin), seen)


def _lower(recipe: Recipe) -> str:
    return f"lower the learning rate ({recipe.learning_rate})"


def _write(folder: Path, task: Task, data: Any, recipe: Recipe, dynamics: Collector, seen: Statistics) -> None:
    """The table that `uimjax dynamics` reads, at the run's last step."""
    labels = None if task.label is None else np.asarray(jax.vmap(task.label)(jax.tree.map(jnp.asarray, data)))
    write_dynamics(
        folder, seen, run=folder.name, step=recipe.epochs * recipe.steps_per_epoch(row.count(data)), seed=recipe.seed,
        labels=labels if labels is not None and labels.ndim == 1 else None, margins=dynamics.margins,
        digests={"rows": digest_tree(data), "recipe": stage_key(str(recipe))}, replace=True,
    )  # fmt: skip


def _checked(
    task: Task, params: Any, data: Any, weights: Any, dynamics: Collector | None, epochs: int
) -> np.ndarray:  # fmt: skip
    """The weights of the rows, once all that arrived fits together."""
    row.check_finite(params, "parameters")
    row.check_finite(data, "training rows")
    count = row.count(data)
    weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    if weights.shape not in ((count,), (epochs, count)) or not (weights.sum(-1) > 0).all():
        raise UsageError(
            f"weights of shape {weights.shape} for {count} rows and {epochs} epochs; [N], or [E, N], with at least one "
            "row kept in each epoch was wanted"
        )
    if dynamics is not None and dynamics.count != count:
        raise UsageError(f"the collector is of {dynamics.count} examples, and {count} rows arrived")
    if dynamics is not None:
        stepping.check(task, dynamics, params, data, weights if weights.ndim == 1 else weights.max(0))
    return weights


def started(params: Any, recipe: Recipe, count: int, dynamics: Collector | None = None) -> "_State":
    """As a training of `count` rows begins."""
    blank = jnp.full((recipe.epochs, count), jnp.nan, jnp.float32)
    optimizer = steps.optimizer(steps.static(recipe, count)).init(params)
    return _State(params, optimizer, blank, blank, () if dynamics is None else dynamics.init())


def check_room(
    task: Task, params: Any, data: Any, recipe: Recipe, dynamics: Collector | None = None
) -> tuple[room.Need, "_State"]:
    """What an epoch needs, and what it begins with.

    Raises:
        NoRoomError: more than the device has.
    """
    count, placed = row.count(data), jax.tree.map(jnp.asarray, data)
    state, weights, key = (
        started(params, recipe, count, dynamics),
        jnp.ones(count, jnp.float32),
        jax.random.key(recipe.seed),
    )

    def made(size: int) -> tuple[Any, ...]:
        static = steps.static(dataclasses.replace(recipe, batch_size=size), count)
        return epoch(task, static, dynamics), state, placed, weights, key, 0

    return room.check(made, recipe.batch_size, "a batch"), state


def resumes_at(folder: Path, snapshots: Sequence[int] = ()) -> int:
    """Epochs that the run in `folder` need not repeat: those of its newest checkpoint; 0 where a snapshot is lost."""
    done = checkpoint.latest(folder) or 0
    lost = [epochs for epochs in snapshots if epochs <= done and not checkpoint.has(folder / _SNAPSHOTS, epochs)]
    return 0 if lost else done


def snapshot(folder: Path, params: Any, epochs: int) -> Any:
    """The parameters after so many epochs of the run in `folder`; `params` (the initial ones) give the structure.

    Raises:
        MissingFileError, CorruptError
    """
    return checkpoint.load(folder / _SNAPSHOTS, params, epochs)[1]


def is_run(folder: Path) -> bool:
    """Does `fit` keep a run there?"""
    return (folder / checkpoint.MARK).is_file()


def kept(folder: Path) -> list[int]:
    """Numbers of finished epochs after which the run in `folder` kept its parameters, in order: its snapshots and its
    newest checkpoint; without snapshots the newest checkpoint, and 0 before it. Empty: it has kept nothing yet."""
    last = checkpoint.finished(folder)[-1:]
    return sorted({*(checkpoint.finished(folder / _SNAPSHOTS) or [0] * len(last)), *last})


def parameters(folder: Path, params: Any, epochs: int) -> Any:
    """Those after one of the `kept` numbers of epochs; `params` are the initial ones. No recipe is needed.

    Raises:
        MissingFileError, CorruptError, MismatchError, ShapeError: as `checkpoint.read_tree`.
    """
    if not epochs:
        return params
    if checkpoint.has(folder / _SNAPSHOTS, epochs):
        return snapshot(folder, params, epochs)
    return checkpoint.read_tree(folder, {"params": params}, epochs)["params"]


def spread(epochs: int, count: int) -> tuple[int, ...]:
    """`count` numbers of finished epochs, evenly over the run, the end left out where there is room: what was learned
    shows no gradient there any more. 12 epochs, 5 of them: 2, 4, 6, 8, 10. One alone is the end itself."""
    return (
        (epochs,)
        if count == 1
        else tuple(sorted({max(1, round(epochs * (k + 1) / (count + 1))) for k in range(count)}))
    )


def _claim(folder: Path, causes: tuple[Any, ...], snapshots: Sequence[int]) -> int:
    """A folder holds the checkpoints of one run: the same loss, recipe, rows, weights and initial parameters. Returns
    the epochs that need not be repeated."""
    start = resumes_at(folder, snapshots)
    if not start and checkpoint.latest(folder):
        shutil.rmtree(folder)  # checkpoints that lack a snapshot are of no use
    checkpoint.claim(folder, stage_key(*(str(cause) for cause in causes)))
    return start


def _mean(values: Any, weights: np.ndarray) -> float:
    kept = weights > 0
    return float(np.average(np.asarray(values)[kept], weights=weights[kept]))


@functools.lru_cache(maxsize=32)
def epoch(task: Task, static: steps.Static, dynamics: Collector | None = None):
    """The compiled epoch of (state, data, weights, key, epoch)."""
    update, size = steps.optimizer(static).update, static.batch_size

    def program(state: _State, data: Any, weights: Any, key: Any, epoch: Any) -> _State:
        count = weights.shape[0]

        def step(state, ids):
            rows, weight = steps.gather(data, ids, weights)
            keys = steps.noise(task, key, epoch, ids)
            if dynamics is None:
                params, opt, losses = steps.step(task, update, state.params, state.optimizer, rows, weight, keys=keys)
                seen = state.dynamics
            else:
                held = state.params, state.optimizer, state.dynamics
                stepped = stepping.step(task, dynamics, update, *held, rows, weight, ids, epoch, keys, distinct=True)
                params, opt, seen, losses = stepped
            margins = _margins(task, state.params, rows, losses)
            where = jnp.where(weight > 0, ids, count)  # rows left out keep their NaN
            record = [
                table.at[epoch, where].set(values.astype(jnp.float32), mode="drop")
                for table, values in ((state.example_loss, losses), (state.margin, margins))
            ]
            return _State(params, opt, record[0], record[1], seen), None

        return jax.lax.scan(step, state, steps.order(key, epoch, count, size))[0]

    return jax.jit(program, donate_argnums=())


def _margins(task: Task, params: Any, rows: Any, losses: Any) -> Any:
    if task.outputs is None or task.label is None:
        return jnp.full_like(losses, jnp.nan)

    def one(row: Any) -> Any:
        logits = task.outputs(params, row)  # type: ignore[misc]  # checked above
        # a margin is of one class a row; of a sequence's logits [T, C] there is none
        return margin(logits, task.label(row)) if logits.ndim == 1 else jnp.nan  # type: ignore[misc]

    return jax.vmap(one)(rows) * jnp.ones_like(losses)


def digest(task: Task, recipe: Recipe, params: Any, data: Any) -> str:
    """Of what a training computes, its own reverse rules and optimizer included; of `params` and `data` the shapes."""
    update = steps.optimizer(steps.static(recipe, row.count(data)))
    loss, inputs = task.loss if task.trained is None else task.trained, (params, row.example_spec(data))
    key = () if task.trained is None else (jax.eval_shape(lambda: jax.random.key(0)),)
    found = []
    for fun, *given in (
        (jax.grad(lambda *its: jnp.sum(loss(*its)), allow_int=True), *inputs, *key),
        (update.init, params),
        (update.update, params, jax.eval_shape(update.init, params), params),
    ):
        made = jax.make_jaxpr(fun)(*given)
        found.append(programs.digest(made, _compat.constants(made)))
    named = recipe if isinstance(recipe.optimizer, str) else dataclasses.replace(recipe, optimizer="own")
    return stage_key(found, str(named), jax.__version__)
