"""What raters said, as a page and in lines: the effect, agreement, attention, and disagreement."""

from pathlib import Path
from typing import Any

from uimjax.report import markup, rendering

MARKS = {"better": "good", "worse": "bad"}


def write_page(document: dict[str, Any], path: Path, name: str) -> Path:
    """One offline HTML page of a study's results. Raises OutputError."""
    return rendering.write(
        path, "studied.html.j2", name=markup.visible(name), d=document, lines=lines(document),
        question=markup.visible(document["question"]),
        effects=[_effect(document, arm, its) for arm, its in document["effects"].items()],
        groups=[_group(group, its) for group, its in document["groups"].items()],
        split=[{"id": markup.visible(row["id"]), "answers": [(markup.visible(a), n) for a, n in row["answers"]]}
               for row in document["split"]],
        value=value, agreement=agreement(document),
    )  # fmt: skip


def lines(document: dict[str, Any]) -> list[str]:
    """As the terminal has it."""
    base = document["arms"][0]
    found = []
    for arm, its in document["effects"].items():
        what = f"{arm} against {base}: {value(document, its['value'])}"
        found.append(f"{what} ({value(document, its['low'])} to {value(document, its['high'])}), {its['says']}; "
                     f"{its['raters']} raters, {its['items']} outputs")  # fmt: skip
    found += [f"agreement: {text}" for text in agreement(document)]
    if document["left_out"]:
        found.append(f"left out, as they fail the checks of attention: {', '.join(document['left_out'])}")
    for group, its in document["groups"].items():
        for arm, own in its["effects"].items():
            far = ", unlike the others" if unlike(own) else ""
            found.append(f"{group} ({its['raters']} raters), {arm}: {value(document, own['value'])}{far}")
    return [markup.visible(line) for line in found]


def value(document: dict[str, Any], x: float | None) -> str:
    """A share of preferences, or points; None: there is no bound, or nothing to tell."""
    if x is None:
        return "not told"
    return f"preferred in {x:.0%}" if document["kind"] == "pairwise" else f"{x:+.2f} points"


def agreement(document: dict[str, Any]) -> list[str]:
    """Its figures, with intervals."""
    its = document["agreement"]
    if isinstance(its, str):
        return [its]
    names = {
        "percent": "percent",
        "alpha": "Krippendorff's alpha",
        "gwet": "Gwet's AC2" if its["ordinal"] else "Gwet's AC1",
    }
    short = lambda x: "not told" if x is None else f"{x:.2f}"  # noqa: E731  # where all say the same there is none
    told = ", ".join(
        f"{names[key]} {short(its[key][0])} ({short(its[key][1])} to {short(its[key][2])})" for key in names
    )
    return [f"{told}; {its['items']} items with two ratings and more"]


def _effect(document: dict[str, Any], arm: str, its: dict[str, Any]) -> dict[str, Any]:
    low, high = (0.0, 1.0) if document["kind"] == "pairwise" else (-2.0, 2.0)
    at = lambda x: round(100 * min(max((x - low) / (high - low), 0), 1), 2)  # noqa: E731  # a place in percent
    its = its | {"low": low if its["low"] is None else its["low"], "high": high if its["high"] is None else its["high"]}
    return its | {
        "arm": markup.visible(arm), "mark": MARKS.get(its["says"], ""), "left": at(its["low"]), "at": at(its["value"]),
        "wide": max(at(its["high"]) - at(its["low"]), 0.5), "none_at": at(its["none"]),
    }  # fmt: skip


def unlike(own: dict[str, Any]) -> bool:
    """A group's distance from the others leaves no room for none."""
    return (own.get("from_others_low") or 0) * (own.get("from_others_high") or 0) > 0


def _group(group: str, its: dict[str, Any]) -> dict[str, Any]:
    rows = [own | {"arm": markup.visible(arm), "unlike": unlike(own)} for arm, own in its["effects"].items()]
    return {"name": markup.visible(group), "raters": its["raters"], "rows": rows}
