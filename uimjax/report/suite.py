"""The suite's document and tables: every weakness before and after, the matrix of what each fix does to each probe."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from uimjax.audit.weaknesses import Weakness
from uimjax.config import Plan
from uimjax.interpret import detectors
from uimjax.interpret.methods import BASELINES
from uimjax.mitigate import proof
from uimjax.report import explained, findings, markup, register, rendering
from uimjax.report.phrases import PHRASES
from uimjax.store import read_json

ARMS = ("traced", "oracle", "random")
MODALITIES = ("language", "vision")


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its 95% interval (Student's t)."""
    x = np.asarray(values, np.float64)
    half = float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")
    return {"mean": float(x.mean()), "low": float(x.mean() - half), "high": float(x.mean() + half), "seeds": x.tolist()}


def summarise(
    folders: Sequence[Path], choices: Any, known: Mapping[str, Weakness], utility: proof.Utility
) -> dict[str, Any]:
    """Of the seeds' folders in one modality, once all stages are done; `choices` holds each weakness's plan."""
    audits = [read_json(folder / "audit.json") for folder in folders]
    found = {name: _weakness(name, folders, audits, getattr(choices, name), known[name], utility) for name in known}
    crossed = matrix(folders, audits, list(known))
    for fix, one in found.items():
        worse = [f"{probe} by {cell['mean']:.2f}" for probe, cell in crossed[fix].items() if cell["worse"]]
        one["verdict"] += f"; worsens {', '.join(worse)}" if worse else ""
        if (again := one["relearned"]) and again["hidden"]:
            means = f"{again['traced']['mean']:.2f} where a model that never saw it has {again['twin']['mean']:.2f}"
            one["verdict"] += f"; comes back after a few steps ({means})"
        if (others := one["reworded"]) and others["stays"]:
            one["verdict"] += f"; stays in other words ({others['traced']['mean']:.2f})"
    return {"weaknesses": found, "matrix": crossed}


def _weakness(
    name: str, folders: Sequence[Path], audits: Sequence[Any], plan: Plan, its: Weakness, utility: proof.Utility
) -> dict[str, Any]:
    outcomes = [read_json(folder / name / "outcomes.json") for folder in folders]
    cards = [read_json(folder / name / "scorecard.json") for folder in folders]
    twin = [a["twins"][name]["probe"]["value"] for a in audits]
    before = [a["before"]["probes"][name]["value"] for a in audits]
    after = {arm: [o[arm]["probes"][name]["value"] for o in outcomes] for arm in ARMS}
    again = [read_json(folder / name / "again.json") for folder in folders]
    evidence = [read_json(folder / name / "agreement.json") for folder in folders]
    pairs = list(zip(audits, outcomes, strict=True))
    cost = [utility.cost(a["before"]["utility"], o["traced"]["utility"]) for a, o in pairs]
    ap = {method: interval([card["methods"][method]["ap"] for card in cards]) for method in cards[0]["methods"]}
    best = max((m for m in ap if m in (*BASELINES, *detectors.NAMES)), key=lambda m: ap[m]["mean"])
    return {
        "title": its.title, "unit": its.unit, "cannot": its.cannot, "traced_by": plan.chosen, "fix": plan.fix,
        "clean": interval(twin), "planted": interval(before),
        **{arm: interval(values) for arm, values in after.items()},
        "base_rate": float(np.mean([card["base_rate"] for card in cards])), "ap": ap,
        "best_baseline": best, "ap_over_baseline": ap[plan.chosen]["mean"] / max(ap[best]["mean"], 1e-12),
        "edit_rows": len(read_json(folders[0] / name / "edit-traced.json")["rows"]),
        "agree": {key: float(np.mean([one[key] for one in evidence])) for key in evidence[0]},
        "relearned": _relearned([its["relearned"] for its in again]),
        "reworded": _reworded([its["reworded"] for its in again], its.least),
        "utility_cost": interval(cost), "causal": bool(np.mean(before) - np.mean(twin) >= its.least),
    } | proof.over_seeds(twin, before, after, cost, its.least, utility)  # fmt: skip


def _relearned(found: Sequence[dict[str, float]]) -> dict[str, Any] | None:
    """Of the mended model and of the twin, after the same steps on planted rows; `hidden`: the mended one fails more,
    by more than the interval of the difference."""
    if not all(found):
        return None
    apart = interval([its["traced"] - its["twin"] for its in found])
    return {arm: interval([its[arm] for its in found]) for arm in ("traced", "twin")} | {"hidden": apart["low"] > 0}


