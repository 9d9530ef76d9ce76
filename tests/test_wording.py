"""Words as numbers against words as text, by regular expressions and sets."""

import re

import numpy as np
import pytest

from uimjax.corpora import wording
from uimjax.corpora.wording import runs_of, words_of

TEXTS = [
    "The cat, the CAT; don't_stop 42!",
    "",
    "  ",
    "café naïve — “quoted” ĀB",
    "a b",
    "x" * 50,
    "tab\tand\nline a b",
]


def by_hand(text):
    plain = "".join(" " if ord(c) > 127 and not (c.isalnum() or c == "_") else c for c in text)
    return re.findall(r"\w+", plain.lower())


def per_text(words):
    return [words.hashes[a:b].tolist() for a, b in zip(words.starts[:-1], words.starts[1:], strict=True)]


def test_words_are_those_of_a_regular_expression():
    found, want = per_text(words_of(TEXTS)), [by_hand(text) for text in TEXTS]
    assert [len(x) for x in found] == [len(x) for x in want]
    pairs = {(h, w) for hs, ws in zip(found, want, strict=True) for h, w in zip(hs, ws, strict=True)}
    assert len({h for h, _ in pairs}) == len({w for _, w in pairs}) == len(pairs), (
        "one number a word, one word a number"
    )


def test_a_sign_of_a_script_without_spaces_is_a_word():
    (found,) = per_text(words_of(["我们在学校，abc学"]))
    assert len(found) == 7
    assert found[3] == found[6], "学"
    assert found[5] == per_text(words_of(["abc"]))[0][0]


@pytest.mark.parametrize("piece", [64, 65, 101])
def test_pieces_of_any_size_give_the_same_words(monkeypatch, piece):
    texts = [*TEXTS[:5], "many short words " * 20, "我们" * 80, ""]
    whole = words_of(texts)
    monkeypatch.setattr(wording, "PIECE", piece)
    cut = words_of(texts)
    np.testing.assert_array_equal(whole.hashes, cut.hashes)
    np.testing.assert_array_equal(whole.starts, cut.starts)


def test_runs_are_those_of_tuples(rng):
    texts = [" ".join(f"w{k}" for k in rng.integers(6, size=n)) for n in (0, 1, 3, 4, 5, 6, 40, 200)]
    for length in (1, 3, 5):
        found = per_text(runs_of(words_of(texts), length))
        want = []
        for text in texts:
            words = text.split()
            want.append([tuple(words[k : k + length]) for k in range(max(1, len(words) - length + 1))])
        assert [len(x) for x in found] == [len(x) for x in want]
        pairs = {(h, w) for hs, ws in zip(found, want, strict=True) for h, w in zip(hs, ws, strict=True)}
        assert len({h for h, _ in pairs}) == len({w for _, w in pairs}) == len(pairs)


def test_texts_do_not_run_into_one_another():
    together, alone = per_text(runs_of(words_of(["a b c", "d e f"]), 2)), [
        per_text(runs_of(words_of([t]), 2))[0] for t in ("a b c", "d e f")
    ]  # fmt: skip
    assert together == alone
