"""Rows into documents, copies into one."""

import numpy as np

from uimjax.answers.folding import Found, alike, by_document, folded
from uimjax.corpora.duplicates import shingles
from uimjax.interpret.hits import Trace
from uimjax.interpret.null import Null


def test_a_document_counts_as_its_best_row():
    rows = np.array([[4, 1, 5, 0, -1]])
    scores = np.array([[9.0, 7.0, 5.0, 2.0, 0.0]])
    null = Null(np.arange(10.0), -np.arange(10.0)[::-1], np.ones(1))
    trace = Trace(rows, scores, rows, -scores, "m", "u", null=null)
    owner = np.array([0, 0, 0, 0, 1, 1])
    found = by_document(trace, owner, 0, "proponent")
    assert [its[:2] for its in found] == [(1, 9.0), (0, 7.0)]
    assert [its.rows for its in found] == [[4, 5], [1, 0]]
    np.testing.assert_allclose([its.p for its in found], [2 / 11, 4 / 11])
    assert [its[:2] for its in by_document(trace, owner, 0, "opponent")] == [(1, -9.0), (0, -7.0)]
    assert by_document(trace._replace(null=None), owner, 0, "proponent")[0].p is None


def test_copies_stand_with_the_best_of_them():
    base = "the quick brown fox jumps over the lazy dog and runs away from the angry cat today"
    texts = {0: base, 1: "nothing alike at all in this one here", 2: base.upper() + "!", 3: base + " again"}
    found = [Found(k, 10.0 - k, None, [k], []) for k in range(4)]
    kept = folded(found, texts, 0.8, 5)
    assert [(its.document, its.copies) for its in kept] == [(0, [2, 3]), (1, [])]
    assert [its.document for its in folded(found, texts, 0.0, 3)] == [0, 1, 2]
    cut = folded(found, texts, 0.8, 1)
    assert [(its.document, its.copies) for its in cut] == [(0, [2, 3])], "copies of what is kept, however late"


def test_jaccard_of_shingles():
    one, two = shingles("a b c d e f"), shingles("A, b c d e g")
    assert len(one) == len(two) == 2
    assert alike(one, two) == 1 / 3
    assert alike(shingles("a b"), shingles("a b")) == 1.0
    assert alike(shingles(""), shingles("a")) == 0.0
