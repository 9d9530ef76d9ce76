"""How far a fit can be trusted: refits of resampled rows, and the profile of the objective along each parameter."""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2

from uimjax.errors import UnknownNameError, UsageError
from uimjax.understand.scaling import engine, fits
from uimjax.understand.scaling.base import Fit, coordinates_of, natural_all, prepared, target, uncentred

DRAWS, LEVEL = 1000, 0.95
POINTS, WIDEST = 41, 12  # of a profile; how often its range is doubled
RIVALS = 4  # optima that each draw is refitted from


class Draws(NamedTuple):
    """Refits of resampled rows: coordinates `[B, p]`, and each parameter `{name: [B]}`. `seed` and `groups` say what
    was drawn: so many runs, with replacement."""

    theta: np.ndarray
    natural: dict[str, np.ndarray]
    seed: int
    groups: int

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors: the standard deviation over the draws (ddof 1)."""
        return {name: float(np.std(values, ddof=1)) for name, values in self.natural.items()}


def bootstrap(fit: Fit, count: int = DRAWS, seed: int = 0, drawn: np.ndarray | None = None) -> Draws:
    """Refit the law to `count` resamples of its runs, with replacement (Efron 1979, doi 10.1214/aos/1176344552).

    Rows of one group (checkpoints of one run) are drawn together: they are no independent observations. Each draw is
    refitted from the best optima of the whole, and the better end is taken. `drawn` `[B, groups]`: the draws
    themselves, numbers of groups.

    Raises:
        UsageError: fewer than two draws, or a single group.
    """
    groups, of = np.unique(fit.rows.group, return_inverse=True)
    if len(groups) < 2 or count < 2:
        raise UsageError(f"{count} draws of {len(groups)} runs arrived; at least two of both were wanted")
    if drawn is None:
        drawn = np.random.default_rng(seed).integers(len(groups), size=(count, len(groups)))
    times = np.stack([np.bincount(each, minlength=len(groups)) for each in np.asarray(drawn)]).astype(np.float64)
    theta = refitted(fit, times[:, of])
    return Draws(theta, natural_all(fit.form, theta, fit.centre), seed, len(groups))


def refitted(fit: Fit, weights: np.ndarray) -> np.ndarray:
    """Coordinates `[B, p]` of the best fit to each weighting `[B, n]` of the rows, from the best optima of `fit`."""
    heads = np.stack([optimum.theta for optimum in fit.optima[:RIVALS]])
    starts = np.tile(heads, (len(weights), 1))  # [B * heads, p]
    each = np.repeat(weights, len(heads), axis=0)
    found = fits.minima(fit.form, fit.objective, fit.rows, fit.centre, starts, fit.free, weights=each)
    best = np.nanargmin(found.value.reshape(len(weights), len(heads)), axis=1)
    return found.theta.reshape(len(weights), len(heads), -1)[np.arange(len(weights)), best]


def percentiles(values: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The middle share `level` of the draws, along the first axis."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


class Profile(NamedTuple):
    """Of one parameter: `at` `[K]`, and the least objective `[K]` with it fixed there, all others refitted. `low` and
    `high`: where the objective exceeds its least value by what chance explains; infinite where it never does."""

    name: str
    at: np.ndarray
    value: np.ndarray
    low: float
    high: float


def profile(fit: Fit, name: str, level: float = LEVEL, points: int = POINTS) -> Profile:
    """The profile of the objective along a parameter, and the interval that it gives.

    With rho the objective's function, `2 (f(theta_k) - f) mean(rho'') / mean(rho'^2)` is chi-squared with one degree of
    freedom (Huber and Ronchetti 2009, doi 10.1002/9780470434697, section 7.6); for least squares this is the ratio of
    likelihoods. Least absolute deviations have no such scale: their profile comes without an interval (NaN).

    Raises:
        UnknownNameError: no such free parameter.
    """
    names = [each for each, free in zip(fit.form.names, fit.free, strict=True) if free]
    if name not in names:
        raise UnknownNameError("free parameter", name, names)
    k = fit.form.names.index(name)
    centre = uncentred(fit.form, fit.centre)
    best = coordinates_of(fit.form, fit.natural, centre)
    most = _excess(fit, level)
    free = fit.free & (np.arange(len(fit.form.names)) != k)
    half = 0.02 * max(abs(best[k]), 0.1)
    theta, value, at = best[None], np.array([fit.value]), best[k : k + 1]
    for _ in range(WIDEST):
        at = best[k] + half * np.linspace(-1, 1, points)
        theta, value = _along(fit, centre, best, at, k, free)
        if not np.isfinite(most) or (value[0] > fit.value + most and value[-1] > fit.value + most):
            break
        half *= 2
    natural = natural_all(fit.form, theta, centre)[name]
    low, high = _crossings(natural, value - fit.value, most)
    return Profile(name, natural, value, low, high)


def _along(fit: Fit, centre: Any, best: np.ndarray, at: np.ndarray, k: int, free: np.ndarray):
    """(coordinates `[K, p]`, least objective `[K]`) with coordinate k fixed at each place, from the middle outwards."""
    theta = np.tile(best, (len(at), 1))
    theta[:, k] = at
    if not free.any():
        found = engine.left(
            fit.form, fit.objective, theta, prepared(fit.form, fit.rows.x, centre), target(fit.objective, fit.rows.y)
        )
        return theta, np.asarray(fit.objective.rho(found, fit.objective.delta)).sum(1)
    value = np.full(len(at), np.inf)
    for shift in (0, 1, -1, 1, -1):  # then from the neighbour's end, which may lead to a better one
        starts = np.roll(theta, shift, axis=0)
        starts[:, k] = at
        found = fits.minima(fit.form, fit.objective, fit.rows, centre, starts, free)
        better = found.value < value
        theta, value = np.where(better[:, None], found.theta, theta), np.where(better, found.value, value)
    return theta, value


def _excess(fit: Fit, level: float) -> float:
    """How far the objective may exceed its least value by chance."""
    if fit.objective.kind == "lad":
        return float("nan")
    x, y = prepared(fit.form, fit.rows.x, fit.centre), target(fit.objective, fit.rows.y)
    first, second, _ = fit.objective.slopes(
        engine.left(fit.form, fit.objective, fit.theta[None], x, y)[0], fit.objective.delta
    )
    spare = len(y) / max(len(y) - int(fit.free.sum()), 1)  # parameters were fitted to these residuals
    curvature = float(np.mean(second))
    most = float(chi2.ppf(level, 1)) / 2 * float(np.mean(first**2)) * spare
    return most / curvature if curvature else float("inf")


def _crossings(at: np.ndarray, excess: np.ndarray, most: float) -> tuple[float, float]:
    if not np.isfinite(most):
        return float("nan"), float("nan")
    order = np.argsort(at)
    at, excess = at[order], excess[order]
    inside = np.flatnonzero(excess <= most)
    if not len(inside):
        return float("nan"), float("nan")
    first, last = inside[0], inside[-1]
    low, high = float("-inf"), float("inf")
    if first > 0:
        low = float(np.interp(most, [excess[first], excess[first - 1]], [at[first], at[first - 1]]))
    if last < len(at) - 1:
        high = float(np.interp(most, [excess[last], excess[last + 1]], [at[last], at[last + 1]]))
    return low, high
