"""The scorecard of an audit as a page: what was measured, against what, how sure, and what it cannot tell."""

from pathlib import Path
from typing import Any

from uimjax.report import explained, findings, markup, register, rendering
from uimjax.report.phrases import PHRASES

SHOWN = 40  # categories of a card
MARKS = {"alarm": "bad", "no alarm": "good"}


def write_page(document: dict[str, Any], path: Path, on: str = "") -> Path:
    """One offline HTML page of a scorecard; `on`: the command that goes on from here. Raises OutputError."""
    cards = [_card(name, its) for name, its in document["weaknesses"].items()]
    alarms = sum(its["says"] == "alarm" for its in document["weaknesses"].values())
    name = markup.visible(Path(document["model"]).name)
    return rendering.write(
        path, "audits.html.j2", name=name, cards=cards, alarms=alarms, failures=document["failures"], on=on,
        register=explained.table(register.rows(findings.of_audit(document))), words=PHRASES["en"]["register"],
    )  # fmt: skip


def _card(name: str, its: dict[str, Any]) -> dict[str, Any]:
    sign = 1 if its.get("worse") == "low" else -1  # the worst first, as not all are shown
    by = sorted(its.get("by_category", {}).items(), key=lambda pair: sign * pair[1])
    return {
        "name": markup.visible(name), "count": f"{its['items']:,}", "value": f"{its['value']:.3f}",
        "interval": f"{its['low']:.3f} to {its['high']:.3f}", "reference": f"{its['reference']:.3f}",
        "unit": markup.visible(its["unit"]), "says": its["says"],
        "mark": next((css for said, css in MARKS.items() if its["says"].startswith(said)), ""),
        "cannot": its["cannot"], "competent": its["competent"],
        "bar": _bar(its), "also": [(markup.visible(k), f"{v:.3f}") for k, v in its.get("also", {}).items()],
        "by": [(markup.visible(k), f"{v:.3f}") for k, v in by[:SHOWN]], "more": max(0, len(by) - SHOWN),
        "left_out": [markup.visible(str(x)) for x in its["left_out"][:SHOWN]], "cut": its["cut_prompts"],
        "examples": [{k: markup.visible(str(v)) for k, v in one.items()} for one in its.get("examples", [])],
    }  # fmt: skip


def _bar(its: dict[str, Any]) -> dict[str, float]:
    """Places in percent on a line from 0 to 1 (or to the largest of them)."""
    most = max(1.0, its["high"], its["reference"])
    at = lambda x: round(100 * min(max(x, 0.0), most) / most, 2)  # noqa: E731  # a place
    return {"low": at(its["low"]), "wide": max(at(its["high"]) - at(its["low"]), 0.5), "value": at(its["value"]),
            "reference": at(its["reference"])}  # fmt: skip
