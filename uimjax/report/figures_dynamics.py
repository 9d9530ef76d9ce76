"""Pictures of the dynamics of training: the data map, loss trajectories, and how well scores find bad examples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from uimjax.errors import ShapeError
from uimjax.report import figures
from uimjax.report.figures import Figure, short

REGIONS = ("ambiguous", "easy-to-learn", "hard-to-learn")
CHANCE = 0.5


def regions(confidence: np.ndarray, variability: np.ndarray) -> np.ndarray:
    """The region of each example, by thirds of the ranks as Swayamdipta et al. (2020) choose: "ambiguous", the third of
    highest variability; of the others "easy-to-learn" and "hard-to-learn", those in the third of highest and of lowest
    confidence; "" for the rest. Of equal values the first rank lower."""
    count = len(confidence)
    third = max(count // 3, 1)
    certain, spread = np.argsort(confidence, kind="stable"), np.argsort(variability, kind="stable")
    found = np.full(count, "", dtype="<U13")
    found[certain[count - third :]] = REGIONS[1]
    found[certain[:third]] = REGIONS[2]
    found[spread[count - third :]] = REGIONS[0]
    return found


def data_map(
    confidence: Any, variability: Any, correctness: Any, groups: Sequence[str] | None = None, seed: int = 0
) -> Figure:
    """Data map (Swayamdipta et al. 2020): examples `[N]` by the mean of the label's probability over epochs, by its
    standard deviation, and by the share of epochs in which they were right, or by group. Above 5,000 examples a seeded
    sample is drawn; the sentence counts all.

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: out of range.
    """
    confidence = figures.numbers("confidence", confidence, ("N",), 0, 1)
    count = len(confidence)
    variability = figures.numbers("variability", variability, (count,), 0)
    hint = "; divide a count by the number of epochs"
    correctness = figures.numbers("correctness", correctness, (count,), 0, 1, hint)
    region = regions(confidence, variability)
    group, names = (None, []) if groups is None else _grouped(groups, count)
    kept = np.arange(count)
    if count > figures.MOST:
        kept = np.sort(np.random.default_rng(seed).choice(count, figures.MOST, replace=False))
    rows: list[dict[str, Any]] = [
        {
            "example": int(k),
            "confidence": float(confidence[k]),
            "variability": float(variability[k]),
            "correctness": float(correctness[k]),
            "region": str(region[k]) or "between",
        }
        | ({} if group is None else {"group": group[k]})
        for k in kept
    ]
    reading = _map_read(confidence, variability, correctness, region, group)
    return figures.drawn(_map_drawn(rows, confidence, variability, region, names), rows, reading)


def _grouped(groups: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """The label of each example's group, and all labels, largest first; of many, the smallest share the last."""
    if len(groups) != count:
        raise ShapeError(f"{len(groups)} groups arrived; [{count}] was wanted, one an example")
    ordered = [name for name, _ in Counter(groups).most_common()]
    shown = figures.labels("groups", ordered, len(ordered))
    named = len(figures.COLOURS) - 1
    if len(ordered) > len(figures.COLOURS):
        shown = shown[:named] + [f"{len(ordered) - named} other groups"] * (len(ordered) - named)
    of = dict(zip(ordered, shown, strict=True))
    return [of[name] for name in groups], list(dict.fromkeys(shown))


def _map_drawn(rows: list[dict[str, Any]], confidence: Any, variability: Any, region: Any, names: list[str]) -> Any:
    x = alt.X(
        "variability:Q",
        title="variability (standard deviation of the label's probability)",
        axis=alt.Axis(tickCount=6),
        scale=alt.Scale(domain=[0, max(float(variability.max()) * 1.04, 1e-3)], nice=False),
    )
    y = alt.Y(
        "confidence:Q",
        title="confidence (mean probability of the label)",
        axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
        scale=alt.Scale(domain=[-0.09, 1.09], nice=False),  # with room for the names of the regions
    )
    dots = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=22, opacity=0.7)
    if not names:
        scale = alt.Scale(domain=[0, 1], scheme=alt.SchemeParams(**figures.ORDERED))
        bar = alt.Legend(title=["correctness", "(share of epochs)"], gradientLength=150)
        dots = dots.encode(x, y, alt.Color("correctness:Q", scale=scale, legend=bar))
    else:
        shapes = alt.Scale(domain=names, range=list(figures.SHAPES[: len(names)]))
        key = figures.legend(names)
        colour = alt.Color("group:N", scale=figures.colours(names), legend=key)
        dots = dots.encode(x, y, colour, alt.Shape("group:N", scale=shapes, legend=key))
    width, height = figures.WIDTH - (0 if names else 80), figures.HEIGHT
    corners: list[Any] = [(width - 4, 9, "right"), (5, 9, "left"), (5, height - 9, "left")]
    layers = [dots, _borders(confidence, variability, region)]
    for name, (right, down, align) in zip(REGIONS, corners, strict=True):
        if (region == name).any():
            text = alt.Chart(alt.Data(values=[{"name": name}])).mark_text(align=align, fontSize=11, fontStyle="italic")
            layers.append(text.encode(text="name:N", x=alt.value(right), y=alt.value(down)))
    return alt.layer(*layers).properties(width=width, height=height)


