"""Fine-tuning with differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133), by the norms of our own taps.

Each step draws every row with the share q = batch_size / N (Poisson sampling), takes

    g = (sum_i min(1, C / |g_i|) g_i + s C z) / batch_size,      z ~ N(0, 1) in every parameter,

and lets Adam step along g. Norms and the clipped sum come from one backward pass; no gradient of a single row stands
unless its parameter is so small that forming it is the cheaper way (ghost clipping: arXiv 2110.05679). What (epsilon,
delta) the whole run gives, for neighbours that differ by one row, is what the PLD accountant of `dp-accounting` says of
that many Poisson-sampled Gaussian mechanisms.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import checkpoint
from uimjax import rows as row
from uimjax.errors import NonFiniteError, UsageError
from uimjax.mitigate import looking
from uimjax.progress import Progress, quiet
from uimjax.sinks import Sink
from uimjax.store import digest_tree, stage_key
from uimjax.task import Task
from uimjax.understand.dynamics.gradients import clipped

LEAST, MOST = 0.05, 1000.0  # noise that is tried
ORDERS = (*range(2, 65), 96, 128, 256, 512)  # Renyi's; whole ones have a closed form
VOID = 100.0  # an epsilon of this size is no protection, and its exact value takes gigabytes


@dataclass(frozen=True)
class Private:
    """How to fine-tune privately. `epsilon` and `delta` are what is allowed; the noise follows from them, or is given
    as `noise` (s), and then epsilon follows. `delta`: none is 1 / (10 N). `batch_size`: rows of a step in the mean;
    `together`: rows that are looked at at once, which changes nothing but memory. `clip` is C."""

    epsilon: float | None = 8.0
    delta: float | None = None
    noise: float | None = None
    clip: float = 1.0
    steps: int = 200
    batch_size: int = 64
    together: int = 32
    learning_rate: float = 1e-3
    every: int = 20

    def __post_init__(self):
        if (self.epsilon is None) == (self.noise is None):
            raise UsageError(f"epsilon={self.epsilon} and noise={self.noise}: give one, the other follows from it")
        given = self.epsilon if self.noise is None else self.noise
        least = [self.clip, self.learning_rate, given or 0]
        if min(self.steps, self.batch_size, self.together, self.every) < 1 or not min(least) > 0:
            raise UsageError(f"every number should be positive: {self}")
        if self.delta is not None and not 0 < self.delta < 1:
            raise UsageError(f"delta={self.delta} arrived; a probability below 1 / (number of rows) was wanted")


class Privately(NamedTuple):
    """`params`; the `epsilon` that was spent at `delta`, with `noise` s; `loss` `[K]`: mean of the rows drawn, every
    `every` steps, and `clipped` `[K]`: the share of them whose gradient was cut. These two look at the data and are NOT
    private: keep them with it."""

    params: Any
    epsilon: float
    delta: float
    noise: float
    loss: np.ndarray
    clipped: np.ndarray


class _State(NamedTuple):
    params: Any
    optimizer: Any
    loss: Any
    clipped: Any


def fine_tune(
    task: Task, params: Any, data: Any, how: Private, seed: int, *, folder: Path | None = None,
    sinks: Sequence[Sink] = (), progress: Progress = quiet,
) -> Privately:  # fmt: skip
    """Fine-tune `params` on all rows of `data`. The guarantee holds against whoever does not know `seed`: noise and
    draws follow from it. With `folder` a stopped run is continued, to the bit.

    Raises:
        UsageError: fewer rows than a batch, a loss that draws noise of its own, an epsilon that no noise reaches, or no
            accountant. NonFiniteError: it diverged. As `gradients.graded`; `checkpoint.claim`.
    """
    count = row.count(data)
    if how.batch_size > count:
        raise UsageError(f"steps of {how.batch_size} rows were asked of {count}; lower batch_size")
    if task.trained is not None:
        raise UsageError("the task trains by a loss with noise of its own, whose rows' gradients are not followed here")
    delta = 1 / (10 * count) if how.delta is None else how.delta
    rate = how.batch_size / count
    noise = noise_for(float(how.epsilon or 0), delta, rate, how.steps) if how.noise is None else how.noise
    looks = -(-how.steps // how.every)
    start, blank = 0, np.full(looks, np.nan, np.float32)
    state = _State(params, optax.adam(how.learning_rate).init(params), blank, blank.copy())
    if folder is not None:
        shown = looking.digest(task, params, data, frozenset(), False)
        checkpoint.claim(folder, stage_key(str(how), str(seed), shown, *map(digest_tree, (params, data))))
        start = checkpoint.latest(folder) or 0
        state = checkpoint.load(folder, state)[1] if start else state
    placed = jax.tree.map(jnp.asarray, data)
    for k in progress(range(looks), "fine-tuning with privacy", unit=f"x {how.every} steps", skip=start // how.every):
        stop = min(how.steps, (k + 1) * how.every)
        if stop <= start:
            continue
        state = _some(task, how, noise, placed, state, range(k * how.every, stop), seed)
        for sink in sinks:
            sink.write(stop, {"loss": float(state.loss[k]), "clipped": float(state.clipped[k])})
        if folder is not None:
            checkpoint.save(folder, stop, state)
    spent = epsilon_of(noise, delta, rate, how.steps)
    return Privately(state.params, spent, delta, noise, np.asarray(state.loss), np.asarray(state.clipped))


def epsilon_of(noise: float, delta: float, rate: float, steps: int) -> float:
    """What `steps` of DP-SGD with noise s and sampling share q spend at `delta`; where that is beyond `VOID`, which
    protects nobody, Renyi's upper bound on it. Raises UsageError."""
    bound = _spent("rdp", noise, delta, rate, steps)
    return bound if bound > VOID else min(bound, _spent("pld", noise, delta, rate, steps))


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The smallest noise (to 1 in 1,000) that keeps the run within (epsilon, delta).

    Raises:
        UsageError: no noise up to 1,000 does, or epsilon is beyond `VOID`.
    """
    if epsilon > VOID:
        raise UsageError(f"epsilon={epsilon:g} protects nobody; ask for at most {VOID}, or train without privacy")
    low, high = LEAST, MOST
    if _spent("rdp", high, delta, rate, steps) > epsilon:
        raise UsageError(
            f"no noise up to {high:g} gives epsilon={epsilon:g} at delta={delta:g} in {steps} steps of {rate:.2%} of "
            "the rows; give `noise` itself, fewer steps, or another epsilon"
        )
    while high / low > 1.0005:  # Renyi's bound holds from above, and the exact value is not far below it
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _spent("rdp", middle, delta, rate, steps) > epsilon else (low, middle)
    low = high / 2
    while high / low > 1.0005:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if epsilon_of(middle, delta, rate, steps) > epsilon else (low, middle)
    return high


def _spent(kind: str, noise: float, delta: float, rate: float, steps: int) -> float:
    dp = _accounting()
    neighbours = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if kind == "pld":
        accountant = dp.pld.PLDAccountant(neighbours)
    else:
        accountant = dp.rdp.RdpAccountant(ORDERS, neighbours)
    return float(accountant.compose(_event(noise, rate, steps)).get_epsilon(delta))


def _accounting() -> Any:
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ImportError as error:
        raise UsageError("privacy is accounted for by dp-accounting: pip install 'uimjax[privacy]'") from error
    _ = pld, rdp  # submodules that the package need not import by itself
    return dp_accounting


def _event(noise: float, rate: float, steps: int) -> Any:
    dp = _accounting()
    one = dp.GaussianDpEvent(noise)
    return dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, one) if rate < 1 else one, steps)


# ---------------------------------------------------------------- steps


def _some(task: Task, how: Private, noise: float, data: Any, state: _State, numbers: range, seed: int) -> _State:
    """The steps of those numbers; what is drawn follows from (seed, number) alone."""
    add, move = _program(task, how.clip), _move(how, noise)
    count, losses, cut, met = row.count(data), 0.0, 0, 0
    params, optimizer = state.params, state.optimizer
    for number in numbers:
        drawn = np.flatnonzero(np.random.default_rng([seed, number]).random(count) < how.batch_size / count)
        total = jax.tree.map(jnp.zeros_like, params)
        for start in range(0, len(drawn), how.together):
            ids = drawn[start : start + how.together]
            mask = np.arange(how.together) < len(ids)
            total, loss, over = add(params, total, data, np.resize(ids, how.together), mask)
            losses, cut = losses + float(loss), cut + int(over)
        params, optimizer = move(params, optimizer, total, _key(seed, number))
        met += len(drawn)
    at = numbers.start // how.every
    if not np.isfinite(losses):
        raise NonFiniteError(f"the loss became {losses} in step {numbers.stop}; lower its learning rate "
                             f"({how.learning_rate})")  # fmt: skip
    loss, share = np.array(state.loss), np.array(state.clipped)
    loss[at], share[at] = losses / max(met, 1), cut / max(met, 1)
    return _State(params, optimizer, loss, share)


def _key(seed: int, number: int) -> Any:
    """Of one step's noise; a seed may have as many bits as whoever keeps it secret likes."""
    words = np.random.SeedSequence([seed, number, 1]).generate_state(2)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


@functools.lru_cache(maxsize=16)
def _program(task: Task, most: float):
    def add(params: Any, total: Any, data: Any, ids: Any, mask: Any) -> Any:
        found = clipped(task, params, jax.tree.map(lambda x: x[ids], data), mask, most)
        over = jnp.sum(mask & (found.norms > most))
        return jax.tree.map(jnp.add, total, found.gradient), jnp.sum(jnp.where(mask, found.losses, 0)), over

    return jax.jit(add)


@functools.lru_cache(maxsize=16)
def _move(how: Private, noise: float):
    optimizer = optax.adam(how.learning_rate)

    def move(params: Any, state: Any, total: Any, key: Any) -> Any:
        leaves, tree = jax.tree.flatten(total)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            ((x + noise * how.clip * jax.random.normal(k, x.shape, x.dtype)) / how.batch_size).astype(x.dtype)
            for x, k in zip(leaves, keys, strict=True)
        ]
        updates, state = optimizer.update(jax.tree.unflatten(tree, noisy), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(move)
