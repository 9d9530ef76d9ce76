"""What the rows can tell of a form's parameters: refusals before a fit, warnings after it."""

from collections.abc import Mapping

import numpy as np

from uimjax.errors import DataError
from uimjax.understand.scaling.base import (
    Form,
    Objective,
    Rows,
    centre_of,
    moved,
    natural_all,
    prepared,
    target,
    unit_of,
)
from uimjax.understand.scaling.engine import jacobian, left

PLACES = 32  # where the rank of the derivatives is looked at
NOTHING = 1e-9  # a singular value, relative to the largest, that counts as none
SPAN = 4.0  # an input that varies by less hardly shows its exponent
IDLE = 1e-6  # of the loss: a parameter that moves no prediction by more, over all its range
VAGUE = 0.5  # a standard error as a share of an exponent


def starts(
    form: Form, rows: Rows, objective: Objective, count: int, seed: int, centre: Mapping[str, float]
) -> np.ndarray:
    """`[count, p]` drawn evenly from the range of each centred coordinate, levels relative to that of the losses; in
    the coordinates of `centre`."""
    drawn = np.random.default_rng(seed).random((count, len(form.parameters)))
    low, high = (np.array([getattr(p, side) for p in form.parameters]) for side in ("low", "high"))
    found = (low + drawn * (high - low)) * unit_of(form, rows.y)
    if form.level:
        level = np.mean(np.log(rows.y)) if objective.residual == "log" else np.log(max(np.mean(rows.y), 1e-30))
        found[:, list(form.level)] += level
    drawn_at = centre_of(form, rows.x)
    return found if centre == drawn_at else moved(form, found, drawn_at, centre)


def condition(matrix: np.ndarray) -> float:
    """Of J'J, which is the square of J's; infinite where it cannot be told."""
    if not np.isfinite(matrix).all():
        return float("inf")
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(np.inf if values[-1] == 0 else (values[0] / values[-1]) ** 2)


def check(form: Form, rows: Rows, objective: Objective, free: np.ndarray, centre: Mapping[str, float]) -> None:
    """Refuse rows that no fit of this form could be read from.

    Raises:
        DataError: too few rows, or parameters that no amount of such rows could tell apart.
    """
    size = int(free.sum())
    distinct = len({tuple(values[k] for values in rows.x.values()) for k in range(len(rows.y))})
    names = [name for name, is_free in zip(form.names, free, strict=True) if is_free]
    if distinct < size + 1:
        raise DataError(
            f"{form.name} has {size} free parameters ({', '.join(names)}) and "
            f"needs at least {size + 1} runs of different {', '.join(form.inputs)}; {distinct} arrived. Add runs, "
            "fix parameters, or take a smaller form."
        )
    if np.ptp(rows.y) == 0:
        raise DataError(f"the fitted column is {rows.y[0]:g} in every row: no law can be told from it")
    x, y = prepared(form, rows.x, centre), target(objective, rows.y)
    best, odd = 0, np.zeros((1, size))
    for found in jacobian(form, objective, starts(form, rows, objective, PLACES, 1, centre), x, y)[:, :, free]:
        if not np.isfinite(found).all():
            continue  # too far out
        found = found / np.maximum(np.linalg.norm(found, axis=0), 1e-300)
        _, values, right = np.linalg.svd(found, full_matrices=False)
        rank = int((values > NOTHING * values[0]).sum())
        if rank > best:
            best, odd = rank, right[rank:]
    if best < size:
        mixed = [name for name, part in zip(names, np.abs(odd).max(0), strict=True) if part > 0.1]
        counted = {name: len(np.unique(values)) for name, values in rows.x.items()}
        raise DataError(
            f"these runs cannot tell {', '.join(mixed)} of {form.name} apart: different values there are "
            f"{', '.join(f'{count} of {name}' for name, count in counted.items())}. Add runs that vary what varies "
            "least, by itself, or fix some of these parameters (fixed={...}; --fix)."
        )


def warnings(
    form: Form, rows: Rows, objective: Objective, theta: np.ndarray, free: np.ndarray, centre: Mapping[str, float]
) -> list[str]:
    """What a reader of the fit should know of its rows."""
    found = []
    for name, values in rows.x.items():
        if name not in form.raw and (span := float(np.max(values) / np.min(values))) < SPAN:
            found.append(f"{name} varies by a factor of {span:.3g} only: its exponent stands on little")
    x, y = prepared(form, rows.x, centre), target(objective, rows.y)
    matrix = jacobian(form, objective, theta[None], x, y)[0][:, free]
    names = [name for name, is_free in zip(form.names, free, strict=True) if is_free]
    error = _errors(form, objective, x, y, theta, matrix)
    for name, at, size in zip(names, theta[free], error, strict=True):
        if name in ("alpha", "beta", "eta", "c0") and size > VAGUE * abs(at):
            found.append(f"{name} = {at:.3g} has a standard error of about {size:.2g}: the rows hardly tell it")
    natural = {name: float(values[0]) for name, values in natural_all(form, theta[None], centre).items()}
    if "E" in natural and "E" in names and 0 <= natural["E"] < 1e-3 * float(np.min(np.abs(rows.y))):
        found.append("E went to 0: these rows show no floor of the loss, and predictions far out have none")
    widths = (np.array([p.high - p.low for p in form.parameters]) * unit_of(form, rows.y))[free]
    moved = np.abs(matrix).max(0) * widths / (1.0 if objective.residual == "log" else max(float(np.std(y)), 1e-300))
    idle = [name for name, by in zip(names, moved, strict=True) if by < IDLE and name != "E"]
    if idle:
        found.append(
            f"{', '.join(idle)} no longer act: at every run their term is 0 beside the others, so their values mean "
            "nothing; a smaller form fits as well"
        )
    return found


def _errors(form, objective, x, y, theta, matrix) -> np.ndarray:
    """Standard errors by least squares at the optimum, from the median residual: a warning, not an interval."""
    spread = (
        1.4826
        * float(np.median(np.abs(left(form, objective, theta[None], x, y))))
        * np.sqrt(len(y) / max(len(y) - matrix.shape[1], 1))
    )
    return spread * np.sqrt(np.maximum(np.diag(np.linalg.pinv(matrix.T @ matrix, hermitian=True)), 0))
