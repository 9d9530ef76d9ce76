"""Lexical baselines: what plain word overlap finds."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from uimjax.errors import DataError

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
