"""Detectors by representations alone: planted rows found, slow twins, and what is refused."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import FastICA
from sklearn.metrics import roc_auc_score

from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.interpret.detectors import activation_clusters, spectral


def planted(rng, count=400, width=24, poison=20, far=5.0):
    """Three classes; of class 1 some rows carry a direction that no other row has."""
    labels = rng.integers(3, size=count)
    features = rng.normal(size=(count, width)) + 3 * np.eye(3, width)[labels]
    hit = np.flatnonzero(labels == 1)[:poison]
    features[hit, 10] += far
    return features, labels, hit


def test_planted_rows_of_a_class_stand_out(rng):
    features, labels, hit = planted(rng)
    bad = np.isin(np.arange(len(labels)), hit)
    one = labels == 1
    assert roc_auc_score(bad[one], spectral(features, labels)[one]) > 0.95
    features, labels, hit = planted(np.random.default_rng(1), far=8.0)
    bad, one = np.isin(np.arange(len(labels)), hit), labels == 1
    found = activation_clusters(features, labels)
    assert roc_auc_score(bad, found.scores) > 0.95
    assert found.classes.tolist() == [0, 1, 2]
    assert found.share[1] == pytest.approx(len(hit) / one.sum(), abs=0.05)
    assert found.silhouette[1] == np.nanmax(found.silhouette)


def test_a_spectral_signature_is_the_square_along_the_largest_direction(rng):
    features, labels, _ = planted(rng)
    found = spectral(features, labels)
    for label in range(3):
        here = labels == label
        away = features[here] - features[here].mean(0)
        values, vectors = np.linalg.eigh(away.T @ away)
        np.testing.assert_allclose(found[here], (away @ vectors[:, -1]) ** 2, rtol=1e-9, atol=1e-9)
        assert found[here].sum() == pytest.approx(values[-1])


def test_independent_components_give_the_same_two_clusters(rng):
    """The paper takes FastICA: a turn of white components, which k-means does not see."""
    features, labels, _ = planted(rng, far=8.0)
    one = np.flatnonzero(labels == 1)
    reduced = FastICA(10, random_state=0, max_iter=2000, tol=1e-2, whiten="unit-variance").fit_transform(features[one])
    means = KMeans(2, random_state=0, n_init=10).fit_predict(reduced)
    small = one[means == np.bincount(means).argmin()]
    assert set(small) == set(one) & set(np.flatnonzero(activation_clusters(features, labels).scores))


@pytest.mark.parametrize("score", [spectral, lambda x, y: activation_clusters(x, y).scores])
def test_order_and_a_turn_of_the_features_change_nothing(score, rng):
    features, labels, _ = planted(rng, far=8.0)
    order, turn = rng.permutation(len(labels)), np.linalg.qr(rng.normal(size=(24, 24)))[0]
    expected = score(features, labels)
    np.testing.assert_allclose(score(features[order], labels[order]), expected[order], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(score(features @ turn + 7.0, labels), expected, rtol=1e-6, atol=1e-9)


def test_a_class_that_says_nothing_scores_nothing(rng):
    features, labels, _ = planted(rng)
    labels[:3], labels[3:40] = 7, 8
    features[3:40] = 1.0
    assert not spectral(features, labels)[:40].any()
    found = activation_clusters(features, labels)
    assert not found.scores[:40].any()
    assert np.isnan(found.silhouette[np.isin(found.classes, [7, 8])]).all()


def test_what_is_wrong_is_refused(rng):
    features, labels, _ = planted(rng)
    for x, y in ((features[0], labels), (features, labels[1:]), (features[:0], labels[:0])):
        with pytest.raises(ShapeError, match="were wanted"):
            spectral(x, y)
    features[7, 2] = np.nan
    with pytest.raises(NonFiniteError, match="row 7"):
        activation_clusters(features, labels)
    with pytest.raises(UsageError, match="components=0"):
        activation_clusters(features, labels, components=0)
