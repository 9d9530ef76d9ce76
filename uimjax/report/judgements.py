"""Methods judged by retraining, as a table for people and as one JSON object."""

import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from uimjax.interpret.check import Checked, Judgement


def show(found: Checked, console: Console | None = None) -> None:
    """The strongest first; what failed last, with its reason."""
    console = console or Console()
    subsets, seeds, queries = found.bank.values.shape
    best = "" if math.isnan(found.ceiling) else f"; no method can reach more than {found.ceiling:.2f}"
    agree = "one seed" if math.isnan(found.agreement) else f"two seeds agree at {found.agreement:.2f}"
    console.print(
        f"{subsets} halves x {seeds} trainings ({found.bank.protocol}), {queries} queries: {agree}{best}", markup=False
    )
    table = Table("method", "LDS", "95%", "slope of removals", "seconds", "how")
    for its in sorted(found.judgements, key=_strength):
        table.add_row(*(escape(x) for x in _cells(its)))
    console.print(table)
    console.print(
        "LDS: rank correlation of predicted and retrained f over random halves. Slope: retrained over predicted change "
        "for removed rows, 1 where scores in nats are calibrated.",
        markup=False,
    )


def _strength(its: Judgement) -> float:
    return math.inf if its.lds is None or math.isnan(its.lds.value) else -its.lds.value


def _cells(its: Judgement) -> tuple[str, ...]:
    if its.lds is None:
        return its.method, "-", "-", "-", f"{its.seconds:.1f}", its.error
    interval = f"{its.lds.low:.2f} to {its.lds.high:.2f}"
    line = its.calibration
    slope = "-" if line is None else f"{line.slope:.2f} ({line.low:.2f} to {line.high:.2f})"
    return its.method, f"{its.lds.value:.3f}", interval, slope, f"{its.seconds:.1f}", its.said


def document(found: Checked) -> dict[str, Any]:
    """NaN as null."""
    subsets, seeds, queries = found.bank.values.shape
    head = {"halves": subsets, "seeds": seeds, "queries": queries, "protocol": found.bank.protocol}
    head |= {"agreement": _number(found.agreement), "ceiling": _number(found.ceiling)}
    return head | {"methods": {its.method: _judgement(its) for its in found.judgements}}


def _judgement(its: Judgement) -> dict[str, Any]:
    if its.lds is None:
        return {"seconds": round(its.seconds, 2), "error": its.error}
    out: dict[str, Any] = {name: _number(getattr(its.lds, name)) for name in ("value", "low", "high")}
    out = {"lds": out.pop("value"), **out, "seconds": round(its.seconds, 2), "how": its.said}
    if its.calibration is not None:
        names = ("slope", "low", "high", "correlation")
        out["calibration"] = {name: _number(getattr(its.calibration, name)) for name in names}
    return out


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
