"""Which items of evaluation sets stand in the corpus: by runs of 13 words (Brown et al. 2020, appendix C), of items
of 8 to 12 words by runs of 8 (as PaLM has it). Shorter ones are not judged.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.corpora.wording import Words, runs_of, words_of

LENGTHS = (13, 8)
FILTER = 20  # bits of the table that most runs do not pass
OVERLAP = 0.7  # of an item's runs, from which on it counts as contaminated (PaLM's share)
NAMED = 5  # documents that are named for each item


class Asked(NamedTuple):
    """Runs of all items: `hashes` in order and `item` of each `[M]` by their length; `file` and `runs` `[I]` of each
    item; `ids` of them. Items that are too short have 0 runs."""

    hashes: tuple[np.ndarray, ...]
    item: tuple[np.ndarray, ...]
    file: np.ndarray
    runs: np.ndarray
    ids: list[str]


class Seen(NamedTuple):
    """Which runs `[M]` of each length were met, and in which documents the first items were: item -> names."""

    runs: tuple[np.ndarray, ...]
    where: dict[int, list[str]]


def asked(texts: Sequence[str], ids: Sequence[str], file: Sequence[int]) -> Asked:
    """Of the items of evaluation sets."""
    words = words_of(texts)
    many = np.diff(words.starts)
    hashes, owners, runs = [], [], np.zeros(len(texts), np.int64)
    for k, length in enumerate(LENGTHS):
        some = (many >= length) & ((many < LENGTHS[k - 1]) if k else True)
        all_ = runs_of(words, length)
        owner = np.repeat(np.arange(len(texts)), np.diff(all_.starts))
        mine = some[owner]
        pairs = np.unique(np.stack([all_.hashes[mine], owner[mine].astype(np.uint64)]), axis=1)
        hashes.append(pairs[0])
        owners.append(pairs[1].astype(np.int64))
        runs += np.bincount(owners[-1], minlength=len(texts))
    return Asked(tuple(hashes), tuple(owners), np.asarray(file), runs, list(ids))


def nothing(questions: Asked) -> Seen:
    """Before any document."""
    return Seen(tuple(np.zeros(len(h), bool) for h in questions.hashes), {})


def look(words: Words, ids: Sequence[str], questions: Asked) -> Seen:
    """In documents of these words."""
    seen = nothing(questions)
    for hashes, item, met, length in zip(questions.hashes, questions.item, seen.runs, LENGTHS, strict=True):
        if not len(hashes):
            continue
        runs = runs_of(words, length)
        passes = np.zeros(1 << FILTER, bool)
        passes[hashes & np.uint64((1 << FILTER) - 1)] = True
        some = np.flatnonzero(passes[runs.hashes & np.uint64((1 << FILTER) - 1)])
        first = np.searchsorted(hashes, runs.hashes[some])
        last = np.searchsorted(hashes, runs.hashes[some], side="right")
        document = np.searchsorted(runs.starts, some, side="right") - 1
        for a, b, d in zip(first[last > first], last[last > first], document[last > first], strict=True):
            met[a:b] = True  # several items may share a run
            for one in np.unique(item[a:b]).tolist():
                names = seen.where.setdefault(one, [])
                name = ids[int(d)]
                if len(names) < NAMED and name not in names:
                    names.append(name)
    return seen


def joined(one: Seen, two: Seen) -> Seen:
    """Of documents, then of later ones."""
    where = {k: list(v) for k, v in one.where.items()}
    for item, names in two.where.items():
        held = where.setdefault(item, [])
        held += [name for name in names if name not in held][: NAMED - len(held)]
    return Seen(tuple(a | b for a, b in zip(one.runs, two.runs, strict=True)), where)


def shares(seen: Seen, questions: Asked) -> np.ndarray:
    """Of each item the share of its runs that were met `[I]`; NaN where it is too short."""
    met = np.zeros(len(questions.runs))
    for item, runs in zip(questions.item, seen.runs, strict=True):
        met += np.bincount(item, weights=runs, minlength=len(met))
    return np.where(questions.runs > 0, met / np.maximum(questions.runs, 1), np.nan)


def told(seen: Seen, questions: Asked, files: Sequence[str]) -> list[dict[str, Any]]:
    """Of each evaluation file: how many items are contaminated, touched, clean or too short."""
    share = shares(seen, questions)
    rows = []
    for k, name in enumerate(files):
        its = share[questions.file == k]
        rows.append({
            "file": name, "items": len(its), "contaminated": int((its >= OVERLAP).sum()),
            "touched": int(((its > 0) & (its < OVERLAP)).sum()), "too_short": int(np.isnan(its).sum()),
        })  # fmt: skip
    return rows