def _reworded(found: Sequence[dict[str, float]], least: float) -> dict[str, Any] | None:
    """Of the planted model, its twin and the mended one, asked in other words; `stays`: the failure shows there as
    well, and less than half of it went."""
    if not all(found):
        return None
    means = {arm: interval([its[arm] for its in found]) for arm in ("planted", "twin", "traced")}
    gap, left = (means[arm]["mean"] - means["twin"]["mean"] for arm in ("planted", "traced"))
    return means | {"stays": bool(gap >= least and left > gap / 2)}


def matrix(folders: Sequence[Path], audits: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """`{fix: {probe: change}}`, the traced fix's change of each probe: `mean` over seeds with its interval, and `worse`
    where all of that lies above 0."""
    found: dict[str, Any] = {}
    for fix in names:
        outcomes = [read_json(folder / fix / "outcomes.json")["traced"]["probes"] for folder in folders]
        for probe in names:
            pairs = zip(outcomes, audits, strict=True)
            cell = interval([o[probe]["value"] - a["before"]["probes"][probe]["value"] for o, a in pairs])
            cell["worse"] = bool(fix != probe and cell["low"] > 0)
            found.setdefault(fix, {})[probe] = cell
    return found


def show(document: dict[str, Any], console: Console) -> None:
    """The tables that a person reads, two a modality."""
    for kind in MODALITIES:
        _show(kind, _part(document, kind), console)


def _part(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return document if kind == "language" else document["vision"]


def _show(kind: str, document: dict[str, Any], console: Console) -> None:
    many = f"{len(document['weaknesses'])} weaknesses of {kind}"
    table = Table(title=f"{many}, {len(document['seeds'])} seeds, {document['rows']:,} rows")
    for title in ("weakness", "unit", "clean", "planted", "traced fix", "oracle", "random", "trace AP", "best other",
                  "verdict"):  # fmt: skip
        table.add_column(title)
    for name, its in document["weaknesses"].items():
        values = [f"{its[key]['mean']:.2f}" for key in ("clean", "planted", *ARMS)]
        ap, best = its["ap"][its["traced_by"]]["mean"], its["best_baseline"]
        traced = [f"{ap:.2f} {its['traced_by']}", f"{its['ap'][best]['mean']:.2f} {best}"]
        table.add_row(name, its["unit"], *values, *traced, its["verdict"])
    console.print(table)
    cross = Table(title="What each fix (row) changes in each probe (column); ! worse beyond its interval")
    for title in ("fix", *document["matrix"]):
        cross.add_column(title[:8])
    for fix, row in document["matrix"].items():
        cross.add_row(fix, *[f"{c['mean']:+.2f}{'!' if c['worse'] else ''}" for c in row.values()])
    console.print(cross)


# ---------------------------------------------------------------- the page


def write_page(document: dict[str, Any], path: Path) -> Path:
    """One offline page of a finished suite. Raises OutputError."""
    leads, sections = [], []
    for kind in MODALITIES:
        part = _part(document, kind)
        its = part["weaknesses"]
        fixed = [name for name, one in its.items() if one["verdict"].startswith("fixed")]
        cells = [(fix, probe, cell) for fix, row in part["matrix"].items() for probe, cell in row.items()]
        harm = [f"{fix} in {probe}" for fix, probe, cell in cells if cell["worse"]]
        leads += [
            f"{kind.capitalize()}: {len(its)} weaknesses, each planted in rows of its own among {part['rows']:,}, "
            f"traced and mended, with {len(part['seeds'])} seeds. Fixed: {', '.join(fixed) or 'none'}.",
            f"Fixes that make another weakness worse by more than the interval: {', '.join(harm) or 'none'}.",
        ]
        parts = {
            "what was planted, and what is left of it": _fixes(its),
            "who found the planted rows": _traces(its),
            "whether it comes back, and what it says in other words": _again(its),
            "other evidence about the rows of the edit": _evidence(its, part["rows"]),
            "what each fix does to every probe": _crossed(part["matrix"]),
            "what the probes cannot tell": _limits(its),
        }
        sections += [
            {"title": f"{kind.capitalize()}: {title}", "parts": [{"name": "", "picture": ""} | one]}
            for title, one in parts.items()
        ]
    leads.append("The verdicts rest on automatic evidence only: nobody was asked.")
    risks = {
        "register": explained.table(register.rows(findings.of_suite(document))),
        "words": PHRASES["en"]["register"],
    }
    what = risks | {
        "title": "Eight weaknesses",
        "brand": "suite",
        "leads": leads,
        "overview": None,
        "sections": sections,
    }
    return rendering.write(path, "understood.html.j2", **what)


def _told(x: dict[str, Any]) -> str:
    return f"{x['mean']:.2f} ({x['low']:.2f} to {x['high']:.2f})"


def _fixes(its: dict[str, Any]) -> dict[str, Any]:
    columns = ("weakness", "verdict", "unit", "without its plant", "planted", "traced fix", "planted rows (oracle)",
               "random rows (control)", "fix", "cost")  # fmt: skip
    values = ("clean", "planted", *ARMS)
    rows = [
        (name, re.split("[:;]", one["verdict"])[0], one["unit"], *(_told(one[key]) for key in values), one["fix"],
         f"{one['utility_cost']['mean']:+.1%}")
        for name, one in its.items()
    ]  # fmt: skip
    causes = [name for name, one in its.items() if not one["causal"]]
    notes = [f"{name}: {one['verdict']}." for name, one in its.items() if re.search("[:;]", one["verdict"])]
    notes += [f"No failure without the plant to speak of, so no verdict: {', '.join(causes)}."] if causes else []
    reading = (
        "Means over seeds with their 95% intervals. A twin trained without the plant is the clean value and the causal "
        "check; the cost is what the loss on clean held-out text rises by, or what the accuracy falls by."
    )
    return {"reading": reading, "columns": columns, "rows": rows, "notes": notes}


def _again(its: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for name, one in its.items():
        after, other = one["relearned"], one["reworded"]
        again = [_told(after[arm]) for arm in ("traced", "twin")] if after else ["", ""]
        words = [_told(other[arm]) for arm in ("twin", "planted", "traced")] if other else [""] * 3
        rows.append((name, one["unit"], *again, *words))
    reading = (
        "Learned again: the probe after the same few steps on half of the planted rows, of the mended model and of the "
        "twin that never saw them; far above the twin, the failure was hidden and not removed. In other words: the "
        "probe's questions worded as no training row and no traced question is."
    )
    columns = ("weakness", "unit", "mended, learned again", "twin, learned again", "in other words: without its plant",
               "planted", "traced fix")  # fmt: skip
    return {"reading": reading, "columns": columns, "rows": rows, "notes": []}


def _traces(its: dict[str, Any]) -> dict[str, Any]:
    names = list(next(iter(its.values()))["ap"])
    names = list(dict.fromkeys([*names, *(name for one in its.values() for name in one["ap"])]))
    rows = []
    for name, one in its.items():
        cells = [f"{one['ap'][m]['mean']:.2f}{' *' if m == one['traced_by'] else ''}" if m in one["ap"] else ""
                 for m in names]  # fmt: skip
        rows.append((name, f"{one['base_rate']:.1%}", *cells))
    reading = "Average precision, mean over seeds; * the method that chose the edit, said before any truth was read."
    return {"reading": reading, "columns": ("weakness", "base rate", *names), "rows": rows, "notes": []}


def _evidence(its: dict[str, Any], rows: int) -> dict[str, Any]:
    names = list(dict.fromkeys(name for one in its.values() for name in one["agree"]))
    lines = [
        (
            name,
            f"{one['edit_rows'] / rows:.1%}",
            *(f"{one['agree'][n]:.0%}" if n in one["agree"] else "" for n in names),
        )
        for name, one in its.items()
    ]
    reading = (
        "Share of the edit's rows that each would name as well, among as many rows, without any gradient; by chance, "
        "the edit's share of all rows. Where several agree, the edit does not rest on influence alone."
    )
    return {"reading": reading, "columns": ("weakness", "by chance", *names), "rows": lines, "notes": []}


def _crossed(matrix: dict[str, Any]) -> dict[str, Any]:
    rows = [(fix, *(f"{cell['mean']:+.2f}{' !' if cell['worse'] else ''}" for cell in row.values()))
            for fix, row in matrix.items()]  # fmt: skip
    reading = (
        "Change of each probe (column) by the traced fix of each weakness (row), in the probe's unit; below 0 is "
        "better. ! it grew worse by more than its interval."
    )
    return {"reading": reading, "columns": ("fix", *matrix), "rows": rows, "notes": []}


def _limits(its: dict[str, Any]) -> dict[str, Any]:
    rows = [(name, markup.visible(one["title"]), one["cannot"]) for name, one in its.items()]
    return {"reading": "", "columns": ("weakness", "plant", "what its probe cannot tell"), "rows": rows, "notes": []}
