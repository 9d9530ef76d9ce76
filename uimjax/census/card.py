"""From counts to what is said of a corpus: shares, quantiles, intervals, and what cannot be seen."""

from typing import Any

import numpy as np

from uimjax.census import together
from uimjax.census.counting import STEPS, TABLE, Counted
from uimjax.census.together import Terms

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
CANNOT = {
    "sources": "what a source is, and whether it may be used: a name and a licence are what someone wrote down",
    "lengths": "whether a long document is one text or several in one row",
    "copies": "copies in other words or another language, and passages that two otherwise different documents share",
    "languages": "languages that the identifier does not know, mixtures within a document, dialects; short texts",
    "together": "people who are named by other words than the lists', what is said of them (denied, quoted, ironic), "
    "and whether a difference is the world's or the corpus's; the lists are of English",
    "personal": "names, addresses, birthdays and all that has no pattern; a number that passes may be nobody's",
    "toxicity": "what the labelled file does not hold, or stands behind the first 2,000 characters of a document; "
    "texts of another kind than its own are judged worse, and words "
    "that name a group may be taken for an insult",
    "labels": "wrong labels that the words themselves suggest, and right ones of rare cases look wrong",
    "contamination": "items in other words, translated, or shorter than eight words",
}


def sources(counted: Counted) -> list[dict[str, Any]]:
    """By words, the largest first."""
    total = np.maximum(np.array(list(counted.sources.values())).sum(0), 1)
    rows = [
        {"source": name, "documents": d, "characters": c, "words": w, "share": d / total[0],
         "share_of_words": w / total[2]}
        for name, (d, c, w) in counted.sources.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["words"], row["source"]))


def lengths(counted: Counted) -> dict[str, Any]:
    """Words a document: quantiles (to 4.4%), how much the longest hold, and Gini's coefficient."""
    edges = np.concatenate([[0.0], 2 ** ((np.arange(1, len(counted.lengths)) - 0.5) / STEPS)])
    documents = counted.lengths.sum()
    order = np.cumsum(counted.lengths)
    at = lambda q: float(edges[np.searchsorted(order, q * documents)])  # noqa: E731  # of a quantile
    held = counted.lengths * edges
    total = held.sum() or 1.0
    longer = documents - order  # documents of later bins
    few = np.clip(0.01 * documents - longer, 0, counted.lengths)  # of each bin, those of the longest hundredth
    share, part = np.cumsum(held) / total, counted.lengths / max(documents, 1)
    gini = 1 - float((part * (share + np.concatenate([[0], share[:-1]]))).sum())
    return {
        "quantiles": {str(q): at(q) for q in QUANTILES}, "longest": counted.longest,
        "empty": int(counted.lengths[0]), "longest_hundredth_holds": float((few * edges).sum() / total), "gini": gini,
        "histogram": _octaves(counted.lengths),
    }  # fmt: skip


def _octaves(bins: np.ndarray) -> list[dict[str, int]]:
    """Documents by octaves of length, as a page shows them."""
    found = [{"from": 0, "to": 0, "documents": int(bins[0])}]
    for k in range(1, len(bins), STEPS):
        low = 1 << ((k - 1) // STEPS)
        found.append({"from": low, "to": 2 * low - 1, "documents": int(bins[k : k + STEPS].sum())})
    held = [k for k, row in enumerate(found) if row["documents"]] or [0]
    return found[held[0] : held[-1] + 1]


def vocabulary(counted: Counted) -> dict[str, Any]:
    """Different words (linear counting, Whang et al. 1990: -m ln(empty / m)), how much the commonest cover, how many
    are met once, and the slope of Zipf's law over the ranks 10 to 10,000."""
    times = np.sort(counted.words[counted.words > 0])[::-1]
    places = 1 << TABLE
    empty = places - len(times)
    total = max(int(times.sum()), 1)
    cover = np.cumsum(times) / total
    ranks = np.arange(10, min(len(times), 10_000) + 1)
    slope = float(np.polyfit(np.log(ranks), np.log(times[ranks - 1]), 1)[0]) if len(ranks) > 10 else None
    return {
        "different": round(-places * float(np.log(empty / places))) if empty else None,
        "covered_by": {str(k): float(cover[min(k, len(cover)) - 1]) for k in (100, 1000, 10_000)} if len(times) else {},
        "met_once": float((times == 1).mean()) if len(times) else None, "zipf": slope,
    }  # fmt: skip


def copies(first: np.ndarray, digests: np.ndarray, threshold: float) -> dict[str, Any]:
    """`first` `[N]`: of each document the first one of its group."""
    sizes = np.bincount(first, minlength=len(first))
    large = np.argsort(-sizes, kind="stable")[:20]
    return {
        "threshold": threshold, "documents": len(first), "repeat": int((first != np.arange(len(first))).sum()),
        "exact": int(len(digests) - len(np.unique(digests))), "groups": int((sizes > 1).sum()),
        "largest": [{"row": int(k), "documents": int(sizes[k])} for k in large if sizes[k] > 1],
    }  # fmt: skip


def people(counted: Counted, terms: Terms) -> dict[str, Any]:
    """Documents of each group, and all findings of groups near attributes."""
    of = lambda names, values: [  # noqa: E731  # rows of one kind
        {"axis": a, "name": n, "documents": int(v)} for (a, n), v in zip(names, values, strict=True)
    ]
    return {
        "window": terms.window, "groups": of(terms.groups, counted.near.of_groups),
        "attributes": of(terms.attributes, counted.near.of_attributes),
        "findings": together.findings(counted.near, terms),
    }  # fmt: skip


def personal(counted: Counted, documents: int, words: int) -> list[dict[str, Any]]:
    """Of each kind documents and places, and by source; the most documents first."""
    rows = []
    for kind, by in counted.personal.items():
        held, places = np.array(list(by.values())).sum(0).tolist()
        low, high = together.wilson(held, documents)
        rows.append({
            "kind": kind, "documents": held, "places": places, "share": held / max(documents, 1),
            "low": low, "high": high,
            "a_million_words": 1e6 * places / max(words, 1),
            "by_source": dict(sorted(((s, d) for s, (d, _) in by.items()), key=lambda pair: -pair[1])[:20]),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["documents"])
