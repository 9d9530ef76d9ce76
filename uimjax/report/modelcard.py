"""A model card's section on risks in Hugging Face's form, and the register as JSON, beside a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uimjax.report.datacard import NEEDED, plain
from uimjax.store import write_json
from uimjax.store.base import atomic

CARD, REGISTER = "model-card.md", "register.json"


def write(rows: Sequence[Mapping[str, Any]], name: str, folder: Path) -> None:
    """`model-card.md` and `register.json`. Raises OutputError."""
    with atomic(folder / CARD) as temporary:
        temporary.write_text(text_of(rows, name), encoding="utf-8")
    write_json(folder / REGISTER, list(rows))


def text_of(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """The Markdown: sections of the form that a run can fill, and what it cannot."""
    lines = ["| Risk | Who is affected | Severity | Likelihood | Treatment | Residual risk | Evidence | Owner |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += ["| " + " | ".join(_cell(row[key]) for key in ("risk", "affected", "severity", "likelihood",
              "treatment", "residual", "evidence", "owner")) + " |" for row in rows]  # fmt: skip
    results = [_result(row) for row in rows]
    return "\n".join([
        "---", "tags:", "- uimjax", "---", "", f"# Model Card for {plain(name)}", "",
        "Sections that this run can fill; paste them into the card of the model.", "",
        "## Bias, Risks, and Limitations", "", *lines, "",
        *[f"- **{plain(row['risk'])}.** {plain(row['event'])} Consequence: {plain(row['consequence'])}. Source: "
          f"{plain(row['source'])}." for row in rows], "",
        "### Recommendations", "", "Severity is a default by kind of failure; settle it, and name an owner of each.",
        NEEDED, "", "## Evaluation", "", "### Results", "", *results, "",
        "## Environmental Impact", "", NEEDED, "",
    ])  # fmt: skip


def _cell(value: str) -> str:
    return plain(value) if value else NEEDED


def _result(row: Mapping[str, Any]) -> str:
    after = f", after {plain(row['after'])}" if row["after"] else ""
    return f"- {plain(row['title'])}: {plain(row['measured'])}{after}" + (
        f"; {plain(row['verdict'])}" * bool(row["verdict"])
    )
