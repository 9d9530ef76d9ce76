"""Thresholds, a temperature and an erased concept against what they promise, and slow twins."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LinearRegression, LogisticRegression

from uimjax.errors import DataError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.mitigate.afterwards import accepted, erase, erased, temperature, thresholds


def test_thresholds_accept_as_many_of_each_group(rng):
    groups = rng.integers(3, size=900)
    scores = 1 / (1 + np.exp(-(rng.normal(size=900) + groups - 1)))
    made = thresholds(scores, groups, rate=0.3)
    taken = accepted(scores, groups, made)
    for g in range(3):
        assert taken[groups == g].mean() == pytest.approx(0.3, abs=1 / (groups == g).sum())
    labels = (rng.random(900) < scores).astype(int)
    fair = accepted(scores, groups, thresholds(scores, groups, "opportunity", 0.8, labels))
    for g in range(3):
        mine = (groups == g) & (labels == 1)
        assert fair[mine].mean() == pytest.approx(0.8, abs=1 / mine.sum())
    whole = thresholds(scores, groups)
    assert accepted(scores, groups, whole).mean() == pytest.approx(np.mean(scores >= 0.5), abs=0.01)
    assert not accepted(scores, groups, thresholds(scores, groups, rate=0.0)).any()
    assert accepted(scores, groups, thresholds(scores, groups, rate=1.0)).all()


def test_the_temperature_is_where_the_loss_is_least(rng):
    labels = rng.integers(4, size=2000)
    true = rng.normal(size=(2000, 4))
    labels = np.array([rng.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in true])
    for sharp in (0.4, 1.0, 3.0):
        found = temperature(sharp * true, labels)
        nll = lambda t, sharp=sharp: -log_softmax(sharp * true / t[0], 1)[np.arange(2000), labels].mean()  # noqa: E731
        slow = minimize(nll, [sharp], method="Nelder-Mead", options={"xatol": 1e-9}).x[0]
        assert found == pytest.approx(slow, rel=1e-5)
        assert found == pytest.approx(sharp, rel=0.15)


def test_no_linear_map_tells_an_erased_concept_and_no_smaller_change_does(rng):
    concept = rng.integers(3, size=600)
    x = rng.normal(size=(600, 8)) @ rng.normal(size=(8, 8)) + 2 * np.eye(3, 8)[concept] + 5.0
    made = erase(x, concept)
    clean = erased(x, made)
    one_hot = np.eye(3)[concept]
    assert np.abs((clean - clean.mean(0)).T @ (one_hot - one_hot.mean(0))).max() < 1e-8 * 600
    assert LinearRegression().fit(clean, one_hot).score(clean, one_hot) < 1e-9
    assert made.rank == 2
    np.testing.assert_allclose(clean.mean(0), x.mean(0), atol=1e-9)
    # the orthogonal projection off the same covariances erases too, and moves rows farther
    u = np.linalg.svd((x - x.mean(0)).T @ (one_hot - one_hot.mean(0)), full_matrices=False)[0][:, :2]
    other = x - (x - x.mean(0)) @ u @ u.T
    assert np.square(clean - x).sum() < np.square(other - x).sum()
    assert LogisticRegression(max_iter=5000).fit(x, concept).score(x, concept) > 0.6
    twice = erased(clean, erase(clean, concept))
    np.testing.assert_allclose(twice, clean, atol=1e-8)


def test_a_concept_of_numbers_and_features_without_full_rank(rng):
    z = rng.normal(size=(300, 2))
    x = np.concatenate([rng.normal(size=(300, 3)), z @ rng.normal(size=(2, 2)) + rng.normal(size=(300, 2))], 1)
    x = np.concatenate([x, x[:, :1], np.ones((300, 1))], 1)  # one feature twice, one constant
    clean = erased(x, erase(x, z))
    assert LinearRegression().fit(clean, z).score(clean, z) < 1e-9
    np.testing.assert_allclose(clean[:, -2], clean[:, 0], atol=1e-8)
    np.testing.assert_allclose(clean[:, -1], 1.0, atol=1e-8)


def test_what_is_wrong_is_refused(rng):
    scores, groups = rng.random(20), np.arange(20) % 2
    with pytest.raises(UnknownNameError, match="goal"):
        thresholds(scores, groups, "pairity")
    with pytest.raises(UsageError, match="opportunity is of the rows labelled 1"):
        thresholds(scores, groups, "opportunity")
    with pytest.raises(UsageError, match="rate=2"):
        thresholds(scores, groups, rate=2.0)
    with pytest.raises(DataError, match="group 1 has no row that counts"):
        thresholds(scores, groups, "opportunity", 0.5, 1 - groups)
    with pytest.raises(UnknownNameError, match="group '7'"):
        accepted(scores, np.full(20, 7), thresholds(scores, groups))
    with pytest.raises(ShapeError, match="groups"):
        thresholds(scores, groups[1:])
    with pytest.raises(NonFiniteError, match="row 2"):
        thresholds(np.where(np.arange(20) == 2, np.nan, scores), groups)
    with pytest.raises(DataError, match="every row is right"):
        temperature(np.eye(3) * 5, np.arange(3))
    with pytest.raises(DataError, match=r"0\.\.2 were wanted"):
        temperature(np.eye(3), np.array([0, 1, 3]))
    with pytest.raises(ShapeError, match="logits"):
        temperature(np.ones(3), np.ones(3, int))
    with pytest.raises(DataError, match="1 class of the concept"):
        erase(rng.normal(size=(5, 2)), np.zeros(5))
    with pytest.raises(ShapeError, match="a concept"):
        erase(rng.normal(size=(5, 2)), np.zeros(4))
    with pytest.raises(NonFiniteError, match="clean the rows"):
        erase(np.array([[np.nan, 1], [2, 3]]), np.array([0, 1]))
