"""The page in plain words: what failed, for whom, what in the data caused it, what was done, what is still open.

Every sentence is one of `phrases`, filled from fields that were measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uimjax.errors import UnknownNameError
from uimjax.report import findings, markup, register, rendering
from uimjax.report.findings import Finding
from uimjax.report.phrases import PHRASES
from uimjax.report.verdicts import judged

NOTHING = ("no alarm", "no failure")  # verdicts of tests that found none
RETRAINED = "retrain"  # a fix of the suite that begins anew


def write_page(run: Path, path: Path, lang: str = "en") -> Path:
    """One offline HTML page of a finished run, mitigation, audit, trace, suite or corpus card.

    Raises:
        UnknownNameError: a language that there is not. MissingFileError, CorruptError: as `findings.of_folder`.
    """
    if lang not in PHRASES:
        raise UnknownNameError("language", lang, PHRASES)
    words = PHRASES[lang]
    every = findings.of_folder(run)
    found = [one for one in every if one.alarm]
    rows = register.rows(found, lang)
    return rendering.write(
        path, "explained.html.j2", name=markup.visible(run.name or run.absolute().name), lang=words["lang"],
        page=words["page"], lead=lead(every, words), words=words["register"], register=table(rows),
        parts=[{"title": row["risk"], "note": markup.visible(row["title"]), "sections": sections(one, row, words)}
               for one, row in zip(found, rows, strict=True)],
    )  # fmt: skip


def name_of(lang: str) -> str:
    """Of the page in a language."""
    return "explained.html" if lang == "en" else f"explained.{lang}.html"


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the register as a template shows them."""
    return [
        {key: markup.visible(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    ]


def lead(found: Sequence[Finding], words: Mapping[str, Any]) -> list[str]:
    """How many failures, and what became of them."""
    page = words["page"]
    quiet, found = [one for one in found if not one.alarm], [one for one in found if one.alarm]
    fixed = [judged(one.verdict, one.fixed, one.human, words)[2] for one in found]
    counts = {"fixed": fixed.count(True), "not_fixed": fixed.count(False), "untreated": fixed.count(None)}
    many = page["count"]["one"] if len(found) == 1 else page["count"]["many"].format(n=len(found))
    said = [many, page["tally"].format(**counts)] if found else [page["count"]["none"]]
    nothing = [one for one in quiet if one.verdict.startswith(NOTHING)]
    for key, some in (("quiet", nothing), ("unjudged", [one for one in quiet if one not in nothing])):
        tests = ", ".join(words["titles"].get(one.title, one.title) for one in some)
        said += [page[key].format(tests=tests)] if some else []
    return [markup.visible(line) for line in said]


def sections(one: Finding, row: Mapping[str, Any], words: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(question, sentences) of one failure."""
    page, its = words["page"], register.described(one, words)
    return [
        (page["failed"], [its["event"], *_failed(one, page)]),
        (page["whom"], [_sentence(its["affected"], words)]),
        (page["cause"], _cause(one, page)),
        (page["done"], _done(one, page)),
        *([(page["now"], _now(one, page))] if one.after else []),
        (page["open"], _open(one, row, words)),
    ]


def _failed(one: Finding, page: Mapping[str, Any]) -> list[str]:
    if one.good:
        key = "reference" if one.fixed is None else one.unit
        said = page[key].format(before=one.before, good=one.good)
    else:
        said = page["measured"].format(before=one.before)
    return [markup.visible(said)]


def _done(one: Finding, page: Mapping[str, Any]) -> list[str]:
    if one.fixed is None:
        return [page["untreated"]]
    key = "retrained" if one.fix == RETRAINED else "fix" if one.rows is not None else "tuned"
    return [page[key].format(fix=one.fix)]


def _cause(one: Finding, page: Mapping[str, Any]) -> list[str]:
    if one.corpus:
        return [page["of_corpus"]]
    if one.rows is None:
        return [page["untraced"]]
    if one.of is None:
        said = [page["rows_alone" if one.fixed is not None else "documents"].format(rows=f"{one.rows:,}")]
    else:
        share = f"{one.rows / one.of:.1%}"
        said = [page["rows"].format(rows=f"{one.rows:,}", of=f"{one.of:,}", share=share, method=one.method)]
    return said + ([] if one.causal is None else [page["causal"] if one.causal else page["not_causal"]])


def _now(one: Finding, page: Mapping[str, Any]) -> list[str]:
    said = [page["after"].format(after=one.after, before=one.before)]
    if one.random:
        said.append(page["random" if one.fixed else "random_alike"].format(random=one.random))
    return said + ([] if one.cost is None else [page["cost"][one.cost_in].format(cost=f"{_rise(one):+.1%}")])


def _rise(one: Finding) -> float:
    """Of the accuracy or the loss, whichever the cost is told in."""
    assert one.cost is not None  # told only where there is one
    return -one.cost if one.cost_in == "accuracy" else one.cost


def _open(one: Finding, row: Mapping[str, Any], words: Mapping[str, Any]) -> list[str]:
    """The verdict, what it rests on, the risk that is left, and what the run itself remarks."""
    page, verdict = words["page"], judged(one.verdict, one.fixed, one.human, words)[0]
    said = []
    if one.corpus:
        said.append(page["verdict"]["corpus"])
    elif row["fixed"]:
        said.append(page["verdict"]["fixed"])
    elif row["fixed"] is False:
        head, _, why = verdict.replace("：", ": ").partition(": ")
        said.append(page["verdict"]["none" if head.startswith("no ") else "not"].format(why=why or head))
    said.append(page["automatic"] if one.human is None else _sentence(row["evidence"], words))
    said.append(page["risk"].format(level=row["level"], residual=row["residual"]))
    *remarks, cannot = (
        ("", *one.open) if not one.open else one.open if one.p is not None and one.good else (*one.open, "")
    )
    said += [page["remark"].format(remark=remark) for remark in remarks if remark]
    return [markup.visible(line) for line in said + ([page["limit"].format(remark=cannot)] if cannot else [])]


def _sentence(text: str, words: Mapping[str, Any]) -> str:
    """With its capital and its full stop."""
    return f"{text[:1].upper()}{text[1:]}{'.' if words['lang'] == 'en' else '。'}"
