"""Fit a law to a table: every start descends to its own optimum, and all of them are told, the best first."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import DataError, NonFiniteError, UnknownNameError, UsageError
from uimjax.understand.scaling import design, engine
from uimjax.understand.scaling.base import (
    Fit,
    Form,
    Objective,
    Optimum,
    Rows,
    centre_of,
    coordinates_of,
    natural_all,
    prepared,
    target,
    uncentred,
    unit_of,
)
from uimjax.understand.scaling.forms import form_of
from uimjax.understand.scaling.table import Table, rows_of

STARTS = 512
SAME = 5e-3  # of a coordinate's range: two ends that are one optimum
ALIKE, SAID = 1e-6, 1e-5  # or: objectives so near, relatively, and residuals so near
TOLD = 20  # optima listed at most
NARROWER = 8  # times Huber's zone is narrowed tenfold on the way to absolute deviations
VALLEY = (
    "no start settled: the objective is a valley along which parameters trade against each other; what it predicts "
    "between the runs may hold, the single parameters mean nothing"
)
FLAT = 1e-2  # relative objective within which another optimum is as good an answer


def fit(
    table: Table,
    form: Form | str = "chinchilla",
    objective: Objective | str = "huber",
    *,
    columns: Mapping[str, str] | None = None,
    loss: str = "loss",
    group: str | None = None,
    fixed: Mapping[str, float] | None = None,
    starts: int = STARTS,
    seed: int = 0,
    dtype: Any = np.float64,
) -> Fit:
    """The parameters that minimise `sum_i rho(r_i)` (`Objective`) over a table of runs.

    `form`: a name, a `Form`, or `pkg.module:name`. `columns` says which column an input is (`{"N": "params"}`) where
    its name does not; D = C / (6 N) where the table has compute instead. `loss`: the column that is fitted, any
    measurement. `group`: the column of the run, for rows that are checkpoints of one. `fixed`: parameters that are
    known, by their names in papers.

    The fit runs in centred coordinates, where levels and exponents hardly correlate (uncentred ones, when something is
    fixed), with exact first and second derivatives. Read the objective first and the parameters second: many laws fit
    almost as well. Published constants need not be optima.

    Raises:
        UsageError, UnknownNameError: form, objective, column or parameter. DataError: values that cannot be fitted, too
        few rows, or rows that cannot tell the parameters apart.

    >>> import uimjax as uj
    >>> n, d = [1e6, 1e7, 1e8, 1e6, 1e7, 1e8, 1e6, 1e7, 1e8], [1e8] * 3 + [1e9] * 3 + [1e10] * 3
    >>> loss = [1.7 + 400 / a**0.34 + 410 / b**0.28 for a, b in zip(n, d)]
    >>> law = uj.scaling.fit({"N": n, "D": d, "loss": loss})
    >>> round(law.natural["alpha"], 4), round(law.natural["E"], 4)
    (0.34, 1.7)
    """
    form = form_of(form)
    objective = objective_of(objective, form)
    rows, _ = rows_of(table, form, objective, columns, loss, group)
    return fit_rows(rows, form, objective, fixed=fixed, starts=starts, seed=seed, dtype=dtype)


def objective_of(objective: Objective | str, form: Form) -> Objective:
    """By its name; forms that are no logarithm's by linear residuals."""
    if isinstance(objective, Objective):
        return objective
    return Objective(objective, residual="linear" if form.name in ("sigmoid", "exponential", "trend") else "log")  # type: ignore[arg-type]  # checked there


