"""The training loop: pure epochs over in-memory rows, with every example's loss and margin recorded in the same step.

One compiled epoch serves every run of the same shapes: leaving rows out is a weight of zero, not another array, so
twins and retrainings share the program. The order of rows follows from (seed, epoch) alone; a run that was stopped and
resumed has the same loss curve to the bit.
"""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import checkpoint
from uimjax import rows as row
from uimjax.errors import MismatchError, NonFiniteError, UsageError
from uimjax.onepass import margin
from uimjax.progress import Progress, quiet
from uimjax.sinks import Sink
from uimjax.store import digest_tree, read_json, stage_key, write_json
from uimjax.store.base import make_folder
from uimjax.task import Task


@dataclass(frozen=True)
class Recipe:
    """How to train. `learning_rate` is the peak of a cosine that ends at a tenth of it, or a constant; over the share
    `warmup` of all steps it rises to that from 0. `clip`: largest norm of a step's gradient (none: as it is).
    `beta2`: memory of AdamW's second moments."""

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 0.0
    clip: float | None = None
    beta2: float = 0.999
    seed: int = 0

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise UsageError(f"epochs, batch_size and learning_rate should be positive: {self}")
        if not 0 <= self.warmup < 1 or not 0 <= self.beta2 < 1 or not (self.clip is None or self.clip > 0):
            raise UsageError(f"warmup and beta2 should lie in [0, 1), clip above 0: {self}")

    def steps_per_epoch(self, rows: int) -> int:
        return -(-rows // self.batch_size)


class Fitted(NamedTuple):
    """`loss` `[E]`: mean over kept rows. `example_loss`, `margin` `[E, N]`: as each row was met in that epoch, before
    its step. The margin is z_y - max_{k != y} z_k. NaN: left out (weight 0), or no `task.outputs`."""

    params: Any
    loss: np.ndarray
    example_loss: np.ndarray
    margin: np.ndarray


_SNAPSHOTS = "snapshots"


class _State(NamedTuple):
    params: Any
    optimizer: Any
    example_loss: Any  # [E, N]
    margin: Any


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
    progress: Progress = quiet,
) -> Fitted:
    """Minimise the weighted mean of `task.loss` over the rows.

    `weights` `[N]` (default ones): a row of weight 0 is met by nothing. With `folder`, a checkpoint is kept every
    `save_every` epochs and a run found there is continued; the parameters after each of the `snapshots` (numbers of
    finished epochs) stay there for good (`snapshot` reads them).

    Raises:
        NonFiniteError: parameters, rows or the loss are not finite. UsageError: weights of another length.
        MismatchError: `folder` holds another run.
    """
    row.check_finite(params, "parameters")
    row.check_finite(data, "training rows")
    count = row.count(data)
    weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    if weights.shape != (count,) or not weights.sum() > 0:
        raise UsageError(
            f"weights of shape {weights.shape} for {count} rows; [N] with at least one row kept was wanted"
        )
    start = 0
    if folder is not None:
        start = _claim(folder, (recipe, *map(digest_tree, (params, data, weights))), snapshots)
    static = _static(recipe, count)
    optimizer = _optimizer(static)
    blank = jnp.full((recipe.epochs, count), jnp.nan, jnp.float32)
    state = _State(params, optimizer.init(params), blank, blank)
    if folder is not None and start:
        start, state = checkpoint.load(folder, state)
    program, placed = _epoch(task, static), jax.tree.map(jnp.asarray, data)
    key = jax.random.key(recipe.seed)
    curve = []
    for epoch in progress(range(recipe.epochs), "training", unit="epochs", skip=start):
        if epoch >= start:
            state = program(state, placed, jnp.asarray(weights), jax.random.fold_in(key, epoch), epoch)
            loss = _mean(state.example_loss[epoch], weights)
            if not np.isfinite(loss):
                raise NonFiniteError(
                    f"the loss became {loss} in epoch {epoch}; lower the learning rate ({recipe.learning_rate})"
                )
            if folder is not None and epoch + 1 in snapshots:
                checkpoint.save(folder / _SNAPSHOTS, epoch + 1, state.params, keep=None)
            for sink in sinks:
                sink.write(epoch, {"loss": loss, "margin": _mean(state.margin[epoch], weights)})
            if folder is not None and ((epoch + 1) % save_every == 0 or epoch + 1 == recipe.epochs):
                checkpoint.save(folder, epoch + 1, state)
        curve.append(_mean(state.example_loss[epoch], weights))
    return Fitted(state.params, np.asarray(curve), np.asarray(state.example_loss), np.asarray(state.margin))


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