def _borders(confidence: Any, variability: Any, region: Any) -> Any:
    """Where the regions begin; what is ambiguous begins at an upright line."""
    right = float(variability[region == REGIONS[0]].min())
    lines = [{"x": right, "x2": right, "y": -0.09, "y2": 1.09}]
    for name, edge in ((REGIONS[1], np.min), (REGIONS[2], np.max)):
        if (region == name).any():
            level = float(edge(confidence[region == name]))
            lines.append({"x": 0.0, "x2": right, "y": level, "y2": level})
    return (
        alt.Chart(alt.Data(values=lines))
        .mark_rule(color="#222222", strokeDash=[4, 3])
        .encode(alt.X("x:Q"), alt.Y("y:Q"), x2="x2:Q", y2="y2:Q")
    )


def _map_read(confidence: Any, variability: Any, correctness: Any, region: Any, group: list[str] | None) -> str:
    count = len(region)
    inside = {name: region == name for name in REGIONS}
    edges = {
        REGIONS[0]: lambda kept: f"variability {short(variability[kept].min())} and above",
        REGIONS[1]: lambda kept: f"confidence {short(confidence[kept].min())} and above",
        REGIONS[2]: lambda kept: f"confidence up to {short(confidence[kept].max())}",
    }
    told = [
        f"{kept.sum():,} {name}" + (f" ({edges[name](kept)})" if kept.any() else "") for name, kept in inside.items()
    ]
    text = (
        f"Of {count:,} examples, by thirds of the ranks of variability and, among the others, of confidence "
        f"(Swayamdipta et al. 2020), {told[0]}, {told[1]} and {told[2]}"
    )
    hard = inside[REGIONS[2]]
    if hard.any():
        text += f", these last right in {correctness[hard].mean():.0%} of epochs"
        if group is not None:
            among = Counter(np.asarray(group, dtype=object)[hard].tolist())
            name, found = max(among.items(), key=lambda item: item[1] / group.count(item[0]))
            text += f'; of the groups, "{name}" has the largest share of hard-to-learn, '
            text += f"{found:,} of {group.count(name):,}"
    drawn = f"; a sample of {figures.MOST:,} is drawn" if count > figures.MOST else ""
    return f"{text}{drawn}."


