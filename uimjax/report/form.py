"""A sheet as a table for a spreadsheet, and as one page that works without a network."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from uimjax.report import markup, rendering
from uimjax.store.base import atomic
from uimjax.study.sheets import TIE, Design, Row

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute
COLUMNS = ("rater", "group", "number", "token", "prompt")


def write_table(path: Path, rater: str, rows: Sequence[Row], design: Design) -> None:
    """CSV: a line a row, `answer` and `comment` to be filled. Raises OutputError."""
    shown = ("A", "B") if design.kind == "pairwise" else ("output",)
    out = io.StringIO()
    made = csv.writer(out)
    made.writerow([*COLUMNS, *shown, "question", "choices", "answer", "comment"])
    choices = " / ".join("neither" if answer == TIE else answer for answer in design.answers())
    for number, row in enumerate(rows, start=1):
        prompt = row.prompt or ("[a picture, see the page]" if row.image else "")
        cells = [rater, "", str(number), row.token, prompt, *row.shown, design.asked(), choices, "", ""]
        made.writerow([harmless(markup.visible(cell)) for cell in cells])
    with atomic(path) as temporary:
        temporary.write_text(
            out.getvalue(), encoding="utf-8-sig", newline=""
        )  # the mark tells spreadsheets the encoding


def harmless(cell: str) -> str:
    """No formula.

    >>> harmless("=1+1"), harmless("1+1")
    ("'=1+1", '1+1')
    """
    return f"'{cell}" if cell.startswith(FORMULAS) else cell


def write_form(path: Path, study: str, rater: str, rows: Sequence[Row], design: Design, consent: str) -> Path:
    """One offline HTML page; its script holds no text of the outputs. Raises OutputError."""
    shown = [
        row._replace(prompt=markup.visible(row.prompt), shown=tuple(map(markup.visible, row.shown))) for row in rows
    ]
    return rendering.write(
        path, "form.html.j2", "form.js", study=study, rater=rater, rows=shown, question=markup.visible(design.asked()),
        answers=design.answers(), groups=[markup.visible(g) for g in design.groups], consent=markup.visible(consent),
    )  # fmt: skip
