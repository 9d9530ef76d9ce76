"""Mistakes of a classifier with the examples they come from: a page to look at, lines for a terminal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from uimjax.answers.examples import ASKED
from uimjax.corpora.labelled import open_labelled
from uimjax.report import explained, findings, markup, register, rendering
from uimjax.report.answers import group_lines, short
from uimjax.report.phrases import PHRASES
from uimjax.task import SIGN

EXCERPT = 600  # characters of a text
FEW = 8  # numbers of a vector
DOUBTED = 0.5  # p of an example's own label under which it is marked
Look = Callable[[int], str]  # number to a picture's address, "" where there is none


def write_page(answer: dict[str, Any], path: Path) -> Path:
    """One offline HTML page of an answer; pictures are read from the folder it lies in. Raises OutputError."""
    look, asked = _pictures(path.parent, answer)
    failures = [_mistake(one, look, asked) for one in answer["failures"]]
    return rendering.write(
        path, "mistakes.html.j2", name=markup.visible(answer["name"]), answer=answer, failures=failures, sign=SIGN,
        doubted=DOUBTED,
        register=explained.table(register.rows(findings.of_answers(answer))), words=PHRASES["en"]["register"],
    )  # fmt: skip


def _pictures(folder: Path, answer: dict[str, Any]) -> tuple[Look, Look]:
    """(of an example, of a mistake)."""
    if "image" not in answer["inputs"]:
        return (lambda _: ""), (lambda _: "")
    rows, asked = open_labelled(folder / "examples").rows["image"], np.load(folder / ASKED, mmap_mode="r")
    return (lambda k: markup.png(np.asarray(rows[k]).tolist())), (lambda k: markup.png(np.asarray(asked[k]).tolist()))


def _mistake(one: dict[str, Any], look: Look, asked: Look) -> dict[str, Any]:
    line = one["lines"][0]
    return {
        "number": one["question"] + 1,
        "value": f"{one['value']:.4g}",
        "picture": asked(one["question"]),
        "text": markup.visible(_told(line, one["kind"])),
        "label": None if line["label"] is None else markup.visible(line["label"]),
        "predicted": markup.visible(line["predicted"]),
        "p_label": one["p_label"],
        "p_predicted": one["p_predicted"],
        "proponents": [_example(its, look) for its in one["proponents"]],
        "opponents": [_example(its, look) for its in one["opponents"]],
        "classes": group_lines(one["classes"]),
        "sources": group_lines(one["sources"]),
        "by_likeness": [_example(its, look) for its in one["by_likeness"]],
    }  # fmt: skip


def _told(line: dict[str, Any], kind: str) -> str:
    """What was shown to the model, in words."""
    if kind == "text":
        return line["text"]
    if kind == "image":
        return line["image"] if isinstance(line["image"], str) else "a picture"
    some = line["features"]
    return ", ".join(f"{x:.3g}" for x in some[:FEW]) + (" ..." if len(some) > FEW else "")


def _example(its: dict[str, Any], look: Look) -> dict[str, Any]:
    text = its.get("value", "")
    return its | {
        "id": markup.file_name(its["id"], []),
        "source": markup.visible(its["source"]),
        "label": markup.visible(its["label"]),
        "said": markup.visible(its.get("said", "")),
        "text": markup.visible(text[:EXCERPT] + (" [...]" if len(text) > EXCERPT else "")),
        "picture": look(its["row"]),
        "score": f"{its['score']:+.4g}" if "score" in its else "",
        "copies": [markup.file_name(name, []) for name in its.get("copies", [])],
        "alike_rank": its.get("alike_rank"),
        "doubted": its.get("p_label", 1.0) < DOUBTED,
    }  # fmt: skip


def show(answer: dict[str, Any], console: Any) -> None:
    """A table a mistake: the examples, their labels, what the model says of them, and how alike they look to it."""
    from rich.table import Table

    for one in answer["failures"]:
        line = one["lines"][0]
        right = "" if line["label"] is None else f", and it is {line['label']} ({one['p_label']:.0%})"
        said = f"{line['predicted']} ({one['p_predicted']:.0%}){right}"
        title = f"{one['question'] + 1}. {short(_told(line, one['kind']), 60)} -> {short(said, 80)}"
        table = Table(title=title, title_justify="left")
        for name, side in (("example", "left"), ("label", "left"), ("score", "right"), ("the model says", "left"),
                           ("p of its label", "right"), ("rank by likeness", "right")):  # fmt: skip
            table.add_column(name, justify=side)  # pyright: ignore[reportArgumentType]  # one of two words
        for its in one["proponents"]:
            copies = f" (+{len(its['copies'])} the same)" if its["copies"] else ""
            table.add_row(
                short(its["id"], 60) + copies, short(its["label"], 24), f"{its['score']:+.4g}", short(its["said"], 24),
                f"{its['p_label']:.2f}", str(its.get("alike_rank", "")),
            )  # fmt: skip
        console.print(table, markup=False)
        console.print()
