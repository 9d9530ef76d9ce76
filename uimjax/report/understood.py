"""The page of a study of label noise, or of several side by side: each question with its picture, one sentence, and the
numbers."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uimjax.report import markup, rendering

PAGE = "study.html"
NOTHING = 1e-9
Study = tuple[str, dict[str, Any], Path]  # its name, what it found, and the folder with its pictures


def write_page(found: dict[str, Any], folder: Path) -> Path:
    """`study.html` from what a study found and the pictures that lie in the folder. Raises OutputError."""
    name = markup.visible(Path(found["data"]).stem)
    return _write(folder, f"Label noise in {name}", [_lead(found)], None, [("", found, folder)])


def write_pages(studies: Sequence[Study], folder: Path) -> Path:
    """One `study.html` of several, which have their own in their folders. Raises OutputError."""
    shown = [(markup.visible(name), found, where) for name, found, where in studies]
    names = [name for name, _, _ in shown]
    title = f"Label noise in {', '.join(names[:-1])} and {names[-1]}"
    columns = ("data", "wrong labels", "best score", "AUROC", "95%", "average precision", "95%", "kappa", "95%")
    overview = {"columns": columns, "rows": [_overview(name, found) for name, found, _ in shown]}
    return _write(folder, title, [f"{name}: {_lead(found)}" for name, found, _ in shown], overview, shown)


def _write(folder: Path, title: str, leads: Sequence[str], overview: Any, studies: Sequence[Study]) -> Path:
    sections = [
        {"title": heading, "parts": [{"name": name} | part(found, where) for name, found, where in studies]}
        for heading, part in QUESTIONS.items()
    ]
    return rendering.write(
        folder / PAGE, "understood.html.j2", title=title, leads=leads, overview=overview, sections=sections
    )


def _lead(found: dict[str, Any]) -> str:
    share = found["wrong"] / found["examples"]
    return (
        f"{found['wrong']:,} of {found['examples']:,} labels are wrong ({share:.1%}). {found['seeds']} seeds of "
        f"training; {found['runs']} further runs for the law."
    )


def _overview(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    share, kappa = f"{found['wrong'] / found['examples']:.1%}", _law(found["law"])[-1]
    assert kappa[0] == "kappa", "the table names that parameter"
    return name, share, *_score(found["scores"][0]), *kappa[1:]


def _detection(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    columns = ("score", "AUROC", "95%", "average precision", "95%")
    return _part(found, folder, "detection", columns, [_score(row) for row in found["scores"]])


def _data_map(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    return _part(found, folder, "data_map")


def _representation(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    columns, told = ("noise", "SVE", "95%", "LSVR", "95%"), found["representation"]
    change = {name: told[name]["change"] for name in ("SVE", "LSVR") if "change" in told[name]}
    said = [f"{name} {mean:+.4f} (95%: {low:+.4f} to {high:+.4f})" for name, (mean, low, high) in change.items()]
    where = f"from noise {told['rates'][0]:g} to {told['rates'][-1]:g}"
    notes = [f"Seed by seed, {where}: {', '.join(said)}."] if said else []
    return _part(found, folder, "representation", columns, _spectra(told), notes)


def _costs(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    told = found["law"]
    return _part(found, folder, "law", ("parameter", "value", "95%"), _law(told), (_worth(told), *told["warnings"]))


QUESTIONS = {
    "Which scores find the wrong labels": _detection,
    "The data map of one seed": _data_map,
    "What noise does to the representation": _representation,
    "What noise costs in data": _costs,
}


def _part(found: Any, folder: Path, name: str, columns: Any = (), rows: Any = (), notes: Any = ()) -> dict[str, Any]:
    svg = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
    picture = f"data:image/svg+xml;base64,{svg}"
    return {"reading": found["readings"][name], "picture": picture, "columns": columns, "rows": rows, "notes": notes}


def _score(row: dict[str, Any]) -> tuple[str, ...]:
    (a, low, high), (p, under, over) = row["auroc"], row["average_precision"]
    return row["score"], f"{a:.4f}", f"{low:.4f} to {high:.4f}", f"{p:.4f}", f"{under:.4f} to {over:.4f}"


def _spectra(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of labels flipped at each rate, then of the given ones."""
    rows = [_spectrum(f"{rate:g}", found, k) for k, rate in enumerate(found["rates"])]
    given = found["given"]
    return [*rows, _spectrum(f"as given ({given['rate']:.3g})", given, 0)]


def _spectrum(label: str, found: dict[str, Any], k: int) -> tuple[str, ...]:
    cells = [label]
    for name in ("SVE", "LSVR"):
        mean, low, high = (found[name][key][k] for key in ("mean", "low", "high"))
        cells += [f"{mean:.4f}", f"{low:.4f} to {high:.4f}"]
    return tuple(cells)


def _law(found: dict[str, Any]) -> list[tuple[str, ...]]:
    ends = found["intervals"]
    return [(name, _size(value), f"{_size(ends[name][0])} to {_size(ends[name][1])}")
            for name, value in found["parameters"].items()]  # fmt: skip


def _size(value: float) -> str:
    """What a fit drove to 0 has no digits that mean anything."""
    return "0" if abs(value) < NOTHING else f"{value:.5g}"


def _worth(found: dict[str, Any]) -> str:
    low, high = found["intervals"]["kappa"]
    kept = [math.exp(-0.1 * k) for k in (found["parameters"]["kappa"], high, low)]
    return (
        f"By this law ({found['equation']}), data with 10% noise is worth {kept[0]:.1%} of as much clean data "
        f"(95%: {kept[1]:.1%} to {kept[2]:.1%})."
    )
