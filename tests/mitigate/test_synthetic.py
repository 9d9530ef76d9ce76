"""Counterfactual texts."""

import pytest

from uimjax.errors import UsageError
from uimjax.mitigate.synthetic import swapped


def test_whole_words_change_places_and_keep_their_capitals():
    pairs = [("he", "she"), ("uncle", "aunt")]
    assert swapped(["He said SHE saw the Uncle, her aunt."], pairs) == ["She said HE saw the Aunt, her uncle."]
    assert swapped(["the hex of shell"], pairs) == ["the hex of shell"]
    text = "He and she; Aunt-uncle."
    assert swapped(swapped([text], pairs), pairs) == [text]


def test_words_with_signs_are_words_too():
    assert swapped(["C++ or C"], [("c++", "rust")]) == ["Rust or C"]


@pytest.mark.parametrize("pairs", [[], [("he", " ")], [("he", "she"), ("SHE", "they")], [("he", "He")]])
def test_pairs_that_make_no_sense_are_refused(pairs):
    with pytest.raises(UsageError, match="one pair each"):
        swapped(["x"], pairs)