def fit_rows(
    rows: Rows,
    form: Form,
    objective: Objective,
    *,
    fixed: Mapping[str, float] | None = None,
    starts: int = STARTS,
    seed: int = 0,
    dtype: Any = np.float64,
) -> Fit:
    """As `fit`, of rows that are read."""
    fixed = {name: float(value) for name, value in (fixed or {}).items()}
    for name in fixed:
        if name not in form.names:
            raise UnknownNameError(f"parameter of {form.name}", name, form.names)
    if starts < 1:
        raise UsageError(f"starts={starts} arrived; at least one was wanted")
    free = np.array([name not in fixed for name in form.names])
    centre = centre_of(form, rows.x)
    centre = uncentred(form, centre) if fixed else centre
    if not free.any():
        raise UsageError(f"all parameters of {form.name} are fixed: nothing is left to fit")
    design.check(form, rows, objective, free, centre)
    begun = design.starts(form, rows, objective, starts, seed, centre)
    begun[:, ~free] = _held(form, fixed, centre)[~free]
    found = minima(form, objective, rows, centre, begun, free, dtype)
    optima = clustered(form, objective, rows, found, centre)
    if not optima:
        raise NonFiniteError(f"none of {starts} starts of {form.name} reached an optimum; are these losses of one law?")
    if objective.kind == "lad":
        optima = sorted((_at_vertex(form, objective, rows, o, centre, free) for o in optima), key=lambda o: o.value)
    theta = optima[0].theta
    x, y = prepared(form, rows.x, centre), target(objective, rows.y)
    valley = [] if (found.steps < engine.STEPS).any() else [VALLEY]
    told = design.warnings(form, rows, objective, theta, free, centre)
    return Fit(form, objective, rows, theta, centre, fixed, optima, starts,
               _conditions(form, objective, rows, theta, free, centre), _r2(form, theta, x, rows.y),
               valley + told + _flat(form, optima) + _seldom(optima, y))  # fmt: skip


def minima(
    form: Form, objective: Objective, rows: Rows, centre: Mapping[str, float], starts: np.ndarray,
    free: np.ndarray, dtype: Any = np.float64, weights: np.ndarray | None = None,
) -> engine.Found:  # fmt: skip
    """Where the starts end; least absolute deviations through ever narrower Huber zones."""
    if form.linear_in and objective.residual == "linear" and (unit := unit_of(form, rows.y)).max() != 1:
        return _in_units(form, objective, rows, centre, starts, free, dtype, weights, unit)
    x, y = prepared(form, rows.x, centre), target(objective, rows.y)
    if objective.kind != "lad":
        return engine.minimise(form, objective, x, y, starts, weights=weights, free=free, dtype=dtype)
    spread, ends = max(float(np.std(y)), 1e-12), starts
    steps = np.zeros(len(starts), np.int32)
    for k in range(NARROWER):
        huber = dataclasses.replace(objective, kind="huber", delta=1e-2 * spread * 10.0**-k)
        found = engine.minimise(form, huber, x, y, ends, weights=weights, free=free, dtype=dtype)
        ends, steps = found.theta, np.maximum(steps, found.steps)
    size = np.abs(engine.left(form, objective, ends, x, y))
    return engine.Found(ends, np.sum(size if weights is None else size * weights, axis=1), steps)


def _in_units(form, objective, rows, centre, starts, free, dtype, weights, unit) -> engine.Found:
    """The same of values of about 1, so that steps and starts fit whatever they are measured in: with s the unit,
    rho(r / s; delta / s) = rho(r; delta) / s^2 (absolute deviations: / s)."""
    size = unit.max()
    scaled = dataclasses.replace(objective, delta=objective.delta / size)
    found = minima(form, scaled, rows._replace(y=rows.y / size), centre, starts / unit, free, dtype, weights)
    back = size if objective.kind == "lad" else size**2
    return engine.Found(found.theta * unit, found.value * back, found.steps)


def _at_vertex(
    form: Form, objective: Objective, rows: Rows, optimum: Optimum, centre: Mapping[str, float], free: np.ndarray
) -> Optimum:
    """Least absolute deviations end at a vertex: as many residuals are zero as parameters are free."""
    x, y = prepared(form, rows.x, centre), target(objective, rows.y)
    residual = lambda at: engine.left(form, objective, at[None], x, y)[0]  # noqa: E731  # one line, used thrice
    at, near = optimum.theta.copy(), np.argsort(np.abs(residual(optimum.theta)))[: int(free.sum())]
    for _ in range(4):
        matrix = engine.jacobian(form, objective, at[None], x, y)[0][near][:, free]
        try:
            at[free] -= np.linalg.solve(matrix, residual(at)[near])
        except np.linalg.LinAlgError:  # two of them are the same run
            break
        value = float(np.sum(np.abs(residual(at))))
        if value < optimum.value:
            optimum = Optimum(value, natural_of(form, at, centre), optimum.share, at.copy())
    return optimum


