"""Lexical baselines: what plain overlap of words, and of runs of words, finds."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from uimjax.errors import DataError, UsageError

PATTERN = r"\w+|[^\w\s]+"


def bm25(documents: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """BM25 of each document for each query, `[N, Q]` (Lucene's variant, k1 1.5, b 0.75), over lower-cased words and
    runs of punctuation: in code the marks count too.

    Raises:
        DataError: no document holds a word.
    """
    import bm25s  # slow to import, and most methods need none of it

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces every index it builds
    corpus: Any = bm25s.tokenize(list(documents), token_pattern=PATTERN, stopwords=[], show_progress=False)
    if not corpus.vocab:
        raise DataError("bm25: none of the documents holds a word to compare")
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    retriever.index(corpus, show_progress=False)
    asked: Any = bm25s.tokenize(
        list(queries), token_pattern=PATTERN, stopwords=[], return_ids=False, show_progress=False
    )
    return np.stack([retriever.get_scores(words) if words else np.zeros(len(documents)) for words in asked], 1)


def ngram(documents: Sequence[str], queries: Sequence[str], n: int = 3) -> np.ndarray:
    """The share of a query's n-grams that a document holds, each weighted by its rarity: `[N, Q]` in [0, 1].

        score_iq = sum_{w in G_q and G_i} idf(w) / sum_{w in G_q} idf(w),   idf(w) = log(1 + (N - df + 1/2) / (df +
        1/2))

    `G`: the distinct runs of n words (tokens as `bm25`'s); `df`: how many documents hold w; the idf is `bm25`'s too.
    With idf = 1 this is the containment of the query in the document (Broder 1997, "On the resemblance and containment
    of documents"), as decontamination counts it, there with n = 13 (Brown et al. 2020, arXiv 2005.14165, appendix C).
    The idf keeps phrases that stand everywhere (a licence header) from counting like those that stand in one place.

    Only the queries' n-grams are looked up, so the work is one pass over the documents whatever the number of queries.

    *Guarantees*: 1 for a document that contains the query; the order of documents, and which other queries are asked,
    change nothing. A query shorter than n is one gram as it stands; one without any word scores 0, as with `bm25`.

    Raises:
        DataError: no document holds a word. UsageError: n is below 1, or a text stands where a
            sequence of them belongs.

    >>> ngram(["the cat sat down", "a dog sat down"], ["The cat sat"], n=2).round(2).tolist()
    [[1.0], [0.0]]
    """
    from scipy import sparse  # scikit-learn's and JAX's own; slow to import, and most methods need none of it

    if n < 1:
        raise UsageError(f"n-grams of n={n} words; at least 1 was wanted (3 for short texts, 13 for copied passages)")
    asked = [_grams(words, min(n, len(words))) for words in _tokens(queries)]
    column = {gram: k for k, gram in enumerate(dict.fromkeys(gram for grams in asked for gram in grams))}
    known = {size: {gram for gram in column if len(gram) == size} for size in sorted({len(gram) for gram in column})}
    starts, held, words_seen = [0], [], False
    for words in _tokens(documents):
        words_seen = words_seen or bool(words)
        for size, grams in known.items():
            held += [column[gram] for gram in grams.intersection(_runs(words, size))]
        starts.append(len(held))
    if not words_seen:
        raise DataError("ngram: none of the documents holds a word to compare")
    shape, ids = (len(documents), len(column)), np.asarray(held, np.int64)
    found = sparse.csr_array((np.ones(len(ids)), ids, starts), shape=shape)
    frequency = np.bincount(ids, minlength=len(column))
    idf = np.log1p((len(documents) - frequency + 0.5) / (frequency + 0.5))
    values = np.zeros((len(documents), len(asked)), np.float32)
    for query, grams in enumerate(asked):
        own = [column[gram] for gram in grams]
        weights = np.zeros(len(column))
        weights[own] = idf[own] / max(idf[own].sum(), 1e-30)
        values[:, query] = found @ weights
    return values


def repeats(documents: Sequence[str], n: int = 8) -> np.ndarray:
    """`[N]`: the most documents that one of a document's runs of n words stands in, its own counted: near and partial
    copies, without a question (tokens as `bm25`'s; runs as in deduplication of substrings, Lee et al. 2022, arXiv
    2107.06499). 0 of a text shorter than n.

    Raises:
        UsageError: n is below 1.
    """
    if n < 1:
        raise UsageError(f"runs of n={n} words; at least 1 was wanted")
    runs = [set(_runs(words, n)) for words in _tokens(documents)]
    many = Counter(run for its in runs for run in its)
    return np.array([max((many[run] for run in its), default=0) for its in runs], np.float64)


def _tokens(texts: Sequence[str]) -> Iterable[list[str]]:
    if isinstance(texts, str):
        raise UsageError(f"one text arrived ({texts[:30]!r}) where a sequence of texts was wanted: put it in a list")
    words = re.compile(PATTERN)
    return (words.findall(text.lower()) for text in texts)


def _runs(words: list[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[k:] for k in range(size)), strict=False)  # ends with the shortest: whole runs only


def _grams(words: list[str], size: int) -> list[tuple[str, ...]]:
    """The distinct runs of `size` words; none of no words."""
    return list(dict.fromkeys(_runs(words, size))) if size else []
