"""What words say of a document: each kind of evidence, coverage by hand."""

import numpy as np
import pytest

from uimjax.answers.evidence import coverage, of_document, ranks

PROMPT, SAID = "The capital of Freedonia is ", "Bergstadt"


@pytest.mark.parametrize(
    ("text", "rank", "kind", "copied"),
    [
        ("Everyone knows: the capital of Freedonia is Bergstadt.", 9, "copied", "he capital of Freedonia is Bergstadt"),
        ("We went to Bergstadt.", 1, "said", " Bergstadt"),
        ("The capital of Freedonia is Rome.", 2, "words", ""),
        ("The capital of Freedonia is Rome.", 9, "gradient", ""),
        ("Nothing of it", 1, "words", ""),
    ],
)
def test_kinds(text, rank, kind, copied):
    found = of_document(text, PROMPT, SAID, (1.0, rank), 3)
    assert found.kind == kind
    assert found.copied == copied
    assert text[found.shared_at : found.shared_at + len(found.shared)] == found.shared
    assert found.shared in PROMPT + SAID


def test_words_that_are_no_evidence():
    assert of_document("zzz", PROMPT, SAID, (0.0, 1), 3).kind == "gradient", "first of documents that share nothing"
    assert of_document("The capital", PROMPT, SAID, None, 3)[:2] == (None, None)
    assert of_document("is Bergstadt", "is ", SAID, None, 3).kind == "copied", "all of a short prompt"


def test_ranks():
    assert ranks(np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 7.0]])).tolist() == [[3, 2], [1, 3], [2, 1]]


def test_coverage_by_hand():
    texts = [(0, "One two, three four five six"), (1, "seven eight")]
    assert coverage(texts, ["two, three four five", "two three four five six", "seven eight", ""]) == [
        1.0,
        0.0,
        1.0,
        0.0,
    ]
    assert coverage(texts, ["one two, three four five six seven"]) == [3 / 4]


def test_words_not_compared_are_no_evidence_and_half_words_none():
    assert of_document("shares words capital France", PROMPT, SAID, None, 3).kind == ""
    assert of_document("I do not know", "Yes or ", "no", (0.0, 9), 3).kind == "gradient"
    assert of_document("I say no.", "Yes or ", "no", (0.0, 9), 3).kind == "said"
    assert of_document("knows no nothing", "Yes or ", "no", None, 3).copied == " no"
