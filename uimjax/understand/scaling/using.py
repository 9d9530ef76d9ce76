"""Using a law: predictions, the best split of compute, and how it would have done on the largest run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from uimjax.errors import DataError, NonFiniteError, UnknownNameError, UsageError
from uimjax.understand.scaling import engine, fits, intervals
from uimjax.understand.scaling.base import Fit, Form, Rows, prepared, target
from uimjax.understand.scaling.intervals import LEVEL, Draws
from uimjax.understand.scaling.table import FLOPS, check_share

GRID, ROUNDS = 401, 5  # places of a model's size that are looked at, and how often more closely
SMALLEST = 1.0  # parameters, and tokens
EDGE = 0.02  # of the range of sizes: a best size there is none


class Prediction(NamedTuple):
    """`value` `[m]` of the best fit; `low`, `high`: where the law lies, by refits of resampled runs; `run_low`,
    `run_high`: where one further run lies, its own scatter included."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    run_low: np.ndarray
    run_high: np.ndarray


def predict(
    fit: Fit, inputs: Mapping[str, Sequence[float]], draws: Draws | None = None, level: float = LEVEL
) -> Prediction:
    """What the law says of inputs `{name: [m]}`, with percentile intervals of `draws` (drawn here unless given).

    The scatter of a run is that of the fit's residuals, widened by sqrt(n / (n - p)) for the parameters that were
    fitted to them; the same seed gives the same intervals.

    Raises:
        UnknownNameError: inputs that the form does not take. DataError: one that is missing, or not above 0.
    """
    x = _checked(fit.form, inputs)
    draws = intervals.bootstrap(fit) if draws is None else draws
    given = prepared(fit.form, x, fit.centre)
    value, each = engine.values(fit.form, fit.theta[None], given)[0], engine.values(fit.form, draws.theta, given)
    left = scatter(fit)
    drawn = np.random.default_rng(draws.seed).choice(left, size=each.shape)
    runs = each * np.exp(drawn) if fit.objective.residual == "log" else each + drawn
    low, high = intervals.percentiles(each, level)
    return Prediction(value, low, high, *intervals.percentiles(runs, level))


def fitted(fit: Fit) -> np.ndarray:
    """What the law says of the rows that it was fitted to, `[n]`."""
    return engine.values(fit.form, fit.theta[None], prepared(fit.form, fit.rows.x, fit.centre))[0]


def scatter(fit: Fit) -> np.ndarray:
    """Residuals of the fit `[n]`, widened by sqrt(n / (n - p))."""
    x, y = prepared(fit.form, fit.rows.x, fit.centre), target(fit.objective, fit.rows.y)
    left = engine.left(fit.form, fit.objective, fit.theta[None], x, y)[0]
    return left * np.sqrt(len(y) / max(len(y) - int(fit.free.sum()), 1))


