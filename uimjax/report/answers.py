"""Failures with the documents they come from: a page to look at, lines for a terminal."""

from pathlib import Path
from typing import Any

from uimjax.report import explained, findings, markup, register, rendering
from uimjax.report.phrases import PHRASES
from uimjax.task import SIGN

KINDS = {
    "copied": ("copied", "the completion stands in it word for word, after the end of the prompt"),
    "said": ("says it", "the completion stands in it word for word, after other words"),
    "words": ("same words", "it shares the question's words: BM25 ranks it among its best"),
    "gradient": ("gradient alone", "no words tell so: the gradient alone names it"),
}
CAUSE = "Documents that this comes from, the strongest first"
PROXY = "Documents of the proxy corpus that are most like a cause; what the model was trained on was not seen"
SHOWN = 1600  # characters of a document, or of a question, that tokens are shown of
EXCERPT = 900  # characters of a document that no tokens are shown of
CHANCE = 0.05  # p above which a document is drawn faint: questions without content find such ones
WIDE = 60  # letters of a name on a terminal


def write_page(answer: dict[str, Any], path: Path) -> Path:
    """One offline HTML page of an answer. Raises OutputError."""
    failures = [_failure(one) for one in answer["failures"]]
    name = markup.visible(answer["name"])
    return rendering.write(
        path, "answers.html.j2", name=name, answer=answer, failures=failures, kinds=KINDS, sign=SIGN,
        heading=PROXY if answer["proxy"] else CAUSE,
        register=explained.table(register.rows(findings.of_answers(answer))), words=PHRASES["en"]["register"],
    )  # fmt: skip


def _failure(one: dict[str, Any]) -> dict[str, Any]:
    line = one["lines"][0]
    sides = [("the model says", "bad", line["bad"])]
    if "good" in line:
        sides.append(("it should say", "good", line["good"]))
    return {
        "number": one["question"] + 1,
        "value": f"{one['value']:.4g}",
        "several": len(one["lines"]),
        "prompt": markup.visible(line["prompt"]),
        "sides": [(title, side, markup.visible(said)) for title, side, said in sides],
        "proponents": [_document(its) for its in one["proponents"]],
        "opponents": [_document(its) for its in one["opponents"][:3]],
        "sources": group_lines(one["sources"]),
        "verbatim": _verbatim(one),
        "by_words": [its | {"id": markup.visible(its["id"]), "source": markup.visible(its["source"])}
                     for its in one.get("by_words", [])],
        "coverage": one.get("coverage"),
    }  # fmt: skip


def group_lines(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Totals of a question by group, as tables show them."""
    most = max((abs(its["mean"]) for its in groups), default=0.0) or 1.0
    return [
        {"name": markup.visible(str(its["group"])), "rows": its["members"], "mean": f"{its['mean']:+.3g}",
         "error": "" if its["error"] is None else f"{its['error']:.2g}", "total": f"{its['total']:+.3g}",
         "css": markup.level(its["mean"] / most)}
        for its in groups
    ]  # fmt: skip


def _window(text: str, tokens: list[list[Any]]) -> tuple[str, list[list[Any]]]:
    """Of a long text what stands around its strongest token, with the tokens there."""
    if len(text) <= SHOWN or not tokens:
        return text, tokens
    strongest = max(tokens, key=lambda its: abs(its[2]))
    first = min(max(strongest[0] - SHOWN // 2, 0), len(text) - SHOWN)
    before = "[...] " if first else ""
    after = " [...]" if first + SHOWN < len(text) else ""
    move = len(before) - first
    kept = [[a + move, b + move, share] for a, b, share in tokens if first <= a and b <= first + SHOWN]
    return before + text[first : first + SHOWN] + after, kept


def _around(side: dict[str, Any]) -> tuple[str, int, list[list[Any]]]:
    text, tokens = _window(side["text"], side["tokens"])
    return text, 1, tokens


def _verbatim(one: dict[str, Any]) -> str:
    """In words: where the completion stands."""
    if "verbatim" not in one:
        return ""
    its = one["verbatim"]
    if not its["run"]:
        return "The completion stands nowhere in the corpus word for word."
    before = len(its["run"]) - len(one["lines"][0]["bad"])
    names = ", ".join(map(markup.visible, its["documents"]))
    times = "once" if its["times"] == 1 else f"{its['times']} times"
    after = f"the completion and the {before} characters before it stand" if before else "the completion stands"
    return f"Word for word, {after} {times} in the corpus: {names}."


def _document(its: dict[str, Any]) -> dict[str, Any]:
    text, tokens = _window(its["text"], its.get("tokens", []))
    if not tokens and len(text) > EXCERPT:
        text = text[:EXCERPT] + " [...]"
    return {
        "id": markup.file_name(its["id"], []),
        "source": markup.visible(its["source"]),
        "score": f"{its['score']:+.4g}",
        "p": None if its["p"] is None else f"{its['p']:.3g}",
        "faint": its["p"] is not None and its["p"] > CHANCE,
        "at": (its["start"], its["stop"]),
        "rows": its["rows"],
        "lines": markup.highlight(text, 1, tokens, []),
        "asked": [{"side": side["side"], "lines": markup.highlight(*_around(side), [])}
                  for side in its.get("asked", [])],
        "kind": its.get("kind"),
        "rank": its.get("bm25_rank"),
        "shared": markup.visible(its.get("shared", "")),
        "copies": [markup.file_name(name, []) for name in its["copies"]],
        "repeated": its.get("repeated", 1),
    }  # fmt: skip


# ---------------------------------------------------------------- a terminal


def show(answer: dict[str, Any], console: Any) -> None:
    """A table a failure: the documents, their scores, and the evidence of words."""
    from rich.table import Table

    for one in answer["failures"]:
        line = one["lines"][0]
        more = f" (and {len(one['lines']) - 1} more)" if len(one["lines"]) > 1 else ""
        said = short(f"{line['prompt']} -> {line['bad']}", 2 * WIDE)
        table = Table(title=f"{one['question'] + 1}. {said}{more}", title_justify="left")
        for name, side in (("document", "left"), ("source", "left"), ("score", "right"), ("p", "right"),
                           ("evidence", "left"), ("BM25 rank", "right"), ("shared run", "right")):  # fmt: skip
            table.add_column(name, justify=side)  # pyright: ignore[reportArgumentType]  # one of two words
        for its in one["proponents"]:
            copies = f" (+{len(its['copies'])} copies)" if its["copies"] else ""
            table.add_row(
                short(its["id"], WIDE) + copies, short(its["source"], 20), f"{its['score']:+.4g}",
                "" if its["p"] is None else f"{its['p']:.3g}", KINDS[its["kind"]][0] if its.get("kind") else "",
                str(its.get("bm25_rank") or ""), f"{len(its.get('shared', ''))}",
                style="dim" if its["p"] is not None and its["p"] > CHANCE else "",
            )  # fmt: skip
        console.print(table, markup=False)
        if told := _verbatim(one):
            console.print(told, markup=False, highlight=False)
        console.print()


def short(text: str, most: int) -> str:
    """One line of at most so many letters, its middle left out."""
    plain = markup.visible(text).replace("\n", "⏎").replace("\t", " ")
    return plain if len(plain) <= most else plain[: most // 2] + "…" + plain[-most // 2 + 1 :]