def clustered(
    form: Form, objective: Objective, rows: Rows, found: engine.Found, centre: Mapping[str, float]
) -> list[Optimum]:
    """The optima among the ends, best first. Ends that did not settle within the steps belong to none, unless none did:
    then the objective is a valley, and they lie along it. Two ends are one optimum if their coordinates are, or if they
    say the same of every row: of a term that went to 0 the coordinates mean nothing."""
    reach = np.array([p.high - p.low for p in form.parameters]) * SAME * unit_of(form, rows.y)
    settled = np.isfinite(found.value) & (found.steps < engine.STEPS)
    settled = settled if settled.any() else np.isfinite(found.value)
    order = [k for k in np.argsort(found.value, kind="stable") if settled[k]]
    said = engine.left(form, objective, found.theta, prepared(form, rows.x, centre), target(objective, rows.y))

    close = SAID * (1.0 if objective.residual == "log" else float(np.max(np.abs(rows.y))))

    def same(k: int, head: int) -> bool:
        if (np.abs(found.theta[k] - found.theta[head]) <= reach).all():
            return True
        near = found.value[k] <= found.value[head] * (1 + ALIKE)
        return bool(near and np.abs(said[k] - said[head]).max() <= close)

    heads: list[int] = []
    counts: list[int] = []
    for k in order:
        near = [h for h, head in enumerate(heads) if same(k, head)]
        if near:
            counts[near[0]] += 1
        elif len(heads) < TOLD:
            heads.append(int(k))
            counts.append(1)
    return [
        Optimum(float(found.value[k]), natural_of(form, found.theta[k], centre), n / len(found.value),
                    np.asarray(found.theta[k], np.float64))
            for k, n in zip(heads, counts, strict=True)
        ]  # fmt: skip


def natural_of(form: Form, theta: Any, centre: Mapping[str, float]) -> dict[str, float]:
    return {name: float(values[0]) for name, values in natural_all(form, np.asarray(theta)[None], centre).items()}


def _held(form: Form, fixed: Mapping[str, float], centre: Mapping[str, float]) -> np.ndarray:
    """Coordinates of what is fixed (uncentred: each parameter by itself); what is free as if it were 1."""
    found = coordinates_of(form, {name: fixed.get(name, 1.0) for name in form.names}, centre)
    bad = [name for name, value in zip(form.names, found, strict=True) if name in fixed and not np.isfinite(value)]
    if bad:
        raise DataError(
            f"{bad[0]}={fixed[bad[0]]:g} is no value of {form.name}'s {bad[0]}; above 0 was wanted "
            "(a law without that term: a number far below the losses, as 1e-12)"
        )
    return found


def _conditions(form, objective, rows, theta, free, centre: dict[str, float]) -> tuple[float, float]:
    """Of the Gauss-Newton matrix in these coordinates, and in uncentred ones."""
    y = target(objective, rows.y)
    here = engine.jacobian(form, objective, theta[None], prepared(form, rows.x, centre), y)[0][:, free]
    plain = uncentred(form, centre)
    there = coordinates_of(form, natural_of(form, theta, centre), plain)
    raw = engine.jacobian(form, objective, there[None], prepared(form, rows.x, plain), y)[0][:, free]
    return design.condition(here), design.condition(raw)


def _r2(form: Form, theta: np.ndarray, x: Mapping[str, np.ndarray], y: np.ndarray) -> float:
    """1 - sum (y - prediction)^2 / sum (y - mean)^2, of the values themselves."""
    with jax.enable_x64(True):
        made = np.asarray(form.linear(jnp.asarray(theta), {n: jnp.asarray(v) for n, v in x.items()}))
    total = float(np.sum((y - y.mean()) ** 2))
    return 1 - float(np.sum((y - made) ** 2)) / total if total else float("nan")


def _flat(form: Form, optima: list[Optimum]) -> list[str]:
    rivals = [o for o in optima[1:] if o.value <= optima[0].value * (1 + FLAT)]
    if not rivals:
        return []
    other = rivals[0].natural
    told = ", ".join(f"{name} {optima[0].natural[name]:.4g} or {other[name]:.4g}" for name in form.names
                     if abs(other[name] - optima[0].natural[name]) > 1e-2 * abs(optima[0].natural[name]))  # fmt: skip
    return [f"{len(rivals)} further optima are within {FLAT:.0%} of the best ({told}): report the profile, not a point"]


def _seldom(optima: list[Optimum], y: np.ndarray) -> list[str]:
    if optima[0].share >= 0.05 or len(y) == 0:
        return []
    return [
        f"only {optima[0].share:.1%} of the starts ended at the best optimum: there may be a better one (starts=...)"
    ]