def _checked(form: Form, inputs: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    for name in inputs:
        if name not in form.inputs:
            raise UnknownNameError(f"input of {form.name}", name, form.inputs)
    sizes = {name: np.size(values) for name, values in inputs.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise DataError(f"inputs of several lengths arrived: {told}; one value of each a prediction was wanted")
    missing = [name for name in form.inputs if name not in inputs]
    if missing:
        raise DataError(f"{form.name} takes {', '.join(form.inputs)}; {', '.join(missing)} did not arrive")
    found = {name: np.atleast_1d(np.asarray(values, np.float64)) for name, values in inputs.items()}
    _check_values(form, found)
    return found


def _check_values(form: Form, found: Mapping[str, np.ndarray]) -> None:
    for name, values in found.items():
        if not np.isfinite(values).all() or (name not in form.raw and not (values > 0).all()):
            raise DataError(f"{name} = {values} arrived; finite numbers above 0 were wanted")
        if name in form.shares:
            check_share(name, values)


class Allocation(NamedTuple):
    """The best split of `compute`: parameters and tokens, the loss there, each `{"value", "low", "high"}`; `edge`: for
    this share of the draws, no size inside the range was best."""

    compute: float
    flops: str
    parameters: dict[str, float]
    tokens: dict[str, float]
    loss: dict[str, float]
    edge: float


def allocate(
    fit: Fit,
    compute: float,
    draws: Draws | None = None,
    *,
    given: Mapping[str, float] | None = None,
    flops: float = FLOPS,
    level: float = LEVEL,
) -> Allocation:
    """The N and D of least predicted loss with `flops` N D = `compute`, and the intervals that the draws give them.

    For the Chinchilla form N* = G (C / flops)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta));
    it is found here by search, for every form of a size and an amount of data. `given`: its further inputs (U, noise).

    Raises:
        UsageError: the form has no N and D (or M). NonFiniteError: no size between is best: the law never trades one
        for the other.
    """
    form = fit.form
    if "N" not in form.inputs or not {"D", "M"} & set(form.inputs):
        raise UsageError(f"{form.name} takes {', '.join(form.inputs)}: only a law of N and D can split compute")
    if not 0 < compute < np.inf or not 0 < flops < np.inf or compute / flops <= SMALLEST**2:
        raise UsageError(f"compute={compute:g} and {flops:g} per parameter and token leave no room for a model")
    extra = {name: value for name, value in (given or {}).items()}
    for name in extra:
        if name not in form.inputs or name in ("N", "D", "M"):
            raise UnknownNameError("further input", name, [n for n in form.inputs if n not in ("N", "D", "M")])
    _check_values(form, {name: np.asarray([value], np.float64) for name, value in extra.items()})
    draws = intervals.bootstrap(fit) if draws is None else draws
    theta = np.concatenate([fit.theta[None], draws.theta])
    size, loss, at_edge = _best_size(fit, theta, compute / flops, extra)
    if at_edge[0]:
        raise NonFiniteError(
            f"no size between {SMALLEST:g} and {compute / flops / SMALLEST:g} parameters is best for this law: it "
            "never trades size for data. Fit it on runs that vary both."
        )

    def told(values: np.ndarray) -> dict[str, float]:
        low, high = intervals.percentiles(values[1:], level)
        return {"value": float(values[0]), "low": float(low), "high": float(high)}

    formula = f"C = {flops:g} N D"
    return Allocation(compute, formula, told(size), told(compute / flops / size), told(loss), float(at_edge[1:].mean()))


def _best_size(fit: Fit, theta: np.ndarray, product: float, extra: Mapping[str, float]):
    """(N `[S]`, loss `[S]`, whether it lies at an edge `[S]`) of least loss with N D = product, at each place."""
    bounds = np.log(SMALLEST), np.log(product / SMALLEST)
    low, high = np.full(len(theta), bounds[0]), np.full(len(theta), bounds[1])
    at, loss = low, low
    for _ in range(ROUNDS):
        places = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, GRID)
        x = _split(fit.form, np.exp(places), product, extra)
        found = engine.values(fit.form, theta, prepared(fit.form, x, fit.centre))
        best, step = np.nanargmin(found, axis=1), (high - low) / (GRID - 1)
        rows = np.arange(len(theta))
        at, loss = places[rows, best], found[rows, best]
        low, high = np.maximum(at - 2 * step, bounds[0]), np.minimum(at + 2 * step, bounds[1])
    margin = EDGE * (bounds[1] - bounds[0])
    return np.exp(at), loss, (at < bounds[0] + margin) | (at > bounds[1] - margin)


def _split(form: Form, size: np.ndarray, product: float, extra: Mapping[str, float]) -> dict[str, np.ndarray]:
    data = product / size
    known = {"N": size, "D": data, "M": data / size} | {name: np.full_like(size, v) for name, v in extra.items()}
    missing = [name for name in form.inputs if name not in known]
    if missing:
        raise DataError(f"{form.name} also takes {', '.join(missing)}: say at what value (given={{...}})")
    return {name: known[name] for name in form.inputs}


class Holdout(NamedTuple):
    """How a law fitted without some runs would have done: `held` their numbers, `rows` themselves, the fit of the
    others, its `prediction`, the relative `error` of each, and whether each lies `inside` its interval."""

    held: np.ndarray
    rows: Rows
    fit: Fit
    draws: Draws
    prediction: Prediction
    error: np.ndarray
    inside: np.ndarray


def holdout(
    fit: Fit, seed: int = 0, starts: int = fits.STARTS, level: float = LEVEL, draws: int = intervals.DRAWS
) -> Holdout:
    """Refit the law without its largest run (all rows of the group with the most compute N D; of a form without sizes
    the largest inputs) and predict that. `draws` resamples for its interval.

    Raises:
        DataError: too few runs are left.
    """
    held = fit.rows.group == fit.rows.group[int(np.argmax(_largeness(fit)))]
    kept = fits.fit_rows(
        fit.rows.take(~held), fit.form, fit.objective, fixed=fit.fixed, starts=starts, seed=seed
    )  # fmt: skip
    refits = intervals.bootstrap(kept, draws, seed)
    left = fit.rows.take(held)
    made = predict(kept, {name: list(left.x[name]) for name in fit.form.inputs}, refits, level)
    inside = (made.run_low <= left.y) & (left.y <= made.run_high)
    return Holdout(np.flatnonzero(held), left, kept, refits, made, made.value / left.y - 1, inside)


def _largeness(fit: Fit) -> np.ndarray:
    """The logarithm of compute, up to a constant, `[n]`."""
    x, form = fit.rows.x, fit.form
    if form.inputs == ("loss",):
        return -x["loss"]  # a larger run has the lower loss
    if "N" in x and "M" in x:
        return 2 * np.log(x["N"]) + np.log(x["M"])  # D = M N
    counted = [n for n in form.inputs if n != "U" and n not in form.shares and (x[n] > 0).all()]
    counted = [n for n in ("N", "D") if n in counted] or counted
    if not counted:
        raise UsageError(f"no run of {form.name} is the largest: {', '.join(form.inputs)} hold no sizes above 0")
    return np.sum([np.log(x[name]) for name in counted], axis=0)
