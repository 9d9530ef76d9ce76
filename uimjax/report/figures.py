"""What a picture is: SVG, the numbers that are drawn, and one sentence that reads them.

Colours are Okabe and Ito's (2008), which colour-blind readers can tell apart, but for yellow, which white paper
swallows. Names that users give are data, never a
field or an expression of a chart, and are shown on one line, control characters visible.
"""

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import altair as alt
import numpy as np
import vl_convert

from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.report import markup
from uimjax.store.base import atomic, make_folder

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
BLUE, RED, GREY = COLOURS[0], COLOURS[1], "#6b747d"
ORDERED = {"name": "viridis", "extent": [0, 0.88]}  # without the yellow as well
WIDTH, HEIGHT = 450, 270  # with axes about 520 x 340
MOST = 5000  # points of a picture
LONGEST = 80  # characters of a name
LEGEND = 170  # pixels of a name in a legend


class Figure(NamedTuple):
    """`svg`: the picture; `rows`: what is drawn, one dict a row; `reading`: one sentence that says what is seen."""

    svg: str
    rows: list[dict[str, Any]]
    reading: str


def write(figure: Figure, folder: Path, name: str) -> list[Path]:
    """`NAME.svg`, `NAME.csv` and `NAME.txt` in a folder; the paths, in this order.

    Raises:
        UsageError: a name that is none of a file. OutputError: the folder cannot be written.
    """
    if not name or name != Path(name).name or name.startswith(".") or not name.isprintable():
        raise UsageError(f"{name!r} arrived as the name of a picture; a file's name without a folder was wanted")
    make_folder(folder)
    paths = [folder / f"{name}.{suffix}" for suffix in ("svg", "csv", "txt")]
    for path, text in ((paths[0], figure.svg), (paths[2], figure.reading + "\n")):
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic(paths[1]) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in figure.rows for key in row)))
        table.writeheader()
        table.writerows({key: _cell(value) for key, value in row.items()} for row in figure.rows)
    return paths


def _cell(value: Any) -> Any:
    """A spreadsheet would run text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def drawn(chart: Any, rows: list[dict[str, Any]], reading: str) -> Figure:
    """The sentence is the picture's name for screen readers too, in place of one for each mark."""
    chart = chart.configure(
        aria=False,
        font="sans-serif",
        background="white",
        padding=8,
        view={"stroke": None},
        axis={
            "labelFontSize": 11,
            "labelFlush": False,  # a first label moved inwards touches the second
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "gridColor": "#e6e8ea",
        },
        legend={"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": LEGEND},
    )
    svg = _renamed(vl_convert.vegalite_to_svg(chart.to_json()))
    return Figure(svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(reading)} ', 1), rows, reading)


def _renamed(svg: str) -> str:
    """Gradients and clips are numbered through a process: equal pictures would differ, and of two processes' pictures
    in one page the second would take the first's. A picture's own digest names them instead."""
    found = list(dict.fromkeys(re.findall(r' id="((?:clip|gradient_)\d+)"', svg)))
    plain = svg
    for name in found:
        plain = plain.replace(f'"{name}"', '""').replace(f'"url(#{name})"', '""')
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    for k, name in enumerate(found):
        new = f"u{digest}-{k}"
        svg = svg.replace(f'id="{name}"', f'id="{new}"').replace(f'"url(#{name})"', f'"url(#{new})"')
    return svg


# ---------------------------------------------------------------- what arrives


def numbers(
    what: str, values: Any, shape: tuple[str | int, ...], least: float = -np.inf, most: float = np.inf, hint: str = ""
) -> np.ndarray:
    """As float64, of that shape (a letter: any length but none), finite, from `least` to `most`.

    Raises:
        ShapeError: another shape, or no numbers. NonFiniteError: NaN or infinity. UsageError: values out of range.
    """
    wanted = "[" + ", ".join(map(str, shape)) + "]"
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{what}: {error}; an array of numbers {wanted} was wanted") from error
    same = len(found.shape) == len(shape)
    if not same or any(isinstance(s, int) and s != n for s, n in zip(shape, found.shape, strict=True)):
        raise ShapeError(f"{what} of shape {list(found.shape)} arrived; {wanted} was wanted")
    if not found.size:
        raise ShapeError(f"{what} of shape {list(found.shape)} arrived, which is empty; {wanted} was wanted")
    if not np.isfinite(found).all():
        place = tuple(int(k) for k in np.argwhere(~np.isfinite(found))[0])
        raise NonFiniteError(
            f"{what} has {int((~np.isfinite(found)).sum())} of {found.size} values NaN or infinite, the first at "
            f"{list(place)}; leave these out, or look where they come from"
        )
    if found.min() < least or found.max() > most:
        between = f"from {least:g} on" if most == np.inf else f"from {least:g} to {most:g}"
        raise UsageError(f"{what} goes from {found.min():g} to {found.max():g}; values {between} were wanted{hint}")
    return found


