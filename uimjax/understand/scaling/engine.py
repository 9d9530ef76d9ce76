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

from uimjax.understand.scaling.base import Form, Objective, log_sum

LANES, STEPS = 64, 400
ROWS = 32  # tables are padded to a multiple of so many
LEAST, MOST, FIRST = 1e-12, 1e8, 1e-3  # of the damping
REACH = 0.25  # of a parameter's range: the longest step
FAINT = 1e-4  # of the largest curvature: a coordinate that hardly acts
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
    total = max(lanes, 1 << max(count - 1, 0).bit_length())  # few shapes, so few programs; padding costs little
    weights = np.ones(len(y)) if weights is None else np.asarray(weights)
    if weights.ndim == 2:
        weights = np.pad(weights, ((0, total - count), (0, 0)))
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        wide = lambda a: jnp.asarray(np.asarray(a), dtype)  # noqa: E731  # a cast, used six times
        longer = lambda a: wide(np.pad(a, (0, rows - len(y)), mode="edge"))  # noqa: E731  # by rows of weight 0
        given = {name: longer(values) for name, values in x.items()}
        weight = wide(np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, rows - len(y))]))
        moving = wide(np.ones(size) if free is None else free)
        same = dataclasses.replace(objective, delta=1.0)  # one program for every delta
        program = _program(form, same, lanes, weight.ndim == 2)
        begun = wide(np.pad(starts, ((0, total - count), (0, 0))))
        found = program(given, longer(y), weight, begun, moving, wide(objective.delta), jnp.int32(count))
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
def _program(form: Form, objective: Objective, lanes: int, weighted: bool):
    """Compiled for a form and a kind of objective, whatever the starts, the weights, delta and what is free."""
    reach = np.array([REACH * (parameter.high - parameter.low) for parameter in form.parameters])

    def lane(theta: Any, damping: Any, w: Any, x: Any, y: Any, free: Any, delta: Any) -> tuple[Any, ...]:
        r = lambda at: residuals(form, objective, at, x, y)  # noqa: E731  # one line, used twice
        value = lambda left: jnp.sum(w * objective.rho(left, delta))  # noqa: E731  # one line, used twice
        summed = form.terms is not None and objective.residual == "log"
        left, jacobian, bent = _by_shares(form, theta, x, y) if summed else _by_jets(r, theta)
        first, second, weight = objective.slopes(left, delta)
        pull, jacobian = w * first, jacobian * free[:, None]
        before, gradient, (more, curved) = value(left), jacobian @ pull, bent(pull)
        sides = jnp.concatenate([jacobian * part[None] for part in (w * second + more, w * weight)])
        newton, reweighted = jnp.split(sides @ jacobian.T, 2)  # one product: two small ones cost twice as much
        newton = newton + curved * free[:, None] * free[None]
        held = jnp.diag(1 - free)  # what is fixed has no slope, and so does not move
        one, two = (_within(matrix + held, gradient, damping, reach) for matrix in (newton, reweighted))
        found, now = theta, before
        for step in (one, two, 2 * two):
            there = value(r(theta + step))  # NaN, far out, is no smaller than anything
            found, now = jnp.where(there < now, theta + step, found), jnp.where(there < now, there, now)
        hope = jnp.maximum(
            jnp.abs(gradient @ one), jnp.abs(gradient @ two)
        )  # of the models; damped away, it says nothing
        done = (hope <= float(jnp.finfo(theta.dtype).eps) * before) & (damping <= 1)
        better, gain = now < before, jnp.where(now < before, before - now, 0.0)
        damping = jnp.clip(jnp.where(better, damping / 5, damping * 8), LEAST, MOST)
        return found, now, damping, gain, better, done

    @jax.jit
    def run(x: Any, y: Any, weights: Any, starts: Any, free: Any, delta: Any, total: Any) -> tuple[Any, Any, Any]:
        size = starts.shape[0]

        def of(number: Any) -> Any:
            return weights[jnp.minimum(number, total - 1)] if weighted else weights

        def first(number: Any) -> Any:
            return starts[jnp.minimum(number, total - 1)]

        def body(s: _Lanes) -> _Lanes:
            step = jax.vmap(lambda t, d, k: lane(t, d, of(k), x, y, free, delta))
            return _refilled(s, step(s.theta, s.damping, s.number), first, total)

        number, zero = jnp.arange(lanes, dtype=jnp.int32), jnp.zeros(lanes, jnp.int32)
        blank = (starts, jnp.full(size, jnp.inf, starts.dtype), jnp.zeros(size, jnp.int32))
        damping = jnp.full(lanes, FIRST, starts.dtype)
        begun = _Lanes(number, first(number), damping, zero, zero, jnp.minimum(total, lanes), blank)
        return jax.lax.while_loop(lambda s: jnp.any(s.number < total), body, begun).done

    return run


