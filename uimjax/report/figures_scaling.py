"""Pictures of scaling laws: a fitted law with its bootstrap band, and IsoFLOP profiles."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from uimjax.errors import ShapeError, UsageError
from uimjax.report import figures
from uimjax.report.figures import Figure, short

HELD = "held out"
FITTED = "fitted"


class Law(NamedTuple):
    """The loss that a law gives at x, and the ends of its bootstrap band, each `[T]`."""

    x: Any
    mid: Any
    low: Any
    high: Any


class HeldOut(NamedTuple):
    """A run that was not fitted: its loss, and the interval that the law predicted."""

    x: float
    loss: float
    low: float
    high: float
    label: str = ""


class Profile(NamedTuple):
    """Runs of one compute budget: model sizes and losses `[n]`, a curve through them `[T]`, and where it is least."""

    compute: float
    sizes: Any
    losses: Any
    curve_sizes: Any
    curve_losses: Any
    best_size: float
    best_loss: float


def scaling(
    points: Sequence[tuple[float, float, str]],
    curve: Law | tuple[Any, Any, Any, Any],
    held_out: Sequence[HeldOut | tuple[float, float, float, float, str]] = (),
    x_title: str = "training compute (FLOPs)",
    y_title: str = "loss (nats per token)",
    band: str = "bootstrap band",
    misfit: Sequence[float] | None = None,
) -> Figure:
    """A law with its band, the runs (x, loss, label) that it was fitted to, and those held out, both axes logarithmic.
    `misfit`: each run's loss / prediction - 1, where the curve is not the prediction of every run (of other inputs).

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: nothing above 0, x of the curve that
        does not rise, low above high.
    """
    if not points:
        raise ShapeError("0 points arrived; at least one fitted run (x, loss, label) was wanted")
    law, held = _law(curve), [HeldOut(*each) for each in held_out]
    at = figures.positive("x of the points", [p[0] for p in points], (len(points),))
    losses = figures.positive("loss of the points", [p[1] for p in points], (len(points),))
    known = list(dict.fromkeys(p[2] for p in points))
    shown = dict(zip(known, [""] if known == [""] else figures.labels("labels", known), strict=True))
    rows: list[dict[str, Any]] = [
        {"kind": FITTED, "label": shown[p[2]], "x": float(a), "loss": float(b)}
        for p, a, b in zip(points, at, losses, strict=True)
    ]
    if held:
        ends = [[getattr(h, name) for h in held] for name in ("x", "loss", "low", "high")]
        figures.positive("the held-out runs (x, loss, low, high)", ends, (4, len(held)))
        figures.interval("the held-out runs", ends[2], ends[3], (len(held),))
    rows += [
        {"kind": HELD, "label": figures.label(h.label), "x": float(h.x), "loss": float(h.loss)}
        | {"low": float(h.low), "high": float(h.high)}
        for h in held
    ]
    kept = figures.thinned(len(law.x), max(figures.MOST - len(rows), 2))
    line = [
        {"kind": "law", "label": "", "x": float(law.x[k]), "loss": float(law.mid[k])}
        | {"low": float(law.low[k]), "high": float(law.high[k])}
        for k in kept
    ]
    names = list(shown.values()) if 1 < len(known) <= len(figures.COLOURS) - 1 else []
    chart = _law_drawn(rows, line, names, figures.label(x_title), figures.label(y_title))
    reading = _law_read(law, at, losses, misfit, held, figures.label(x_title), figures.label(band))
    return figures.drawn(chart, rows + line, reading)


def _law(curve: Any) -> Law:
    if len(curve) != 4:
        raise ShapeError(f"a curve of {len(curve)} arrays arrived; four, x, mid, low and high, were wanted")
    x = figures.rising("x of the curve", curve[0])
    if x[0] <= 0:
        raise UsageError(f"x of the curve begins at {x[0]:g}; values above 0 were wanted, the axis is logarithmic")
    names = ("mid", "low", "high")
    mid, low, high = (figures.positive(f"{n} of the curve", c, x.shape) for n, c in zip(names, curve[1:], strict=True))
    figures.interval("the curve", low, high, x.shape)
    return Law(x, mid, low, high)


def _law_drawn(rows: list[dict[str, Any]], line: list[dict[str, Any]], names: list[str], x: str, y: str) -> Any:
    every = [*rows, *line]
    heights = [row[key] for row in every for key in ("loss", "low", "high") if key in row]
    across = figures.logarithmic(alt.X, "x:Q", x, [row["x"] for row in every])
    up = lambda field: figures.logarithmic(alt.Y, field, y, heights)  # noqa: E731  # the same axis four times
    held = any(row["kind"] == HELD for row in rows)
    series = (names or [FITTED]) + ([HELD] if held else [])
    series = figures.labels("series", series)  # a label of the user's may be "held out" as well
    places = [
        row | {"series": series[-1] if row["kind"] == HELD else row["label"] if names else FITTED} for row in rows
    ]
    plain = list(figures.COLOURS[1 : len(series) + 1])
    colour = [*plain[: len(series) - held], *(["#000000"] if held else [])]
    shape = ["circle"] * (len(series) - held) + ["diamond"] * held
    key = figures.legend(series)
    curve = alt.Chart(alt.Data(values=line)).encode(across)
    dots = alt.Chart(alt.Data(values=places)).encode(
        across,
        alt.Color("series:N", scale=alt.Scale(domain=series, range=colour), legend=key),
        alt.Shape("series:N", scale=alt.Scale(domain=series, range=shape), legend=key),
    )
    layers = [
        curve.mark_area(color=figures.BLUE, opacity=0.2).encode(up("low:Q"), y2="high:Q"),
        curve.mark_line(color=figures.BLUE, strokeWidth=1.8).encode(up("loss:Q")),
    ]
    if held:
        bars = alt.Chart(alt.Data(values=[row for row in rows if row["kind"] == HELD])).encode(across)
        layers.append(bars.mark_rule(color="#000000", strokeWidth=1.5).encode(up("low:Q"), y2="high:Q"))
    layers.append(dots.mark_point(filled=True, size=46, opacity=0.85).encode(up("loss:Q")))
    return alt.layer(*layers).properties(width=figures.WIDTH, height=figures.HEIGHT)


def _law_read(
    law: Law, at: np.ndarray, losses: np.ndarray, misfit: Sequence[float] | None, held: list[HeldOut], title: str,
    band: str,
) -> str:  # fmt: skip
    inside = (at >= law.x[0]) & (at <= law.x[-1])
    text = f"The law is fitted to {len(at):,} runs, from {short(at.min())} to {short(at.max())} in {title}"
    if misfit is not None:
        text += f", whose losses are {np.median(np.abs(misfit)):.2%} off it in the median"
    elif inside.any():
        given = np.exp(np.interp(np.log(at[inside]), np.log(law.x), np.log(law.mid)))
        text += f", whose losses are {np.median(np.abs(losses[inside] / given - 1)):.2%} off it in the median"
    if not held:
        ends = f"{short(law.mid[-1])} ({band} {short(law.low[-1])} to {short(law.high[-1])})"
        return f"{text}; it gives {ends} at {short(law.x[-1])}."
    far = max(held, key=lambda h: h.x)
    where = "below" if far.loss < far.low else "above" if far.loss > far.high else "inside"
    named = f'"{figures.label(far.label)}" at' if far.label else "at"
    told = f"{named} {short(far.x)}, has a loss of {short(far.loss)}, {where} its interval"
    told += f" ({short(far.low)} to {short(far.high)})"
    if len(held) == 1:
        return f"{text}; the run held out, {told}."
    within = sum(h.low <= h.loss <= h.high for h in held)
    text += f"; of {len(held)} held out, {within} {'lies' if within == 1 else 'lie'} inside the predicted interval, and"
    return f"{text} the largest, {told}."


def isoflop(
    profiles: Sequence[Profile | tuple[Any, ...]],
    x_title: str = "model size (parameters)",
    y_title: str = "loss (nats per token)",
) -> Figure:
    """IsoFLOP profiles (Hoffmann et al. 2022): of each compute budget the runs, a curve through them, and its minimum.
    The sentence states the power of compute that the sizes at the minima follow, by least squares of the logarithms.

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: nothing above 0, a budget twice.
    """
    if not profiles:
        raise ShapeError("0 profiles arrived; at least one compute budget was wanted")
    made = sorted((_profile(Profile(*each)) for each in profiles), key=lambda p: p.compute)
    budgets = np.array([p.compute for p in made])
    if len(np.unique(budgets)) < len(budgets):
        raise UsageError("a compute budget arrived twice; join its runs into one profile")
    rows: list[dict[str, Any]] = []
    for p in made:
        kept = figures.thinned(len(p.curve_sizes), max(figures.MOST // len(made) - len(p.sizes), 2))
        told = [("run", p.sizes, p.losses), ("curve", p.curve_sizes[kept], p.curve_losses[kept])]
        told.append(("minimum", [p.best_size], [p.best_loss]))
        rows += [
            {"compute": p.compute, "kind": kind, "size": float(a), "loss": float(b)}
            for kind, sizes, losses in told
            for a, b in zip(sizes, losses, strict=True)
        ]
    chart = _profiles_drawn(rows, budgets, figures.label(x_title), figures.label(y_title))
    return figures.drawn(chart, rows, _profiles_read(made, budgets))


def _profile(p: Profile) -> Profile:
    what = f"of the budget {p.compute}"
    compute, size, loss = figures.positive(f"(compute, size, loss) {what}", (p.compute, p.best_size, p.best_loss), (3,))
    sizes = figures.positive(f"sizes {what}", p.sizes, ("n",))
    curve = figures.positive(
        f"sizes of the curve {what}", figures.rising(f"sizes of the curve {what}", p.curve_sizes), ("T",)
    )
    losses = figures.numbers(f"losses {what}", p.losses, sizes.shape)
    heights = figures.numbers(f"losses of the curve {what}", p.curve_losses, curve.shape)
    return Profile(float(compute), sizes, losses, curve, heights, float(size), float(loss))


def _profiles_drawn(rows: list[dict[str, Any]], budgets: np.ndarray, x: str, y: str) -> Any:
    names = dict(zip(budgets.tolist(), figures.labels("budgets", [short(c) for c in budgets]), strict=True))
    kind = lambda which: alt.Chart(  # noqa: E731  # said thrice
        alt.Data(values=[row | {"name": names[row["compute"]]} for row in rows if row["kind"] == which])
    ).encode(
        figures.logarithmic(alt.X, "size:Q", x, [row["size"] for row in rows]),
        alt.Y("loss:Q", title=y, scale=alt.Scale(zero=False)),
    )
    key = alt.Legend(title="compute (FLOPs)", symbolLimit=0, symbolOpacity=1)
    scale = figures.colours(list(names.values()), ordered=True)
    colour = alt.Color("name:N", scale=scale, sort=None, legend=key)
    layers = [
        kind("curve").mark_line(strokeWidth=1.8).encode(colour),
        kind("run").mark_point(filled=True, size=30, opacity=0.8).encode(colour),
        kind("minimum").mark_point(filled=True, size=110, shape="diamond", stroke="#000000", opacity=1).encode(colour),
    ]
    return alt.layer(*layers).properties(width=figures.WIDTH - 60, height=figures.HEIGHT)


def _profiles_read(made: list[Profile], budgets: np.ndarray) -> str:
    best = np.array([p.best_size for p in made])
    first, last = made[0], made[-1]
    if len(made) == 1:
        return (
            f"At {short(budgets[0])} FLOPs the loss is least, {short(first.best_loss)}, at a size of {short(best[0])}."
        )
    power = float(np.polyfit(np.log(budgets), np.log(best), 1)[0])
    edge = sum(p.best_size <= p.sizes.min() or p.best_size >= p.sizes.max() for p in made)
    text = (
        f"From {short(budgets[0])} to {short(budgets[-1])} FLOPs the size of least loss goes from {short(best[0])} to "
        f"{short(best[-1])}, as compute to the power {power:.2f} over {len(made)} budgets, and the least loss from "
        f"{short(first.best_loss)} to {short(last.best_loss)}"
    )
    out = f"; {edge} of {len(made)} minima {'is' if edge == 1 else 'are'} not between the sizes that were trained"
    return text + (out if edge else "") + "."