def positive(what: str, values: Any, shape: tuple[str | int, ...]) -> np.ndarray:
    """As `numbers`, for a logarithmic axis."""
    found = numbers(what, values, shape)
    if found.min() <= 0:
        raise UsageError(f"{what} goes down to {found.min():g}; values above 0 were wanted, the axis is logarithmic")
    return found


def rising(what: str, values: Any) -> np.ndarray:
    found = numbers(what, values, ("T",))
    if (np.diff(found) <= 0).any():
        k = int(np.argmax(np.diff(found) <= 0))
        raise UsageError(
            f"{what} does not rise: {found[k]:g} is followed by {found[k + 1]:g}; sort it, each value once"
        )
    return found


def interval(what: str, low: Any, high: Any, shape: tuple[str | int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Both ends of an interval, or None where neither is given."""
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise ShapeError(f"{what} has one end of an interval; low and high, or neither, were wanted")
    ends = numbers(f"{what}, low,", low, shape), numbers(f"{what}, high,", high, shape)
    if (ends[0] > ends[1]).any():
        raise UsageError(f"{what}: low lies above high in {int((ends[0] > ends[1]).sum())} places; swap them?")
    return ends


def label(text: Any) -> str:
    """A name as it is shown: on one line, control characters visible, its middle left out where it is long."""
    shown = markup.visible(str(text)).replace("\n", "[U+000A]").replace("\t", "[U+0009]")
    kept = (LONGEST - 5) // 2
    return shown if len(shown) <= LONGEST else f"{shown[:kept]}[...]{shown[-kept:]}"


def labels(what: str, names: Any, count: int | str = "K") -> list[str]:
    """Of names that are told apart, each shown otherwise than the others.

    Raises:
        ShapeError: another number of names than `count`, or none.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names or (isinstance(count, int) and len(names) != count):
        raise ShapeError(f"{len(names)} {what} arrived; [{count}] was wanted")
    shown: dict[str, None] = {}
    for name in map(label, names):
        times, name = 1, name or "(no name)"
        while (free := name if times == 1 else f"{name} ({times})") in shown:
            times += 1
        shown[free] = None
    return list(shown)


# ---------------------------------------------------------------- what is shown


def short(value: float) -> str:
    """Three digits, for a sentence: 0.123, 1,230, 1.23e21."""
    size = abs(value)
    if size != 0 and not 1e-3 <= size < 999_999.5:
        mantissa, power = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:,.0f}" if size >= 99.95 else f"{value:.3g}"


def thinned(count: int, most: int) -> np.ndarray:
    """At most so many of 0..count-1, the first and the last among them, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, max(most, 2))).round().astype(int))


def colours(names: Sequence[str], ordered: bool = False) -> Any:
    """Of series by name; of many, or of ordered ones, along a scheme from dark to light."""
    if ordered or len(names) > len(COLOURS):
        return alt.Scale(domain=list(names), scheme=alt.SchemeParams(**ORDERED))
    return alt.Scale(domain=list(names), range=list(COLOURS[: len(names)]))


def legend(names: Sequence[str], title: str | None = None) -> Any:
    """Above the picture in two columns, where long names have room; of one series without a name, none."""
    if not any(names):
        return None
    return alt.Legend(title=title, orient="top", columns=2, symbolLimit=0, symbolOpacity=1)


def logarithmic(kind: Any, field: str, title: str, values: Any, whole: bool = False) -> Any:
    """An axis (`alt.X` or `alt.Y`) for all these positive values, with ticks at round numbers, or at whole ones."""
    low, high = np.min(values), np.max(values)
    edge = (high / low) ** 0.04 if high > low else 1.25
    ends = [float(low / edge), float(high * edge)]
    number = (
        "datum.value >= 1e6 || datum.value < 1e-3 ? replace(format(datum.value, '.3~e'), '+', '')"
        " : format(datum.value, ',.5~r')"
    )
    ticks = [tick for tick in _ticks(*ends) if not whole or tick == round(tick)]
    axis = alt.Axis(values=ticks, labelExpr=number)
    return kind(field, title=title, axis=axis, scale=alt.Scale(type="log", domain=ends, nice=False))


def _ticks(low: float, high: float) -> list[float]:
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    if high / low < 10:
        rough = (high - low) / 5
        unit = 10.0 ** np.floor(np.log10(rough))
        step = unit * next(f for f in (1, 2, 5, 10) if f * unit >= rough)
        found = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        return [float(f"{tick:.12g}") for tick in found]
    each = (1, 2, 5) if high / low < 1e3 else (1,)
    found = [float(f"{m}e{power}") for power in range(first, last + 1) for m in each]
    found = [tick for tick in found if low <= tick <= high]
    return found[:: -(-len(found) // 9)]
