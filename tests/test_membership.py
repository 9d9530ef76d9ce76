"""Membership and memorization: every score against its formula row by row, planted members, what is refused."""

import zlib

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from uimjax.audit.membership import against, compressed, exact, extraction, lira, loss, min_k, min_k_plus, told
from uimjax.errors import DataError, NonFiniteError, ShapeError, UsageError

N, T, V = 6, 11, 9


@pytest.fixture
def case(rng):
    logits = rng.normal(size=(N, T, V)) * 2
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    tokens = rng.integers(V, size=(N, T))
    counted = np.arange(T)[None] < np.array([11, 7, 3, 1, 10, 5])[:, None]
    mine = np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    return log_p, np.where(counted, mine, -99.0), tokens, counted


def test_scores_of_rows_are_their_formulas(case):
    log_p, mine, tokens, counted = case
    p = np.exp(log_p)
    mean = (p * log_p).sum(-1)
    variance = (p * log_p**2).sum(-1) - mean**2
    texts = [f"text {'na ' * k}" for k in range(N)]
    plus, plain = min_k_plus(mine, mean, variance, counted), min_k(mine, counted)
    by_bytes, lead, average = compressed(mine, counted, texts), against(mine, 2 * mine, counted), loss(mine, counted)
    for i in range(N):
        own = [mine[i, t] for t in range(T) if counted[i, t]]
        many = max(1, int(0.2 * len(own)))
        assert average[i] == pytest.approx(sum(own) / len(own))
        assert plain[i] == pytest.approx(sum(sorted(own)[:many]) / many)
        z = sorted((mine[i, t] - mean[i, t]) / np.sqrt(max(variance[i, t], 1e-6)) for t in range(T) if counted[i, t])
        assert plus[i] == pytest.approx(sum(z[:many]) / many)
        assert by_bytes[i] == pytest.approx(sum(own) / len(zlib.compress(texts[i].encode())))
        assert lead[i] == pytest.approx(-average[i])
    right = log_p.argmax(-1) == tokens
    shares, strengths = exact(right, counted), extraction(right, counted)
    for i in range(N):
        flags = [bool(right[i, t]) for t in range(T) if counted[i, t]]
        assert shares[i] == pytest.approx(np.mean(flags))
        k = next(k for k in range(len(flags) + 1) if all(flags[k:]))
        assert strengths[i] == pytest.approx(1 - k / len(flags))


def test_extraction_at_its_ends():
    whole = np.ones((1, 4), bool)
    assert extraction(whole, whole).tolist() == [1.0]
    assert extraction(np.array([[True, True, True, False]]), whole).tolist() == [0.0]
    assert extraction(np.array([[False, True, True, True]]), whole).tolist() == [0.75]


def test_likelihood_ratios_are_those_of_two_gaussians_and_tell_members(rng):
    shadows, rows = 16, 400
    member = rng.random((shadows, rows)) < 0.5
    base = rng.normal(size=rows) * 2
    scores = base + 1.0 * member + rng.normal(size=(shadows, rows))
    truth = rng.random(rows) < 0.5
    target = base + 1.0 * truth + rng.normal(size=rows)
    found = lira(scores, member, target)
    for i in range(0, rows, 37):
        one, two = scores[member[:, i], i], scores[~member[:, i], i]
        ratio = norm.logpdf(target[i], one.mean(), one.std()) - norm.logpdf(target[i], two.mean(), two.std())
        assert found[i] == pytest.approx(ratio)
    fixed = lira(scores, member, target, fixed=True)
    assert roc_auc_score(truth, fixed) > roc_auc_score(truth, target) + 0.05
    assert roc_auc_score(truth, found) > roc_auc_score(truth, target)


def test_rates_are_counted_by_ranks(rng):
    score, member = rng.normal(size=500), rng.random(500) < 0.4
    score[member] += 1
    for fpr in (0.0, 0.001, 0.01, 0.1, 1.0):
        found = told(score, member, fpr)
        best = 0.0
        for bar in [-np.inf, *score]:
            if np.mean(score[~member] > bar) <= fpr + 1e-12:
                best = max(best, np.mean(score[member] > bar))
        assert found.tpr == pytest.approx(best)
        assert found.auroc == pytest.approx(roc_auc_score(member, score))


def test_what_is_wrong_is_refused(case):
    _, mine, _, counted = case
    with pytest.raises(DataError, match="row 2 counts no token"):
        loss(mine, np.where(np.arange(N)[:, None] == 2, False, counted))
    with pytest.raises(NonFiniteError, match="row 0 holds"):
        min_k(np.where(np.arange(T)[None] == 0, -np.inf, mine), counted)
    with pytest.raises(UsageError, match="share=0"):
        min_k(mine, counted, 0)
    with pytest.raises(ShapeError, match="3 texts"):
        compressed(mine, counted, ["a"] * 3)
    with pytest.raises(ShapeError, match="variance"):
        min_k_plus(mine, mine, mine[:, :2], counted)
    with pytest.raises(DataError, match="row 0 was in 1 of 4 shadow models"):
        lira(np.ones((4, 1)), np.array([[1], [0], [0], [0]]), np.ones(1))
    with pytest.raises(DataError, match="some of both"):
        told(np.ones(3), np.ones(3, bool))
    with pytest.raises(UsageError, match="fpr=2"):
        told(np.arange(3.0), np.array([True, False, True]), 2)
