"""Rows that a trace found, folded into documents, and documents that nearly repeat one another into one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.corpora.duplicates import shingles
from uimjax.interpret.hits import Trace


class Found(NamedTuple):
    """A document of a question: its best row's score (and p, where there is a null band), its rows that were found,
    best first, and documents that nearly repeat it and score less."""

    document: int
    score: float
    p: float | None
    rows: list[int]
    copies: list[int]


def by_document(trace: Trace, owner: np.ndarray, query: int, side: str) -> list[Found]:
    """Documents of one question, best first: a document counts as its best row. `owner` `[N]`: each row's document;
    `side`: "proponent" or "opponent"."""
    rows, scores = (getattr(trace, name)[query] for name in (f"{side}s", f"{side}_scores"))
    p: Any = [None] * len(rows)
    if trace.null is not None:
        p = trace.null.p(getattr(trace, f"{side}_scores"), 1 if side == "proponent" else -1)[query]
    found: dict[int, Found] = {}
    for row, score, chance in zip(rows, scores, p, strict=True):
        if row < 0:
            continue
        number = int(owner[row])
        if number in found:
            found[number].rows.append(int(row))
        else:
            found[number] = Found(number, float(score), None if chance is None else float(chance), [int(row)], [])
    return list(found.values())


def folded(found: Sequence[Found], texts: Mapping[int, str], least: float, most: int) -> list[Found]:
    """The first `most` of them that repeat none before: a document whose words are alike by `least` or more (`alike`)
    is a copy of the best one it repeats, and stands there. `least` 0: none is. `texts`: by the document's number."""
    kept: list[Found] = []
    held: list[set[Any]] = []
    for its in found if least else found[:most]:
        grams = shingles(texts[its.document]) if least else set()
        same = next((k for k, other in enumerate(held) if least and alike(grams, other) >= least), None)
        if same is not None:
            kept[same].copies.append(its.document)
        elif len(kept) < most:
            kept.append(its._replace(copies=[]))
            held.append(grams)
    return kept


def alike(one: set[Any], two: set[Any]) -> float:
    """Jaccard: the share of all their shingles that both have (Broder 1997)."""
    return len(one & two) / len(one | two)
