"""Items of evaluation sets in a corpus: against sets of tuples."""

import numpy as np
import pytest

from uimjax.census.contamination import asked, joined, look, shares, told
from uimjax.corpora.wording import words_of


def runs(words, n):
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}


def by_hand(items, documents):
    found = []
    for item in items:
        words = item.split()
        n = 13 if len(words) >= 13 else 8
        if len(words) < 8:
            found.append(np.nan)
            continue
        seen = set().union(*(runs(d.split(), n) for d in documents))
        found.append(len(runs(words, n) & seen) / len(runs(words, n)))
    return np.array(found)


@pytest.fixture
def case(rng):
    make = lambda n: " ".join(f"w{k}" for k in rng.integers(400, size=n))  # noqa: E731  # of so many words
    documents = [make(int(n)) for n in rng.integers(5, 120, size=40)]
    items = [make(5), make(10), make(40)]
    items += [documents[k][: len(documents[k]) // 2] for k in range(6)]  # halves of documents
    items += [documents[7] + " " + make(30), documents[8] + " " + documents[9]]
    return items, documents


def test_shares_are_those_of_sets_of_tuples(case):
    items, documents = case
    questions = asked(items, [str(k) for k in range(len(items))], [0] * len(items))
    names = [f"d{k}" for k in range(len(documents))]
    whole = look(words_of(documents), names, questions)
    np.testing.assert_allclose(shares(whole, questions), by_hand(items, documents))
    parts = joined(
        look(words_of(documents[:9]), names[:9], questions), look(words_of(documents[9:]), names[9:], questions)
    )
    np.testing.assert_allclose(shares(parts, questions), shares(whole, questions))
    assert parts.where == whole.where
    assert whole.where[3] == ["d0"]
    (row,) = told(whole, questions, ["eval.jsonl"])
    share = by_hand(items, documents)
    assert row["contaminated"] == (share >= 0.7).sum()
    assert row["touched"] == ((share > 0) & (share < 0.7)).sum()
    assert row["too_short"] == np.isnan(share).sum()


def test_items_that_share_a_run_are_all_told():
    text = " ".join(f"w{k}" for k in range(20))
    questions = asked([text, text + " more", "x " * 20], ["a", "b", "c"], [0, 0, 0])
    seen = look(words_of([text]), ["d"], questions)
    assert shares(seen, questions)[0] == 1.0
    assert shares(seen, questions)[1] > 0.8
    assert shares(seen, questions)[2] == 0.0
    assert set(seen.where) == {0, 1}


def test_no_items_at_all():
    questions = asked([], [], [])
    assert told(look(words_of(["a b"]), ["d"], questions), questions, []) == []
