"""Verbatim overlap against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uimjax.answers.overlap import LISTED, copies, longest_shared
from uimjax.errors import UsageError

words = st.text(alphabet="ab éè\U0001f600\U0001f601\n", max_size=24)


@given(words, words)
def test_the_longest_shared_run(one, two):
    run, start, other = longest_shared(one, two)
    assert one[start : start + len(run)] == run == two[other : other + len(run)]
    runs = (one[i:j] for i in range(len(one)) for j in range(i + 1, len(one) + 1))
    assert len(run) == max((len(its) for its in runs if its in two), default=0)


@given(st.lists(words, min_size=1, max_size=6), words, words.filter(bool), st.sampled_from([1, 16, 1 << 20]))
def test_the_longest_end_that_stands_somewhere(texts, before, said, part):
    (found,) = copies(enumerate(texts), [(before, said)], part)
    ends = [before[len(before) - n :] + said for n in range(len(before), -1, -1)]
    longest = next((end for end in ends if any(end in text for text in texts)), "")
    holding = [k for k, text in enumerate(texts) if longest and longest in text]
    times = sum(text.startswith(longest, at) for text in texts for at in range(len(text))) if longest else 0
    assert found.run == longest
    assert found.times == times
    assert found.documents == holding[:LISTED]


def test_no_run_goes_over_the_end_of_a_document():
    (found,) = copies([(7, "one two"), (9, " three")], [("one ", "two three")])
    assert found.run == ""


def test_real_sizes_in_parts():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), 3000)) for _ in range(50)]
    asked = [(texts[k][100:160], texts[k][160:170]) for k in (3, 30)]
    for part in (4000, 1 << 20):
        found = copies(enumerate(texts), asked, part)
        assert [(its.run, its.times, its.documents) for its in found] == [
            (before + said, 1, [k]) for (before, said), k in zip(asked, (3, 30), strict=True)
        ]


def test_nothing_said():
    with pytest.raises(UsageError, match="question 1 has no completion"):
        copies([(0, "a")], [("a", "b"), ("a", "")])
