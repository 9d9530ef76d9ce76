"""Pictures of representations and curvature: spectra, CKA, and quantities against what they are held to follow."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from uimjax.errors import ShapeError, UsageError
from uimjax.report import figures
from uimjax.report.figures import Figure, short

SHARE = 0.9  # of the sum of squares
DEPTH = 1e-8  # how far below its peak a density is drawn
PRINTED = 12  # names up to which the cells of a matrix hold their numbers
NAMED = 24  # names of a side of a matrix that are written
PANEL = 120  # pixels of one quantity


def spectrum(spectra: Mapping[str, Any], title: str = "singular value") -> Figure:
    """Singular values, of one or several checkpoints by name, against their rank, both axes logarithmic. The sentence
    counts how many hold 90% of the sum of squares. Zeros have no place on such an axis and are counted; of long spectra
    ranks are drawn that are evenly spaced on it.

    Raises:
        ShapeError: nothing. NonFiniteError: NaN. UsageError: negative values, or nothing but zeros.
    """
    series = figures.labels("spectra", spectra)
    rows, told, zeros, thin = [], [], 0, False
    for name, values in zip(series, spectra.values(), strict=True):
        found = np.sort(figures.numbers(f"{title} of {name}", values, ("K",), 0))[::-1]
        if found[0] == 0:
            raise UsageError(f"{title} of {name}: {len(found)} zeros; at least one value above 0 was wanted")
        squares = np.cumsum(np.square(found / found[0]))
        told.append((int(np.argmax(squares >= SHARE * squares[-1])) + 1, len(found), float(found[0])))
        zeros += int((found == 0).sum())
        found = found[found > 0]
        kept = np.unique(np.geomspace(1, len(found), figures.MOST // len(series)).round().astype(int)) - 1
        kept = np.arange(len(found)) if len(found) * len(series) <= figures.MOST else kept
        thin |= len(kept) < len(found)
        rows += [{"name": name, "rank": int(k) + 1, "value": float(found[k])} for k in kept]
    x = figures.logarithmic(alt.X, "rank:Q", "rank", [row["rank"] for row in rows], whole=True)
    y = figures.logarithmic(alt.Y, "value:Q", figures.label(title), [row["value"] for row in rows])
    colour = alt.Color("name:N", scale=figures.colours(series), legend=figures.legend(series))
    line = alt.Chart(alt.Data(values=rows)).mark_line(
        strokeWidth=1.6, point={"size": 14} if len(rows) <= 200 else False
    )
    chart = line.encode(x, y, colour).properties(width=figures.WIDTH, height=figures.HEIGHT)
    reading = _spectrum_read(series, told, figures.label(title))
    reading += f"; {zeros:,} zeros are not drawn" if zeros else ""
    reading += "; of long spectra some ranks are drawn" if thin else ""
    return figures.drawn(chart, rows, reading + ".")


def _spectrum_read(series: list[str], told: list[tuple[int, int, float]], title: str) -> str:
    part = lambda k: f"the first {told[k][0]:,} of {told[k][1]:,}"  # noqa: E731  # said twice
    if len(series) == 1:
        return (
            f'In "{series[0]}" the largest {title} is {short(told[0][2])}, and {part(0)} hold 90% of the sum of squares'
        )
    text = f'90% of the sum of squares is held by {part(0)} in "{series[0]}" and by {part(-1)} in "{series[-1]}"'
    return text + f", where the largest {title} goes from {short(told[0][2])} to {short(told[-1][2])}"


def density(
    grid: Any,
    values: Any,
    errors: Any = None,
    title: str = "eigenvalue of the Hessian",
    band: str = "standard error",
    below: float | None = None,
) -> Figure:
    """Spectral density `[G]` at the points of a rising grid `[G]`, logarithmic from its peak down to 1e-8 of it, with a
    band of `errors` `[G]` to either side. Of a smoothed density the sentence tells too large a share `below` 0, for a
    peak at 0 is spread to both sides: where the share of the eigenvalues themselves is known, that is told.

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: negative, or zero throughout.
    """
    grid = figures.rising("the grid", grid)
    values = figures.numbers("the density", values, (len(grid),), 0)
    errors = None if errors is None else figures.numbers("errors", errors, (len(grid),), 0)
    peak = int(values.argmax())
    if values[peak] == 0:
        raise UsageError("the density is 0 throughout; a grid that reaches its eigenvalues was wanted")
    kept = figures.thinned(len(grid), figures.MOST)
    rows = [
        {"eigenvalue": float(grid[k]), "density": float(values[k])}
        | ({} if errors is None else {"error": float(errors[k])})
        for k in kept
    ]
    floor = float(max(values[peak] * DEPTH, values[values > 0].min()))
    top = float(values[peak] if errors is None else (values + errors).max())
    under = floor / 10  # what is lower is drawn out of sight: a logarithm of 0 would break the line
    places = [
        {"x": float(grid[k]), "y": float(max(values[k], under))}
        | ({} if errors is None else {"a": max(values[k] - errors[k], under), "b": max(values[k] + errors[k], under)})
        for k in kept
    ]
    x = alt.X("x:Q", title=figures.label(title), scale=alt.Scale(nice=False))
    y = lambda field: figures.logarithmic(alt.Y, field, "density", [floor, top])  # noqa: E731  # the same axis twice
    base = alt.Chart(alt.Data(values=places)).encode(x)
    layers = [base.mark_line(clip=True, color=figures.BLUE, strokeWidth=1.6).encode(y("y:Q"))]
    if errors is not None:
        layers.insert(0, base.mark_area(clip=True, color=figures.BLUE, opacity=0.25).encode(y("a:Q"), y2="b:Q"))
    if grid[0] < 0 < grid[-1]:
        zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=figures.GREY, strokeDash=[4, 3])
        layers.insert(0, zero.encode(alt.X("x:Q", title=figures.label(title))))
    chart = alt.layer(*layers).properties(width=figures.WIDTH, height=figures.HEIGHT)
    whole, negative = float(np.trapezoid(values, grid)), grid < 0
    crossing = np.interp(0.0, grid, values)  # the trapezoid that 0 lies in is cut there
    left = float(np.trapezoid([*values[negative], crossing], [*grid[negative], 0.0])) if grid[-1] > 0 else whole
    share = left / whole if whole else 0.0
    of, verb = ("it", "lies") if below is None else ("the eigenvalues", "lie")
    reading = f"From {short(grid[0])} to {short(grid[-1])} the density peaks at {short(grid[peak])}, and "
    reading += f"{share if below is None else below:.1%} of {of} {verb} below 0"
    reading += "" if errors is None else f"; the band is one {figures.label(band)} to either side"
    return figures.drawn(chart, rows, reading + ".")


def matrix(values: Any, names: Sequence[str], columns: Sequence[str] | None = None, title: str = "CKA") -> Figure:
    """A similarity of rows `[K]` and columns `[L]`, by default the same names, as a heat map; up to 12 names its cells
    hold their numbers.

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: more cells than could be seen.
    """
    down = figures.labels("names", names)
    across = down if columns is None else figures.labels("columns", columns, "L")
    values = figures.numbers(title, values, (len(down), len(across)))
    if values.size > figures.MOST:
        raise UsageError(
            f"{title} of {len(down)} x {len(across)}; at most {figures.MOST:,} cells are drawn: name fewer"
        )
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    rows = [
        {"row": r, "column": c, "value": float(values[i, j])} for i, r in enumerate(down) for j, c in enumerate(across)
    ]
    side = min(64.0, 360.0 / max(len(down), len(across)))
    some = lambda shown, angle: alt.Axis(  # noqa: E731  # the two sides differ in two things alone
        title=None, labelLimit=110, values=shown[:: -(-len(shown) // NAMED)], labelAngle=angle, grid=False
    )
    x = alt.X("column:N", sort=None, scale=alt.Scale(domain=across), axis=some(across, -45))
    y = alt.Y("row:N", sort=None, scale=alt.Scale(domain=down), axis=some(down, 0))
    bar = alt.Legend(title=figures.label(title), gradientLength=150)
    fill = alt.Color("value:Q", scale=alt.Scale(domain=[low, high], scheme="viridis"), legend=bar)
    base = alt.Chart(alt.Data(values=rows)).encode(x, y)
    layers = [base.mark_rect().encode(fill)]
    if max(len(down), len(across)) <= PRINTED:
        middle = low + 0.55 * (high - low)
        for ink, side_of in (("black", f"datum.value > {middle}"), ("white", f"datum.value <= {middle}")):
            text = base.transform_filter(side_of).mark_text(fontSize=11, color=ink)
            layers.append(text.encode(alt.Text("value:Q", format=".2f")))
    chart = alt.layer(*layers).properties(width=side * len(across), height=side * len(down))
    return figures.drawn(chart, rows, _matrix_read(values, down, across, columns is None, figures.label(title)))


def _matrix_read(values: np.ndarray, down: list[str], across: list[str], same: bool, title: str) -> str:
    cells = np.ones(values.shape, bool)
    if same:
        cells = ~np.eye(len(down), dtype=bool) if not np.allclose(values, values.T) else np.tri(len(down), k=-1).T > 0
    if not cells.any():
        return f'There is one name, "{down[0]}", of {title} {short(float(values[0, 0]))} with itself.'
    pairs = np.argwhere(cells)
    found = values[cells]
    told = lambda k: f'"{down[pairs[k][0]]}" and "{across[pairs[k][1]]}" ({short(float(found[k]))})'  # noqa: E731  # twice
    if len(found) == 1:
        return f"The only pair, {told(0)}, has its {title} in brackets."
    text = f"Of {len(found):,} pairs {told(int(found.argmax()))} are most alike by {title} and "
    return text + f"{told(int(found.argmin()))} least, the median being {short(float(np.median(found)))}."


def against(
    x: Any, quantities: Mapping[str, tuple[Any, Any, Any]], x_title: str = "noise rate", band: str = ""
) -> Figure:
    """Quantities by name, each (mean, low, high) `[T]`, against a number `[T]`: a panel each, with an axis of its own.

    Raises:
        ShapeError: nothing, or other lengths. NonFiniteError: NaN. UsageError: x that does not rise, low above high.
    """
    x = figures.rising(x_title, x)
    series = figures.labels("quantities", quantities)
    kept = figures.thinned(len(x), figures.MOST // len(series))
    rows: list[dict[str, Any]] = []
    panels, told = [], []
    for k, (name, given) in enumerate(zip(series, quantities.values(), strict=True)):
        if len(given) != 3:
            raise ShapeError(f"{name}: {len(given)} arrays arrived; three, mean, low and high, were wanted")
        mean = figures.numbers(name, given[0], (len(x),))
        ends = figures.interval(name, given[1], given[2], (len(x),)) or (mean, mean)
        mine = [
            {
                "quantity": name,
                "x": float(x[t]),
                "mean": float(mean[t]),
                "low": float(ends[0][t]),
                "high": float(ends[1][t]),
            }
            for t in kept
        ]
        last = k + 1 == len(series)
        panels.append(_panel(mine, name, figures.label(x_title) if last else None, figures.COLOURS[k % 7]))
        told.append(_against_read(name, mean, *ends))
        rows += mine
    chart = alt.vconcat(*panels, spacing=12).resolve_scale(x="shared")
    text = f"As {figures.label(x_title)} goes from {short(x[0])} to {short(x[-1])}, "
    text += ", ".join(told[:-1]) + (" and " if told[1:] else "") + told[-1]
    return figures.drawn(chart, rows, text + (f"; bands: {figures.label(band)}" if band else "") + ".")


def _panel(rows: list[dict[str, Any]], name: str, x_title: str | None, colour: str) -> Any:
    bottom = alt.Axis(title=x_title, tickCount=8, labels=x_title is not None, ticks=x_title is not None)
    x = alt.X("x:Q", axis=bottom, scale=alt.Scale(nice=False))
    side = alt.Axis(title=None, tickCount=4, minExtent=40)  # so that the panels' left edges are in a line
    y = lambda field: alt.Y(field, axis=side, scale=alt.Scale(zero=False))  # noqa: E731  # the same axis twice
    base = alt.Chart(alt.Data(values=rows)).encode(x)
    area = base.mark_area(color=colour, opacity=0.2).encode(y("low:Q"), y2="high:Q")
    line = base.mark_line(color=colour, strokeWidth=2, point={"color": colour} if len(rows) <= 40 else False)
    head = alt.Title(name, anchor="start", fontSize=12, fontWeight="normal", limit=figures.WIDTH, offset=4)
    return alt.layer(area, line.encode(y("mean:Q"))).properties(width=figures.WIDTH, height=PANEL, title=head)


def _against_read(name: str, mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    first, last = float(mean[0]), float(mean[-1])
    way = "rises" if last > first else "falls" if last < first else "stays"
    text = f"{name} {way} from {short(first)} to {short(last)}"
    if (low < high).any() and len(mean) > 1:
        apart = low[-1] > high[0] or high[-1] < low[0]
        text += f" (bands {'apart' if apart else 'overlap'})"
    return text
