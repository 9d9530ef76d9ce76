"""Charts as pictures: Altair to SVG, embedded as an image, where no script inside could ever run.

Blue and orange can be told apart by colour-blind readers; every chart stands beside its numbers in a table.
"""

import base64
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from uimjax.interpret.methods import BASELINES

CAUSE, OTHER, QUIET = "#d95f02", "#1f6fb4", "#9aa3ad"
WIDTH = 330
BINS = 48


def _address(chart: Any) -> str:
    """A `data:` address of the chart as SVG."""
    svg = vl_convert.vegalite_to_svg(chart.configure(font="sans-serif", view={"stroke": None}).to_json())
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def triple(bars: Sequence[tuple[str, float, Sequence[float]]], unit: str) -> str:
    """Bars of (name, mean, repetitions) top to bottom: before, the goal, and the three arms; a dot a repetition."""
    names = [name for name, *_ in bars]
    colours = {"traced rows": CAUSE, "planted rows (oracle)": OTHER, "random rows (control)": QUIET}
    values = [{"arm": n, "mean": m, "colour": colours.get(n, "#5b6670")} for n, m, _ in bars]
    dots = [{"arm": n, "value": float(v)} for n, _, each in bars for v in each]
    y = alt.Y("arm:N", sort=names, title=None, axis=alt.Axis(labelLimit=180))
    x = alt.X("mean:Q", title=unit, scale=alt.Scale(domainMin=0))
    base = alt.Chart(alt.Data(values=values)).mark_bar(height=16).encode(x, y, alt.Color("colour:N", scale=None))
    each = alt.Chart(alt.Data(values=dots)).mark_point(filled=True, size=22, color="#222").encode(x="value:Q", y=y)
    return _address((base + each).properties(width=WIDTH - 60, height=30 * len(bars)))


def ranking(found: dict[str, float], chosen: str, base_rate: float) -> str:
    """Average precision by method, best first; a rule at the base rate, which is what chance gives."""
    ordered = sorted(found.items(), key=lambda item: -item[1])
    kind = lambda n: CAUSE if n == chosen else QUIET if n in BASELINES else OTHER  # noqa: E731  # one line, used once
    values = [{"method": n, "ap": v, "colour": kind(n)} for n, v in ordered]
    bars = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(height=13)
        .encode(
            alt.X("ap:Q", title="average precision", scale=alt.Scale(domain=[0, 1])),
            alt.Y("method:N", sort=[n for n, _ in ordered], title=None),
            alt.Color("colour:N", scale=None),
        )
    )
    chance = alt.Chart(alt.Data(values=[{"ap": base_rate}])).mark_rule(strokeDash=[3, 3]).encode(x="ap:Q")
    return _address((bars + chance).properties(width=WIDTH - 20, height=20 * len(values)))


def histogram(scores: np.ndarray, nulls: Sequence[np.ndarray], size: int) -> str:
    """Rows by score, log scale; the grey band is where questions without a failure put them; the dashed line is the
    score of the last row of the edit."""
    low, high = (float(f([f(s) for s in (scores, *nulls)])) for f in (np.min, np.max))
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = np.histogram(scores, edges)[0]
    each = [np.histogram(null, edges)[0] for null in nulls]
    values = [
        {
            "from": float(a),
            "to": float(b),
            "rows": int(n),
            "least": max(min((int(e[k]) for e in each), default=0), 0.7),
            "most": max(max((int(e[k]) for e in each), default=0), 0.7),
        }
        for k, (a, b, n) in enumerate(zip(edges[:-1], edges[1:], counts, strict=True))
    ]
    y = alt.Scale(type="log", domainMin=0.7)
    data, x = alt.Data(values=values), alt.X("from:Q", title="score (positive = proponent)", bin="binned")
    bars = (
        alt.Chart(data)
        .transform_filter("datum.rows > 0")
        .mark_bar(color=OTHER, opacity=0.75)
        .encode(x, alt.X2("to:Q"), alt.Y("rows:Q", scale=y, title="training rows"), alt.Y2(datum=0.7))
    )
    band = (
        alt.Chart(data)
        .mark_area(color="#555", opacity=0.35, interpolate="step-after")
        .encode(x, alt.Y("least:Q", scale=y), alt.Y2("most:Q"))
    )
    cut = float(np.sort(scores)[::-1][min(size, len(scores)) - 1])
    rule = alt.Chart(alt.Data(values=[{"from": cut}])).mark_rule(color=CAUSE, strokeDash=[4, 3]).encode(x="from:Q")
    layers = [bars, band, rule] if nulls else [bars, rule]
    return _address(alt.layer(*layers).properties(width=WIDTH, height=170))