def trajectories(
    steps: Any,
    curves: Any,
    names: Sequence[str],
    counts: Sequence[int] | None = None,
    low: Any = None,
    high: Any = None,
    band: str = "",
    x_title: str = "step",
    y_title: str = "loss (nats)",
) -> Figure:
    """The mean curve `[K, T]` of each cluster of loss trajectories at steps `[T]`, the number of examples in each, and
    a band from `low` to `high` `[K, T]` of which `band` says what it is, as "10th to 90th percentile".

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: steps that do not rise, low above high.
    """
    steps = figures.rising("steps", steps)
    curves = figures.numbers("curves", curves, ("K", len(steps)))
    series = figures.labels("names", names, len(curves))
    sizes = None if counts is None else figures.numbers("counts", counts, (len(curves),), 0)
    ends = figures.interval("the band", low, high, curves.shape)
    if sizes is not None:
        series = [f"{name} (n = {size:,.0f})" for name, size in zip(series, sizes, strict=True)]
    kept = figures.thinned(len(steps), figures.MOST // len(curves))
    rows = [
        {"cluster": name, "step": float(steps[t]), "mean": float(curves[k, t])}
        | ({} if ends is None else {"low": float(ends[0][k, t]), "high": float(ends[1][k, t])})
        for k, name in enumerate(series)
        for t in kept
    ]
    x = alt.X("step:Q", title=figures.label(x_title), scale=alt.Scale(nice=False))
    y = alt.Y("mean:Q", title=figures.label(y_title), scale=alt.Scale(zero=False))
    colour = alt.Color("cluster:N", scale=figures.colours(series), legend=figures.legend(series))
    base = alt.Chart(alt.Data(values=rows)).encode(x, colour)
    layers = [base.mark_line(strokeWidth=2, point=len(kept) <= 20).encode(y)]
    if ends is not None:
        layers.insert(0, base.mark_area(opacity=0.18).encode(alt.Y("low:Q", title=figures.label(y_title)), y2="high:Q"))
    chart = alt.layer(*layers).properties(width=figures.WIDTH, height=figures.HEIGHT)
    reading = _curves_read(steps, curves, series, sizes)
    reading += f"; the band is the {figures.label(band)}" if ends is not None and band else ""
    reading += f"; {len(kept):,} of {len(steps):,} steps are drawn" if len(kept) < len(steps) else ""
    return figures.drawn(chart, rows, reading + ".")


def _curves_read(steps: np.ndarray, curves: np.ndarray, series: list[str], sizes: np.ndarray | None) -> str:
    told = lambda k: f"{short(curves[k, 0])} to {short(curves[k, -1])}"  # noqa: E731  # said thrice
    last = curves[:, -1]
    text = f"From step {short(steps[0])} to {short(steps[-1])}, "
    if len(series) == 1:
        return text + f'the mean loss of "{series[0]}" goes from {told(0)}'
    worst, best = int(last.argmax()), int(last.argmin())
    text += f'"{series[worst]}" ends highest of {len(series)} clusters, its mean loss going from {told(worst)}, and '
    text += f'"{series[best]}" ends lowest, from {told(best)}'
    if sizes is not None and sizes.sum() > 0:
        top = int(sizes.argmax())
        text += f'; the largest, "{series[top]}", holds {sizes[top] / sizes.sum():.0%} of {sizes.sum():,.0f} examples'
    return text


def detection(
    names: Sequence[str],
    auroc: Any,
    low: Any = None,
    high: Any = None,
    target: str = "the bad examples",
    band: str = "",
) -> Figure:
    """How well each score `[K]` tells `target` from other examples: the area under its ROC curve, with its interval,
    best first. A score of 0.5 is chance.

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: outside 0..1, low above high.
    """
    auroc = figures.numbers("auroc", auroc, ("K",), 0, 1)
    count = len(auroc)
    series = figures.labels("names", names, count)
    ends = figures.interval("the interval", low, high, (count,))
    order = np.argsort(-auroc, kind="stable")
    rows: list[dict[str, Any]] = [
        {"score": series[k], "auroc": float(auroc[k])}
        | ({} if ends is None else {"low": float(ends[0][k]), "high": float(ends[1][k])})
        for k in order
    ]
    lowest = min(0.4, float(auroc.min()), 0.4 if ends is None else float(ends[0].min()))
    title = "area under the ROC curve (0.5: chance)"
    scale = alt.Scale(domain=[lowest, 1.0 if ends is None else max(1.0, float(ends[1].max()))], nice=False)
    y = alt.Y(
        "score:N",
        title=None,
        sort=None,
        scale=alt.Scale(domain=[row["score"] for row in rows]),
        axis=alt.Axis(labelLimit=figures.LEGEND, labelPadding=8, grid=True, ticks=False, domain=False),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(y)
    chance = alt.Chart(alt.Data(values=[{"auroc": CHANCE}])).mark_rule(color=figures.GREY, strokeDash=[4, 3])
    layers = [chance.encode(alt.X("auroc:Q", title=title, scale=scale))]
    if ends is not None:
        layers.append(
            base.mark_rule(color=figures.BLUE, strokeWidth=2).encode(alt.X("low:Q", title=title), x2="high:Q")
        )
    dots = base.mark_point(filled=True, size=70, color=figures.BLUE, opacity=1)
    layers.append(dots.encode(alt.X("auroc:Q", title=title, scale=scale)))
    chart = alt.layer(*layers).properties(width=figures.WIDTH - 80, height=max(26 * count, 60))
    return figures.drawn(chart, rows, _detection_read(rows, figures.label(target), figures.label(band)))


def _detection_read(rows: list[dict[str, Any]], target: str, band: str) -> str:
    best, last = rows[0], rows[-1]
    span = lambda row: f" ({short(row['low'])} to {short(row['high'])})" if "low" in row else ""  # noqa: E731  # twice
    text = f"{best['score']} finds {target} best, with an area of {short(best['auroc'])}{span(best)}"
    if len(rows) > 1:
        text += f", {last['score']} worst of {len(rows)} scores, with {short(last['auroc'])}{span(last)}"
    if "low" in best:
        unsure = sum(row["low"] <= CHANCE <= row["high"] for row in rows)
        named = f" ({band})" if band else ""
        held = f"{unsure} of {len(rows)} intervals include" if unsure else "no interval includes"
        text += f"; {held} 0.5, which is chance{named}"
    else:
        below = sum(row["auroc"] <= CHANCE for row in rows)
        text += f"; {below} of {len(rows)} {'is' if below == 1 else 'are'} not above 0.5, which is chance"
    return text + "."
