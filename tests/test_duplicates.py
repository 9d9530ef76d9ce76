"""Near duplicates against every pair by hand."""

import builtins

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from uimjax.corpora import duplicates
from uimjax.corpora.duplicates import near_duplicates, shingles, signatures
from uimjax.corpora.wording import words_of
from uimjax.errors import UsageError


def texts(rng, count=60):
    """A third of them repeat an earlier one with a few words changed."""
    made = []
    for k in range(count):
        words = [f"w{n}" for n in rng.integers(500, size=120)]
        if k % 3 == 2:
            words = made[k // 2].split()
            for at in rng.integers(len(words), size=rng.integers(1, 3)):
                words[at] = "changed"
        made.append(" ".join(words))
    return made


def by_hand(made, threshold):
    runs = [shingles(text) for text in made]
    alike = np.array([[len(a & b) / len(a | b) >= threshold for b in runs] for a in runs])
    labels = connected_components(alike)[1]
    return np.array([np.flatnonzero(labels == label)[0] for label in labels])


def test_groups_are_those_of_all_pairs(rng):
    made = texts(rng)
    want = by_hand(made, 0.7)
    assert len(np.unique(want)) < 50, "there are groups to find"
    np.testing.assert_array_equal(near_duplicates(made, 0.7), want)


def test_a_chain_is_one_group_and_strangers_are_none():
    base = [f"w{k}" for k in range(200)]
    chain = [" ".join(base[k : k + 160]) for k in (0, 15, 30, 40)]
    other = " ".join(f"x{k}" for k in range(50))
    assert near_duplicates([chain[0], other, *chain[1:]], 0.6).tolist() == [0, 1, 0, 0, 0]
    late = [chain[0], chain[3], chain[1]]  # the third joins the first two
    assert near_duplicates(late, 0.6).tolist() == [0, 0, 0]
    assert near_duplicates([], 0.5).tolist() == []
    assert near_duplicates(["", "", "a"], 0.9).tolist() == [0, 0, 2]


def test_what_is_asked_wrongly(monkeypatch):
    with pytest.raises(UsageError, match="a share between 0 and 1"):
        near_duplicates(["a"], 1.0)
    plain = builtins.__import__

    def without(name, *more):
        if name == "rensa":
            raise ImportError(name)
        return plain(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'uimjax\[text\]'"):
        near_duplicates(["a"])


def test_the_estimate_is_the_share_of_common_shingles(rng):
    """Mean and spread of 128 hashes: unbiased, standard error sqrt(J (1 - J) / 128)."""
    for kept in (0.95, 0.8, 0.4):
        errors = []
        for _ in range(100):
            words = [f"w{n}" for n in rng.integers(10**6, size=300)]
            cut = int(300 * kept)
            one, two = " ".join(words), " ".join(words[:cut] + [f"x{n}" for n in rng.integers(10**6, size=300 - cut)])
            made = signatures(words_of([one, two]))
            a, b = shingles(one), shingles(two)
            true = len(a & b) / len(a | b)
            errors.append(((made[0] == made[1]).mean() - true) / np.sqrt(true * (1 - true) / 128))
        assert abs(np.mean(errors)) < 0.35
        assert 0.7 < np.std(errors) < 1.3


def test_pairs_just_above_the_threshold_are_found(rng):
    """Of pairs whose estimate is at the threshold or more, the tables lose next to none."""
    lost = found = 0
    for _ in range(80):
        words = [f"w{n}" for n in rng.integers(10**6, size=300)]
        changed = words[: 300 - 33] + [f"x{n}" for n in rng.integers(10**6, size=33)]
        one, two = " ".join(words), " ".join(changed)
        made = signatures(words_of([one, two]))
        if (made[0] == made[1]).mean() >= 0.8:
            joined = near_duplicates([one, two], 0.8).tolist() == [0, 0]
            found, lost = found + joined, lost + (not joined)
    assert found > 10
    assert lost <= 1


@pytest.mark.parametrize("limits", [{"AT_ONCE": 7}, {"BLOCK": 50}, {"NEAR": 2}])
def test_groups_do_not_depend_on_what_is_held_at_once(rng, monkeypatch, limits):
    made = texts(rng)
    want = near_duplicates(made, 0.7)
    for name, value in limits.items():
        monkeypatch.setattr(duplicates, name, value)
    np.testing.assert_array_equal(near_duplicates(made, 0.7), want)


def test_many_copies_of_one_text_are_one_group():
    text = " ".join(f"w{k}" for k in range(60))
    assert near_duplicates([text, "another one entirely"] * 40, 0.9).tolist() == [0, 1] * 40