def spread(epochs: int, count: int) -> tuple[int, ...]:
    """`count` numbers of finished epochs, evenly over the run, the end left out where there is room: what was learned
    shows no gradient there any more. 12 epochs, 5 of them: 2, 4, 6, 8, 10. One alone is the end itself."""
    return (
        (epochs,)
        if count == 1
        else tuple(sorted({max(1, round(epochs * (k + 1) / (count + 1))) for k in range(count)}))
    )


def rate(recipe: Recipe, epochs: float) -> float:
    """The learning rate after so many epochs, as a share of the peak."""
    return float(_speed(recipe.schedule, recipe.warmup, epochs / recipe.epochs))


def _speed(schedule: str, warmup: float, done: Any) -> Any:
    """The learning rate as a share of the peak when the share `done` of all steps is behind: a rise, then the rest."""
    after = jnp.clip((done - warmup) / (1 - warmup), 0, 1)
    falling = 0.1 + 0.9 * (1 + jnp.cos(jnp.pi * after)) / 2 if schedule == "cosine" else jnp.ones_like(after)
    return jnp.where(done < warmup, done / warmup if warmup else 1.0, falling)


def _claim(folder: Path, causes: tuple[Any, ...], snapshots: Sequence[int]) -> int:
    """A folder holds the checkpoints of one run: the same recipe, rows, weights and initial parameters. Returns the
    epochs that need not be repeated."""
    start = resumes_at(folder, snapshots)
    if not start and checkpoint.latest(folder):
        shutil.rmtree(folder)  # checkpoints that lack a snapshot are of no use
    mark, key = make_folder(folder) / "run.json", stage_key(*(str(cause) for cause in causes))
    if not mark.exists():
        write_json(mark, key)
    elif read_json(mark) != key:
        raise MismatchError(f"{folder} holds checkpoints of another run (recipe, rows or parameters); choose another")
    return start


def _mean(values: Any, weights: np.ndarray) -> float:
    kept = weights > 0
    return float(np.average(np.asarray(values)[kept], weights=weights[kept]))


class _Static(NamedTuple):
    """What an epoch is compiled for; nothing else of a recipe is in the program."""

    optimizer: str
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup: float
    clip: float | None
    beta2: float
    steps: int
    batch_size: int


def _static(recipe: Recipe, count: int) -> _Static:
    same = {name: getattr(recipe, name) for name in _Static._fields if name != "steps"}
    return _Static(**same, steps=recipe.steps_per_epoch(count) * recipe.epochs)


def _optimizer(made: _Static) -> optax.GradientTransformation:
    def speed(step: Any) -> Any:  # the first step counts as done: a rate of 0 would waste it
        return made.learning_rate * _speed(made.schedule, made.warmup, (step + (made.warmup > 0)) / made.steps)

    clip = optax.identity() if made.clip is None else optax.clip_by_global_norm(made.clip)
    if made.optimizer == "adamw":
        return optax.chain(clip, optax.adamw(speed, b2=made.beta2, weight_decay=made.weight_decay))
    return optax.chain(clip, optax.add_decayed_weights(made.weight_decay), optax.sgd(speed, momentum=0.9))


@functools.lru_cache(maxsize=32)
def _epoch(task: Task, static: _Static):
    """The compiled epoch of (state, data, weights, key, epoch)."""
    optimizer, size = _optimizer(static), static.batch_size

    def batch_loss(params, rows, weight):
        losses = jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(rows)
        return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1e-9), losses

    def program(state: _State, data: Any, weights: Any, key: Any, epoch: Any) -> _State:
        count = weights.shape[0]
        steps = -(-count // size)
        order = jax.random.permutation(key, count)
        order = jnp.pad(order, (0, steps * size - count), constant_values=count).reshape(steps, size)

        def step(state, ids):
            rows = jax.tree.map(lambda x: x[jnp.minimum(ids, count - 1)], data)
            weight = jnp.where(ids < count, weights[jnp.minimum(ids, count - 1)], 0.0)
            (_, losses), gradient = jax.value_and_grad(batch_loss, has_aux=True)(state.params, rows, weight)
            margins = _margins(task, state.params, rows, losses)
            updates, opt = optimizer.update(gradient, state.optimizer, state.params)
            where = jnp.where(weight > 0, ids, count)  # rows left out keep their NaN
            record = [
                table.at[epoch, where].set(values.astype(jnp.float32), mode="drop")
                for table, values in ((state.example_loss, losses), (state.margin, margins))
            ]
            return _State(optax.apply_updates(state.params, updates), opt, *record), None

        return jax.lax.scan(step, state, order)[0]

    return jax.jit(program, donate_argnums=())


def _margins(task: Task, params: Any, rows: Any, losses: Any) -> Any:
    if task.outputs is None or task.label is None:
        return jnp.full_like(losses, jnp.nan)
    return jax.vmap(lambda r: margin(task.outputs(params, r), task.label(r)))(rows)  # type: ignore[misc]  # checked above
