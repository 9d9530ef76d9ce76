"""What the picture of a law shows: its runs, the curve along its natural axis with the band of its refits."""

from typing import Any

import numpy as np

PLACES = 60
BEYOND = 3.0  # the curve goes on to so many times the largest run


def curve(found: Any, draws: Any, held: Any) -> dict[str, Any]:
    """Arguments of `report.figures_scaling.scaling`; with runs held out, of the law of the others. Along compute, at
    the best split, for a law of N and D alone; else along the first logged input, the others at their medians."""
    if held is not None:
        found, draws = held.fit, held.draws  # the law that knows nothing of the run held out
    form, x = found.form, found.rows.x
    if set(form.inputs) == {"N", "D"}:
        axis, title = 6 * x["N"] * x["D"], "compute C = 6 N D (operations)"
        made = _frontier(found, draws, axis)
        if made is not None:
            return _arguments(found, held, axis, title, made, "95% of refits, at the best split")
    name = next((n for n in form.inputs if n not in form.raw), form.inputs[0])
    axis = x[name]
    at = np.geomspace(axis.min(), axis.max() * BEYOND, PLACES) if (axis > 0).all() else np.linspace(
        axis.min(), axis.max(), PLACES)  # fmt: skip
    others = {n: np.full(PLACES, np.median(x[n])) for n in form.inputs if n != name}
    fixed = ", ".join(f"{n} = {v[0]:.3g}" for n, v in others.items())
    from uimjax.understand.scaling.using import predict

    inputs: dict[str, Any] = {name: at, **others}
    said = predict(found, inputs, draws)
    title = f"{name} (the curve at {fixed})" if fixed else name
    made = at, said.value, said.low, said.high
    return _arguments(found, held, axis, title, made, "95% of refits", name)


def _frontier(found: Any, draws: Any, axis: np.ndarray) -> Any:
    from uimjax.errors import UimError
    from uimjax.understand.scaling.using import allocate

    at = np.geomspace(axis.min(), axis.max() * BEYOND, 20)
    try:
        losses = [allocate(found, float(c), draws).loss for c in at]
    except UimError:  # a law that never trades one for the other has no such curve
        return None
    return at, *(np.array([loss[key] for loss in losses]) for key in ("value", "low", "high"))


def _arguments(found: Any, held: Any, axis: np.ndarray, title: str, made: Any, band: str, name: str | None = None):
    from uimjax.understand.scaling.using import fitted

    points = [(float(a), float(y), "run") for a, y in zip(axis, found.rows.y, strict=True)]
    out, misfit = [], found.rows.y / fitted(found) - 1
    if held is not None:
        x = held.rows.x
        where = x[name] if name else 6 * x["N"] * x["D"]
        out = [(float(a), float(y), float(low), float(high), "") for a, y, low, high in
               zip(where, held.rows.y, held.prediction.run_low, held.prediction.run_high, strict=True)]  # fmt: skip
    return {"points": points, "curve": made, "held_out": out, "x_title": title, "band": band, "misfit": misfit}