def _refilled(s: _Lanes, stepped: tuple[Any, ...], first: Any, total: Any) -> _Lanes:
    """After a step: lanes that are done write down where they are, and take the next start of the queue."""
    theta, now, damping, gain, better, done = stepped
    rounding = float(jnp.finfo(theta.dtype).eps)
    quiet = gain <= 4 * rounding * jnp.abs(now)  # a refusal gains nothing either: the damping tells them apart
    still = jnp.where(quiet & (better | (damping >= MOST / 2)), s.still + 1, jnp.where(quiet, s.still, 0))
    steps = s.steps + 1
    over = (done | (still >= STILL) | (damping >= MOST) | (steps >= STEPS) | (now == 0)) & (s.number < total)
    written = jnp.where(over, s.number, len(s.done[1]))
    new = (theta, jnp.nan_to_num(now, nan=jnp.inf), steps)
    ends = tuple(kept.at[written].set(each, mode="drop") for kept, each in zip(s.done, new, strict=True))
    waiting = s.following + jnp.cumsum(over) - 1
    number = jnp.where(over, jnp.minimum(waiting, total), s.number).astype(jnp.int32)
    return _Lanes(
        number, jnp.where(over[:, None], first(number), theta),
        jnp.where(over, FIRST, damping).astype(theta.dtype), jnp.where(over, 0, still).astype(jnp.int32),
        jnp.where(over, 0, steps).astype(jnp.int32),
        jnp.minimum(s.following + jnp.sum(over), total).astype(jnp.int32), ends,
    )  # fmt: skip


def _by_jets(r: Any, theta: Any) -> tuple[Any, Any, Any]:
    """(residuals `[n]`, Jacobian `[p, n]`, and of a pull `[n]` on them `sum_i pull_i H_i`, as weights c `[n]` and a
    matrix that is added to `J diag(c) J'`)."""

    def bent(pull: Any) -> Any:
        return 0.0, jax.jacfwd(jax.jacfwd(lambda part: jnp.sum(pull * r(part))))(theta)

    return r(theta), jax.jacfwd(r)(theta).T, bent


def _by_shares(form: Form, theta: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """The same of log y - log L, log L = log sum_k exp t_k: with shares s_k = exp(t_k - log L) and slopes a_k,

    d log L = sum_k s_k a_k =: j and d^2 log L = sum_k s_k (a_k a_k' + d^2 t_k) - j j'.
    """
    assert form.terms is not None
    terms_of = form.terms

    def stacked(at: Any) -> Any:
        return jnp.stack([jnp.broadcast_to(term, y.shape) for term in terms_of(at, x)])  # [K, n]

    terms = stacked(theta)
    whole = log_sum(*terms)
    shares, slopes = jnp.exp(terms - whole[None]), jnp.moveaxis(jax.jacfwd(stacked)(theta), -1, 1)  # [K, n], [K, p, n]
    jacobian = jnp.sum(shares[:, None] * slopes, axis=0)

    def bent(pull: Any) -> Any:
        pulled = pull[None] * shares
        outer = _squares(slopes, pulled, form.straight)
        if not form.straight:
            outer = outer + jax.jacfwd(jax.jacfwd(lambda part: jnp.sum(pulled * stacked(part))))(theta)
        return pull, -outer

    return y - whole, -jacobian, bent


def _squares(slopes: Any, weights: Any, shared: bool) -> Any:
    """`sum_kn w_kn a_kn a_kn'` `[p, p]`; `shared`: the slopes are the same for every lane, so that their squares are
    taken once and all lanes are one product."""
    size = slopes.shape[1]
    if not shared:
        return jnp.sum((slopes * weights[:, None]) @ jnp.swapaxes(slopes, 1, 2), axis=0)
    flat = jnp.moveaxis(slopes, 1, -1)
    squares = (flat[..., :, None] * flat[..., None, :]).reshape(-1, size * size)
    return (weights.reshape(-1) @ squares).reshape(size, size)


def _within(matrix: Any, gradient: Any, damping: Any, limit: np.ndarray) -> Any:
    """A step that leaves no coordinate's range at one stride: far out, terms vanish and their slopes with them. What
    hardly acts and would go too far goes as far as it may, and the others are solved for again: a term that vanishes
    holds up none."""
    reach = jnp.asarray(limit, gradient.dtype)
    step = _solved(matrix, gradient, damping)
    acting = jnp.abs(jnp.diagonal(matrix))
    over = (jnp.abs(step) > reach) & (acting < FAINT * jnp.max(acting))
    bound = jnp.where(over, jnp.sign(step) * reach, 0.0)
    rest = jnp.where(over[:, None] | over[None], jnp.diag(jnp.where(over, 1.0, jnp.diagonal(matrix))), matrix)
    step = bound + _solved(rest, jnp.where(over, 0.0, gradient + matrix @ bound), damping)
    return step / jnp.maximum(1.0, jnp.max(jnp.abs(step) / reach))


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
