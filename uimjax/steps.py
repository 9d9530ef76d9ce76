"""What training is made of: the recipe, its optimizer, the order of the rows, one step. Pure, and shared by everything
that trains or retraces a training: the loop, the banks of counterfactual models, the metagradients.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax.convolutions import fast
from uimjax.errors import UsageError
from uimjax.task import Task

Speed = Callable[[Any], Any]  # the learning rate at a step

NOISE = 0x6E6F  # sets the rows' keys apart from what the order of an epoch is drawn by


@dataclass(frozen=True)
class Recipe:
    """How to train. `learning_rate` is the peak of a cosine that ends at the share `final` of it, or a constant; over
    the share `warmup` of all steps it rises to that from 0. `clip`: largest norm of a step's gradient (none: as it is).
    `beta2`: memory of AdamW's second moments; `momentum`: SGD's.

    `optimizer`: "adamw", "sgd", or your own Optax transformation as a function of the schedule,
    `speed -> optax.GradientTransformation` (then `weight_decay`, `momentum` and `beta2` are its business)."""

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "sgd"] | Callable[[Speed], optax.GradientTransformation] = "adamw"
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 0.0
    clip: float | None = None
    beta2: float = 0.999
    momentum: float = 0.9
    final: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise UsageError(f"epochs, batch_size and learning_rate should be positive: {self}")
        if not 0 <= self.warmup < 1 or not 0 <= self.beta2 < 1 or not (self.clip is None or self.clip > 0):
            raise UsageError(f"warmup and beta2 should lie in [0, 1), clip above 0: {self}")
        if not 0 <= self.momentum < 1 or not 0 <= self.final <= 1:
            raise UsageError(f"momentum should lie in [0, 1), final in [0, 1]: {self}")

    def steps_per_epoch(self, rows: int) -> int:
        return -(-rows // self.batch_size)


class Static(NamedTuple):
    """What a step is compiled for; nothing else of a recipe is in the program."""

    optimizer: Any
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup: float
    clip: float | None
    beta2: float
    momentum: float
    final: float
    steps: int
    batch_size: int


def static(recipe: Recipe, count: int) -> Static:
    same = {name: getattr(recipe, name) for name in Static._fields if name != "steps"}
    return Static(**same, steps=recipe.steps_per_epoch(count) * recipe.epochs)


def rate(recipe: Recipe, epochs: float) -> float:
    """The learning rate after so many epochs, as a share of the peak."""
    return float(_share(recipe, epochs / recipe.epochs))


def _share(made: Recipe | Static, done: Any) -> Any:
    """The learning rate as a share of the peak when the share `done` of all steps is behind: a rise, then the rest."""
    after = jnp.clip((done - made.warmup) / (1 - made.warmup), 0, 1)
    cosine = made.final + (1 - made.final) * (1 + jnp.cos(jnp.pi * after)) / 2
    falling = cosine if made.schedule == "cosine" else jnp.ones_like(after)
    return jnp.where(done < made.warmup, done / made.warmup if made.warmup else 1.0, falling)


def optimizer(made: Static) -> optax.GradientTransformation:
    def speed(step: Any) -> Any:  # with a warm-up the first step counts as done: a rate of 0 would waste it
        return made.learning_rate * _share(made, (step + (made.warmup > 0)) / made.steps)

    clip = optax.identity() if made.clip is None else _clip(made.clip)
    if not isinstance(made.optimizer, str):
        return optax.chain(clip, made.optimizer(speed))
    if made.optimizer == "adamw":
        return optax.chain(clip, optax.adamw(speed, b2=made.beta2, weight_decay=made.weight_decay, eps_root=1e-30))
    decay = optax.add_decayed_weights(made.weight_decay)
    return optax.chain(clip, decay, optax.sgd(speed, momentum=made.momentum or None))


def _clip(most: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`; its derivative is 0 where the gradient is 0, not NaN."""

    def update(found: Any, state: Any, _params: Any = None) -> tuple[Any, Any]:
        square = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(found))
        share = jnp.where(square > most**2, most / jnp.sqrt(jnp.where(square > most**2, square, 1.0)), 1.0)
        return jax.tree.map(lambda x: x * share.astype(x.dtype), found), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]  # names alone differ


def order(key: Any, epoch: Any, count: int, size: int) -> Any:
    """Row ids of an epoch's batches, `[steps, size]` int32; `count` on padding. They follow from (key, epoch) alone."""
    steps = -(-count // size)
    found = jax.random.permutation(jax.random.fold_in(key, epoch), count)
    return jnp.pad(found, (0, steps * size - count), constant_values=count).reshape(steps, size)


def seen(recipe: Recipe, count: int) -> np.ndarray:
    """Row ids of every step of a training, `[steps, batch_size]`; -1 on padding."""
    key, size = jax.random.key(recipe.seed), recipe.batch_size
    ids = np.concatenate([np.asarray(order(key, epoch, count, size)) for epoch in range(recipe.epochs)])
    return np.where(ids < count, ids, -1)


def gather(data: Any, ids: Any, weights: Any) -> tuple[Any, Any]:
    """(rows, their weights) of a batch of ids; padding has weight 0."""
    count = weights.shape[0]
    at = jnp.minimum(ids, count - 1)
    return jax.tree.map(lambda x: x[at], data), jnp.where(ids < count, weights[at], 0.0)


def noise(task: Task, key: Any, epoch: Any, ids: Any) -> Any:
    """A key for each row of a batch, from (key, epoch, id) alone, for losses that draw noise (`task.trained`); else
    None. A row's noise is the same whatever rows are left out."""
    if task.trained is None:
        return None
    drawn = jax.random.fold_in(jax.random.fold_in(key, epoch), NOISE)
    return jax.vmap(lambda row: jax.random.fold_in(drawn, row))(ids)


def batch_loss(task: Task, params: Any, rows: Any, weight: Any, size: Any = None, keys: Any = None) -> tuple[Any, Any]:
    """(the weighted mean loss of a batch, each row's loss); with `size` the weighted sum over that. `keys`: the rows'
    `noise`."""
    if task.trained is None:
        losses = jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(rows)
    else:
        losses = jax.vmap(lambda r, key: jnp.sum(task.trained(params, r, key)))(rows, keys)  # type: ignore[misc]  # is one
    total = jnp.sum(weight)  # of a batch of rows that are all left out the derivative is that of one row let in
    total = jnp.where(total > 0, total, 1.0) if size is None else size
    return jnp.sum(losses * weight) / total, losses


def step(
    task: Task, update: Any, params: Any, state: Any, rows: Any, weight: Any, size: Any = None, keys: Any = None
) -> tuple[Any, Any, Any]:
    """One step of an optimizer's `update`: (parameters, its state, the rows' losses before the step)."""
    gradient = jax.value_and_grad(functools.partial(batch_loss, task, size=size, keys=keys), has_aux=True)
    (_, losses), found = fast(gradient)(params, rows, weight)
    updates, state = update(found, state, params)
    return optax.apply_updates(params, updates), state, losses
