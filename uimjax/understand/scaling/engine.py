"""Many minimisations of one objective at once: starts, bootstrap draws, profiles and subsets are lanes of one program.

Each lane takes the best of three damped steps: Newton's, with the exact second derivatives of the objective; that of
iteratively reweighted least squares, whose matrix bounds Huber's from above and which therefore always descends; and
twice that one, which is where it usually goes. A lane that has converged makes place for the next of the queue, so that
none waits for the slowest.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.understand.scaling.base import Form, Objective

LANES, STEPS = 256, 400
ROWS = 32  # tables are padded to a multiple of so many
LEAST, MOST, FIRST = 1e-12, 1e8, 1e-3  # of the damping
REACH = 0.25  # of a parameter's range: the longest step
STILL = 2  # steps without a gain after which a lane is done


class Found(NamedTuple):
    """Of each lane `[S]`: where it ended, the objective there, and after how many steps; `STEPS`: not converged."""

    theta: np.ndarray
    value: np.ndarray
    steps: np.ndarray


class _Lanes(NamedTuple):
    number: Any  # [W] of the queue; S: idle
    theta: Any  # [W, p]
    damping: Any  # [W]
    still: Any
    steps: Any
    following: Any  # the next of the queue
    done: Any  # what Found holds, of those that are done


def residuals(form: Form, objective: Objective, theta: Any, x: Mapping[str, Any], y: Any) -> Any:
    """log y - log prediction, or y - prediction, `[n]`."""
    return y - (form.logged if objective.residual == "log" else form.linear)(theta, x)


def minimise(
    form: Form,
    objective: Objective,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    starts: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    free: np.ndarray | None = None,
    dtype: Any = np.float64,
    lanes: int = LANES,
) -> Found:
    """The local minima of `sum_i w_i rho(r_i)` that descents from `starts` `[S, p]` end in.

    `x` and `y` `[n]` are as the form and the residual take them (logarithms). `weights` `[n]` or `[S, n]`; `free`
    `[p]`: False keeps a coordinate at its start. The same in every order of the starts, and for every number of lanes.
    """
    (count, size), rows = starts.shape, -(-len(y) // ROWS) * ROWS
    total = 1 << max(count - 1, 0).bit_length()  # few shapes, so few programs; what is padded costs nothing
    weights = np.ones(len(y)) if weights is None else np.asarray(weights)
    if weights.ndim == 2:
        weights = np.pad(weights, ((0, total - count), (0, 0)))
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        wide = lambda a: jnp.asarray(np.asarray(a), dtype)  # noqa: E731  # a cast, used six times
        longer = lambda a: wide(np.pad(a, (0, rows - len(y)), mode="edge"))  # noqa: E731  # by rows of weight 0
        given = {name: longer(values) for name, values in x.items()}
        weight = wide(np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, rows - len(y))]))
        chosen = tuple(range(size)) if free is None else tuple(int(k) for k in np.flatnonzero(free))
        same = dataclasses.replace(objective, delta=1.0)  # one program for every delta
        program = _program(form, same, min(lanes, total), weight.ndim == 2, chosen)
        begun = wide(np.pad(starts, ((0, total - count), (0, 0))))
        found = program(given, longer(y), weight, begun, wide(objective.delta), jnp.int32(count))
        return Found(*(np.asarray(a)[:count] for a in found))


def left(form: Form, objective: Objective, theta: np.ndarray, x: Mapping[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    """Residuals at many places `[S, p]`, `[S, n]`, in float64."""
    return _evaluated(form, objective, False, theta, x, y)


def jacobian(
    form: Form, objective: Objective, theta: np.ndarray, x: Mapping[str, np.ndarray], y: np.ndarray
) -> np.ndarray:
    """Derivatives of the residuals in the coordinates at many places, `[S, n, p]`, in float64."""
    return _evaluated(form, objective, True, theta, x, y)


def values(form: Form, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> np.ndarray:
    """Predictions at many places `[S, p]` of inputs `[n]` (or `[S, n]`: of each place its own), `[S, n]`."""
    with jax.enable_x64(True):
        at = jnp.asarray(np.asarray(theta, np.float64))
        given = {
            name: jnp.broadcast_to(jnp.asarray(part, jnp.float64), (len(at), np.shape(part)[-1]))
            for name, part in x.items()
        }
        return np.asarray(_predictions(form)(at, given))


@functools.lru_cache(maxsize=32)
def _predictions(form: Form):
    return jax.jit(jax.vmap(form.linear))


def _evaluated(form, objective, slopes, theta, x, y) -> np.ndarray:
    with jax.enable_x64(True):
        given = {name: jnp.asarray(values, jnp.float64) for name, values in x.items()}
        at = jnp.asarray(np.asarray(theta, np.float64))
        return np.asarray(_evaluation(form, objective.residual, slopes)(at, given, jnp.asarray(y, jnp.float64)))


@functools.lru_cache(maxsize=64)
def _evaluation(form: Form, residual: Any, slopes: bool):
    def one(theta: Any, x: Any, y: Any) -> Any:
        return residuals(form, Objective(residual=residual), theta, x, y)

    return jax.jit(jax.vmap(jax.jacfwd(one) if slopes else one, in_axes=(0, None, None)))


@functools.lru_cache(maxsize=64)
def _program(form: Form, objective: Objective, lanes: int, weighted: bool, free: tuple[int, ...]):
    """Compiled for a form, a kind of objective and what is free, whatever the starts, the weights and delta."""
    reach = np.array([REACH * (form.parameters[k].high - form.parameters[k].low) for k in free])

    def value(theta: Any, x: Any, y: Any, w: Any, delta: Any) -> Any:
        return jnp.sum(w * objective.rho(residuals(form, objective, theta, x, y), delta))

    def lane(theta: Any, damping: Any, w: Any, x: Any, y: Any, delta: Any) -> tuple[Any, ...]:
        def r(part: Any) -> Any:
            return residuals(form, objective, _put(theta, free, part), x, y)

        before, gradient, newton, reweighted = _derivatives(r, objective, _taken(theta, free), w, delta)
        one, two = (_within(_solved(matrix, gradient, damping), reach) for matrix in (newton, reweighted))
        found, now = theta, before
        for step in (one, two, 2 * two):
            tried = theta + _put(jnp.zeros_like(theta), free, step)
            there = value(tried, x, y, w, delta)  # NaN, far out, is no smaller than anything
            found, now = jnp.where(there < now, tried, found), jnp.where(there < now, there, now)
        better, gain = now < before, jnp.where(now < before, before - now, 0.0)
        damping = jnp.clip(jnp.where(better, damping / 5, damping * 8), LEAST, MOST)
        return found, now, damping, gain, better

    @jax.jit
    def run(x: Any, y: Any, weights: Any, starts: Any, delta: Any, total: Any) -> tuple[Any, Any, Any]:
        size = starts.shape[0]

        def of(number: Any) -> Any:
            return weights[jnp.minimum(number, total - 1)] if weighted else weights

        def first(number: Any) -> Any:
            return starts[jnp.minimum(number, total - 1)]

        def body(s: _Lanes) -> _Lanes:
            step = jax.vmap(lambda t, d, k: lane(t, d, of(k), x, y, delta))
            theta, now, damping, gain, better = step(s.theta, s.damping, s.number)
            return _refilled(s, theta, now, damping, gain, better, first, total)

        number, zero = jnp.arange(lanes, dtype=jnp.int32), jnp.zeros(lanes, jnp.int32)
        blank = (starts, jnp.full(size, jnp.inf, starts.dtype), jnp.zeros(size, jnp.int32))
        damping = jnp.full(lanes, FIRST, starts.dtype)
        begun = _Lanes(number, first(number), damping, zero, zero, jnp.minimum(total, lanes), blank)
        return jax.lax.while_loop(lambda s: jnp.any(s.number < total), body, begun).done

    return run


def _taken(theta: Any, free: tuple[int, ...]) -> Any:
    return theta if len(free) == theta.shape[0] else jnp.stack([theta[k] for k in free])


def _put(theta: Any, free: tuple[int, ...], part: Any) -> Any:
    """`theta` with `part` in the free places, by slices alone: index arrays change their type with the precision."""
    if len(free) == theta.shape[0]:
        return part
    return jnp.stack([part[free.index(k)] if k in free else theta[k] for k in range(theta.shape[0])])


def _refilled(s: _Lanes, theta: Any, now: Any, damping: Any, gain: Any, better: Any, first: Any, total: Any) -> _Lanes:
    """After a step: lanes that are done write down where they are, and take the next start of the queue."""
    rounding = float(jnp.finfo(theta.dtype).eps)
    quiet = gain <= 4 * rounding * jnp.abs(now)  # a refusal gains nothing either: the damping tells them apart
    still = jnp.where(quiet & (better | (damping >= MOST / 2)), s.still + 1, jnp.where(quiet, s.still, 0))
    steps = s.steps + 1
    over = ((still >= STILL) | (damping >= MOST) | (steps >= STEPS) | (now == 0)) & (s.number < total)
    written = jnp.where(over, s.number, len(s.done[1]))
    new = (theta, jnp.nan_to_num(now, nan=jnp.inf), steps)
    done = tuple(kept.at[written].set(each, mode="drop") for kept, each in zip(s.done, new, strict=True))
    waiting = s.following + jnp.cumsum(over) - 1
    number = jnp.where(over, jnp.minimum(waiting, total), s.number).astype(jnp.int32)
    return _Lanes(
        number, jnp.where(over[:, None], first(number), theta),
        jnp.where(over, FIRST, damping).astype(theta.dtype), jnp.where(over, 0, still).astype(jnp.int32),
        jnp.where(over, 0, steps).astype(jnp.int32),
        jnp.minimum(s.following + jnp.sum(over), total).astype(jnp.int32), done,
    )  # fmt: skip


def _derivatives(r: Any, objective: Objective, theta: Any, w: Any, delta: Any) -> tuple[Any, ...]:
    """(objective, gradient, Newton's matrix, that of reweighted least squares) of a lane."""
    found, jacobian = r(theta), jax.jacfwd(r)(theta)  # [n], [n, p]
    first, second, weight = objective.slopes(found, delta)
    pull = jax.lax.stop_gradient(w * first)
    bent = jax.jacfwd(jax.jacfwd(lambda t: jnp.sum(pull * r(t))))(theta)
    sides = jnp.concatenate([jacobian * (w * second)[:, None], jacobian * (w * weight)[:, None]], axis=1)
    newton, reweighted = jnp.split(jacobian.T @ sides, 2, axis=1)  # one product: two small ones cost twice as much
    return jnp.sum(w * objective.rho(found, delta)), pull @ jacobian, newton + bent, reweighted


def _within(step: Any, reach: np.ndarray) -> Any:
    """A step that leaves no coordinate's range at one stride: far out, terms vanish and their slopes with them."""
    return step / jnp.maximum(1.0, jnp.max(jnp.abs(step) / jnp.asarray(reach, step.dtype)))


def _solved(matrix: Any, gradient: Any, damping: Any) -> Any:
    """-(M + damping diag)^-1 g by LDL' without pivoting, written out (p is small): pivots that are negative or tiny are
    replaced by their size, which leaves a direction of descent."""
    size = gradient.shape[0]
    scale = jnp.sqrt(jnp.maximum(jnp.abs(jnp.diagonal(matrix)), 1e-30))
    m = matrix / scale[:, None] / scale[None, :]
    m = m + damping * jnp.eye(size, dtype=m.dtype)
    g = -gradient / scale
    lower = [[None] * size for _ in range(size)]
    pivots: list[Any] = []
    least = damping + 1e-14
    for j in range(size):
        pivot = m[j, j] - sum((lower[j][k] ** 2 * pivots[k] for k in range(j)), jnp.zeros((), m.dtype))
        pivots.append(jnp.maximum(jnp.abs(pivot), least))
        for i in range(j + 1, size):
            inner = sum((lower[i][k] * lower[j][k] * pivots[k] for k in range(j)), jnp.zeros((), m.dtype))
            lower[i][j] = (m[i, j] - inner) / pivots[j]
    forward: list[Any] = []
    for i in range(size):
        forward.append(g[i] - sum((lower[i][k] * forward[k] for k in range(i)), jnp.zeros((), m.dtype)))
    back: list[Any] = [None] * size
    for i in reversed(range(size)):
        ahead = sum((lower[k][i] * back[k] for k in range(i + 1, size)), jnp.zeros((), m.dtype))
        back[i] = forward[i] / pivots[i] - ahead
    return jnp.stack(back) / scale
