"""The page of a study of label noise: each question with its picture, one sentence, and the numbers."""

import base64
from pathlib import Path
from typing import Any

from uimjax.report import markup, rendering


def write_page(found: dict[str, Any], folder: Path) -> Path:
    """`study.html` from what the study found and the pictures that lie in the folder. Raises OutputError."""
    name = markup.visible(Path(found["data"]).stem)
    share = found["wrong"] / found["examples"]
    lead = (
        f"{found['wrong']:,} of {found['examples']:,} labels are wrong ({share:.1%}). {found['seeds']} seeds of "
        f"training; {found['runs']} further runs for the law."
    )
    sections = [
        _section(found, folder, "detection", "Which scores find the wrong labels", ("score", "AUROC", "95%",
                 "average precision", "95%"), [_score(row) for row in found["scores"]]),
        _section(found, folder, "data_map", "The data map of one seed"),
        _section(found, folder, "representation", "What noise does to the representation",
                 ("noise", "SVE", "95%", "LSVR", "95%"), _spectra(found["representation"])),
        _section(found, folder, "law", "What noise costs in data", ("parameter", "value", "95%"), _law(found["law"]),
                 (_worth(found["law"]), *found["law"]["warnings"])),
    ]  # fmt: skip
    return rendering.write(
        folder / "study.html", "understood.html.j2", title=f"Label noise in {name}", lead=lead, sections=sections
    )


def _section(found: Any, folder: Path, name: str, title: str, columns: Any = (), rows: Any = (), notes: Any = ()):
    svg = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
    picture = f"data:image/svg+xml;base64,{svg}"
    return {"title": title, "reading": found["readings"][name], "picture": picture, "columns": columns, "rows": rows,
            "notes": notes}  # fmt: skip


def _score(row: dict[str, Any]) -> tuple[str, ...]:
    (a, low, high), (p, under, over) = row["auroc"], row["average_precision"]
    return row["score"], f"{a:.4f}", f"{low:.4f} to {high:.4f}", f"{p:.4f}", f"{under:.4f} to {over:.4f}"


def _spectra(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for k, rate in enumerate(found["rates"]):
        cells = [f"{rate:g}"]
        for name in ("SVE", "LSVR"):
            mean, low, high = (found[name][key][k] for key in ("mean", "low", "high"))
            cells += [f"{mean:.4f}", f"{low:.4f} to {high:.4f}"]
        rows.append(tuple(cells))
    return rows


def _law(found: dict[str, Any]) -> list[tuple[str, ...]]:
    ends = found["intervals"]
    return [(name, f"{value:.5g}", f"{ends[name][0]:.5g} to {ends[name][1]:.5g}")
            for name, value in found["parameters"].items()]  # fmt: skip


def _worth(found: dict[str, Any]) -> str:
    import math

    low, high = found["intervals"]["kappa"]
    kept = [math.exp(-0.1 * k) for k in (found["parameters"]["kappa"], high, low)]
    return (
        f"By this law ({found['equation']}), data with 10% noise is worth {kept[0]:.1%} of as much clean data "
        f"(95%: {kept[1]:.1%} to {kept[2]:.1%})."
    )
