"""What words alone say about a document, beside its score: so that copying and influence can be told apart."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from uimjax.answers import overlap
from uimjax.interpret.lexical import PATTERN

CONTEXT = 12  # characters of the prompt that stand before a completion that counts as copied
GRAM = 5  # words of the runs that coverage counts


class Evidence(NamedTuple):
    """`bm25` and its `bm25_rank` among all documents (None: too many to compare); the longest run of characters that
    the question shares with the document, and where it begins there (`shared_at`); the longest end of the question,
    completion and all, that stands there as whole words ("" where it does not); `kind`: "copied" (the completion stands
    there after the end of the prompt), "said" (after other words), "words" (BM25 ranks the document high), "gradient"
    (nothing of that), or "" where words were not compared."""

    bm25: float | None
    bm25_rank: int | None
    shared: str
    shared_at: int
    copied: str
    kind: str


def of_document(text: str, prompt: str, said: str, bm25: tuple[float, int] | None, most: int) -> Evidence:
    """`bm25`: (score, rank from 1); a rank up to `most` counts as sharing words."""
    shared = overlap.longest_shared(prompt + said, text)
    (copied,) = overlap.copies([(0, text)], [(prompt, said)])
    score, rank = bm25 or (None, None)
    run = copied.run if _whole_words(copied.run, text) else ""
    if run and len(run) - len(said) >= min(CONTEXT, len(prompt)):
        kind = "copied"
    elif run:
        kind = "said"
    elif rank is None:
        kind = ""
    else:
        kind = "words" if score and rank <= most else "gradient"
    return Evidence(score, rank, shared.run, shared.other, run, kind)


def _whole_words(run: str, text: str) -> bool:
    """Does it stand there without going on in the middle of a word? (It may begin inside one: the prompt's is cut.)"""
    after = r"(?!\w)" if run and (run[-1].isalnum() or run[-1] == "_") else ""
    return bool(run) and re.search(re.escape(run) + after, text) is not None


def ranks(scores: np.ndarray) -> np.ndarray:
    """`[N, Q]` from 1, the best first; of equal ones the earlier."""
    order = np.argsort(-scores, axis=0, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.arange(1, len(scores) + 1)[:, None], 0)
    return out


def coverage(texts: Iterable[tuple[int, str]], questions: Sequence[str]) -> list[float]:
    """Of each question the share of its distinct runs of `GRAM` words that stand in some text: how much of what is
    asked about was seen at all. A shorter question is one run; one without words is 0.

    >>> coverage([(0, "a b c d e f")], ["b c d e f g", "x y"])
    [0.5, 0.0]
    """
    words = re.compile(PATTERN)
    asked = [_runs(words.findall(question.lower())) for question in questions]
    sizes = {len(run) for runs in asked for run in runs}
    wanted = {run for runs in asked for run in runs}
    found: set[tuple[str, ...]] = set()
    for _, text in texts:
        if len(found) == len(wanted):
            break
        tokens = words.findall(text.lower())
        for size in sizes:
            found.update(wanted.intersection(zip(*(tokens[k:] for k in range(size)), strict=False)))
    return [len(runs & found) / len(runs) if runs else 0.0 for runs in asked]


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    size = min(GRAM, len(words))
    return {tuple(words[k : k + size]) for k in range(len(words) - size + 1)} if size else set()
