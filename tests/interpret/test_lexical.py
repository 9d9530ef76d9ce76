"""n-gram containment against a loop over every n-gram of every text, its invariances, and what is refused."""

import math
import re

import numpy as np
import pytest

from uimjax.errors import DataError, UsageError
from uimjax.interpret.lexical import PATTERN, ngram, repeats

WORDS = ["the", "The", "cat", "sat", "x", "=", "(", "))", "42", "naïve"]


def texts(rng, count, longest=12):
    return [" ".join(rng.choice(WORDS, rng.integers(0, longest))) for _ in range(count)]


def by_hand(documents, queries, n):
    """The formula, gram by gram; nothing is indexed."""

    def grams(text, size):
        words = re.findall(PATTERN, text.lower())
        size = min(n, len(words)) if size is None else size
        return {tuple(words[k : k + size]) for k in range(len(words) - size + 1)} if size else set()

    out = np.zeros((len(documents), len(queries)))
    for q, query in enumerate(queries):
        asked = grams(query, None)
        size = len(next(iter(asked), ()))
        held = [grams(document, size) for document in documents]
        weight = {}
        for gram in asked:
            df = sum(gram in its for its in held)
            weight[gram] = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for i, its in enumerate(held):
            out[i, q] = sum(weight[gram] for gram in asked & its) / sum(weight.values()) if asked else 0
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_ngram_equals_the_formula(n, rng):
    documents, queries = texts(rng, 60), [*texts(rng, 9, longest=6), "", "cat", "unseen words here"]
    got = ngram(documents, queries, n)
    np.testing.assert_allclose(got, by_hand(documents, queries, n), rtol=1e-6, atol=1e-7)
    assert got.dtype == np.float32
    assert got.min() >= 0
    assert got.max() <= 1


def test_a_document_that_contains_the_query_scores_one_and_a_stranger_zero():
    documents = ["a long way to Tipperary, he said", "it is a long road", "nothing"]
    got = ngram(documents, ["A LONG way to tipperary"], 3)[:, 0]
    assert got.tolist() == [1, 0, 0]


def test_rare_phrases_count_for_more_than_those_that_stand_everywhere():
    header = "all rights reserved by the authors"
    documents = [*[f"{header} file {k}" for k in range(9)], "my secret is swordfish"]
    got = ngram(documents, [f"{header} my secret is swordfish"], 3)[:, 0]
    assert got[9] > 3 * got[0] > 0  # 2 grams of its own against 4 that nine files share


def test_order_of_documents_and_other_queries_change_nothing(rng):
    documents, queries = texts(rng, 40), texts(rng, 6)
    whole, order = ngram(documents, queries, 2), rng.permutation(40)
    np.testing.assert_array_equal(ngram([documents[k] for k in order], queries, 2), whole[order])
    alone = np.concatenate([ngram(documents, [query], 2) for query in queries], 1)
    np.testing.assert_allclose(alone, whole, rtol=1e-6)


def test_a_query_shorter_than_n_is_one_gram_and_one_without_words_scores_nothing():
    documents = ["the cat sat", "cat", "a dog"]
    assert ngram(documents, ["cat", "", "  "], 5).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert ngram(documents, [""], 5).tolist() == [[0], [0], [0]]


def test_refusals():
    with pytest.raises(DataError, match="ngram: none of the documents holds a word"):
        ngram(["", "  "], ["cat"])
    with pytest.raises(UsageError, match="n-grams of n=0 words; at least 1"):
        ngram(["cat"], ["cat"], 0)
    with pytest.raises(UsageError, match=r"one text arrived \('the cat'\) where a sequence"):
        ngram(["the cat"], "the cat")


@pytest.mark.parametrize("n", [1, 2, 8])
def test_repeats_are_counted_over_documents(n, rng):
    documents = [*texts(rng, 30, 24), "the cat sat x = 42 the cat", "= the cat sat x = 42 the cat ("]
    runs = []
    for document in documents:
        words = re.findall(PATTERN, document.lower())
        runs.append([words[k : k + n] for k in range(len(words) - n + 1)])
    wanted = [max([sum(run in other for other in runs) for run in its], default=0) for its in runs]
    assert repeats(documents, n).tolist() == wanted
    if n == 8:
        assert wanted[-2:] == [2, 2]
        assert 0 in wanted
    with pytest.raises(UsageError, match="n=0 words"):
        repeats(documents, 0)
