"""Curation: what is chosen, kept and weighed is what the definitions say, by slow twins and planted truth."""

import numpy as np
import pytest

from uimjax.errors import DataError, NonFiniteError, ShapeError, UsageError
from uimjax.mitigate.curation import BUCKETS, culprit_tokens, dsir, grams, group_support, mixture, semantic_duplicates

SEA, LAND = "ship wave sail harbour tide anchor".split(), "field plough horse barn seed fence".split()


def texts(rng, words, count):
    return [" ".join(rng.choice(words, 12)) for _ in range(count)]


def test_texts_like_the_target_are_chosen(rng):
    raw = texts(rng, SEA, 50) + texts(rng, LAND, 150)
    found = dsir(raw, texts(rng, SEA, 20), 40)
    assert (found.rows < 50).mean() > 0.95
    assert len(set(found.rows)) == 40
    assert found.importance[:50].min() > found.importance[50:].max()
    assert dsir(raw, texts(rng, SEA, 20), 40, seed=1).rows.tolist() != found.rows.tolist()


def test_importance_is_the_sum_over_grams_of_their_log_ratio():
    raw, target = ["a b a", "b c!", "c c c"], ["a b", "b c"]
    p, q = (np.bincount(np.concatenate([grams(t) for t in some]), minlength=BUCKETS) for some in (target, raw))
    ratio = lambda g: np.log(p[g] / p.sum() + 1e-8) - np.log(q[g] / q.sum() + 1e-8)  # noqa: E731
    expected = [sum(ratio(g) for g in grams(text)) for text in raw]
    np.testing.assert_allclose(dsir(raw, target, 1).importance, expected, rtol=1e-9)
    assert len(grams("A b, a")) == 4 + 3, "words and marks, and their pairs"
    assert grams("A b").tolist() == grams("a  B").tolist()


def test_draws_without_replacement_follow_the_weights():
    """Of two texts with weights w, the first is chosen with w1 / (w1 + w2)."""
    raw, target = ["x y", "z z z"], ["x y z"]
    found = dsir(raw, target, 1)
    share = np.mean([dsir(raw, target, 1, seed=s).rows[0] == 0 for s in range(400)])
    weights = np.exp(found.importance - found.importance.max())
    assert share == pytest.approx(weights[0] / weights.sum(), abs=0.06)


def test_repeats_by_meaning_go_and_one_of_each_stays(rng):
    x = rng.normal(size=(200, 16))
    copies = x[:30] * rng.uniform(0.5, 2, (30, 1)) + 0.01 * rng.normal(size=(30, 16))
    gone = semantic_duplicates(np.concatenate([x, copies]), epsilon=0.02, clusters=8)
    pairs = {(k, 200 + k) for k in range(30)}
    hit = [len({a, b} & set(gone)) for a, b in pairs]
    assert sum(hit) >= 27, "a pair that k-means cuts apart is not compared"
    assert max(hit) == 1
    assert not set(gone) & set(range(30, 200))
    assert semantic_duplicates(np.tile(x[:1], (5, 1)), clusters=1).shape == (4,)


def test_support_of_groups_is_its_formula(rng):
    scores, groups, losses = rng.normal(size=(7, 10)), np.arange(10) % 3, rng.random(10)
    found = group_support(scores, groups, losses)
    for i in range(7):
        each = []
        for g in range(3):
            inside = [q for q in range(10) if groups[q] == g]
            each.append(np.mean(losses[inside]) * np.mean([-scores[i, q] for q in inside]))
        assert found[i] == pytest.approx(np.mean(each))


def test_weights_of_domains_follow_the_excess(rng):
    excess = rng.normal(size=(5, 3)) + [0.0, 0.0, 1.0]
    w, total = np.full(3, 1 / 3), np.zeros(3)
    for step in excess:
        up = w * np.exp(0.5 * np.maximum(step, 0))
        w = 0.9 * up / up.sum() + 0.1 / 3
        total += w
    np.testing.assert_allclose(mixture(excess, 0.5, 0.1), total / 5, rtol=1e-12)
    assert mixture(excess).sum() == pytest.approx(1)
    assert mixture(np.full((9, 4), -1.0)).tolist() == pytest.approx([0.25] * 4)


def test_what_is_wrong_is_refused(rng):
    with pytest.raises(UsageError, match="3 of 2 texts"):
        dsir(["a", "b"], ["a"], 3)
    with pytest.raises(DataError, match="hold no word"):
        dsir(["a", "b"], [" "], 1)
    with pytest.raises(UsageError, match="epsilon=1"):
        semantic_duplicates(rng.normal(size=(5, 2)), epsilon=1.0)
    with pytest.raises(ShapeError, match="features"):
        semantic_duplicates(np.ones(3))
    with pytest.raises(NonFiniteError, match="row 1"):
        semantic_duplicates(np.array([[1.0, 2], [np.nan, 1]]))
    with pytest.raises(ShapeError, match="groups"):
        group_support(np.ones((3, 2)), np.ones(3), np.ones(2))
    with pytest.raises(NonFiniteError, match="losses"):
        group_support(np.ones((3, 2)), np.ones(2), np.array([1, np.inf]))
    with pytest.raises(UsageError, match="eta=0"):
        mixture(np.ones((2, 2)), eta=0)
    with pytest.raises(NonFiniteError, match="step 1"):
        mixture(np.array([[1.0], [np.nan]]))
    with pytest.raises(ShapeError, match="excess"):
        mixture(np.ones(3))


def test_culprit_tokens_are_the_highest_with_their_neighbours(rng):
    scores, counted = rng.normal(size=(9, 11)), rng.random((9, 11)) < 0.8
    found = culprit_tokens(scores, counted, quantile=0.9, window=1, most=0.5)
    line, slow = np.sort(scores[counted])[int(0.9 * (counted.sum() - 1)) + 1], np.zeros((9, 11), bool)
    for i in range(9):
        for t in range(11):
            near = [s for s in (t - 1, t, t + 1) if 0 <= s < 11 and counted[i, s] and scores[i, s] >= line]
            slow[i, t] = counted[i, t] and bool(near)
    assert (found == slow).all()
    few = culprit_tokens(scores, counted, quantile=0.5, window=0, most=0.1)
    room = int(0.1 * counted.sum())
    assert few.sum() == room
    assert scores[few].min() >= np.sort(scores[counted])[-room]
    for change in ({"scores": -np.abs(scores)}, {"counted": ~counted & counted}, {"scores": scores * np.nan},
                   {"quantile": 1.0}, {"most": 0.0}, {"window": -1}):  # fmt: skip
        with pytest.raises((DataError, ShapeError, NonFiniteError, UsageError)):
            culprit_tokens(**({"scores": scores, "counted": counted} | change))
