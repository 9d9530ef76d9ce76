"""Detectors that ask no question: rows that look planted by their representations alone, class by class.

With h_i the features `[D]` of the rows of one class, mu their mean:

- spectral signature: `s_i = ((h_i - mu) . v)^2`, v the top right singular vector of the centred features (Tran et al.
  2018, arXiv 1811.00636). A poison that most of a class lacks is its largest direction.
- activation clustering: features reduced to ten white components, two means; the smaller cluster is suspicious by how
  far the two lie apart, `s_i = max(silhouette, 0) (1 - 2 share)`, 0 in the larger one (Chen et al. 2018, arXiv
  1811.03728). The paper's independent components are a turn of the white ones, which k-means does not see.

Both are "relative": only the order of scores means something. A class of few rows, or of rows that are all alike, says
nothing, and its rows score 0.
"""

from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import NonFiniteError, ShapeError, UsageError

NAMES = ("aum", "spectral", "clusters", "repeats")  # columns of scores that no question was asked for
COMPONENTS = 10
FEWEST = 5  # rows of a class
TAIL = 0.05  # of a class's rows, that a cluster may start from


class Clustered(NamedTuple):
    """`scores` `[N]`; of each class `[C]` the `share` of its smaller cluster and the `silhouette` of the two (NaN: too
    few rows)."""

    scores: np.ndarray
    classes: np.ndarray
    share: np.ndarray
    silhouette: np.ndarray


def spectral(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Spectral signatures `[N]` of features `[N, D]` and labels `[N]`; high = suspicious.

    Raises:
        ShapeError, NonFiniteError
    """
    features, labels = _checked(features, labels)
    found = np.zeros(len(labels))
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        away = features[here] - features[here].mean(0)
        if len(here) >= FEWEST and np.any(away):
            found[here] = (away @ np.linalg.svd(away, full_matrices=False)[2][0]) ** 2
    return found


def activation_clusters(features: np.ndarray, labels: np.ndarray, components: int = COMPONENTS) -> Clustered:
    """Activation clustering of features `[N, D]` and labels `[N]`.

    Raises:
        ShapeError, NonFiniteError. UsageError: `components` below 1.
    """
    if components < 1:
        raise UsageError(f"components={components} arrived; at least one was wanted")
    features, labels = _checked(features, labels)
    scores, classes = np.zeros(len(labels)), np.unique(labels)
    share, silhouette = (np.full(len(classes), np.nan) for _ in range(2))
    for k, label in enumerate(classes):
        here = np.flatnonzero(labels == label)
        if len(here) < FEWEST or not np.any(features[here] - features[here[0]]):
            continue
        small, share[k], silhouette[k] = _two_means(features[here], components)
        scores[here[small]] = max(silhouette[k], 0.0) * (1 - 2 * share[k])
    return Clustered(scores, classes, share, silhouette)


def _two_means(features: np.ndarray, components: int) -> tuple[np.ndarray, float, float]:
    """(the rows of the smaller cluster, its share, the silhouette)."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    away = features - features.mean(0)
    directions, sizes, _ = np.linalg.svd(away, full_matrices=False)
    kept = min(components, int((sizes > 1e-9 * sizes[0]).sum()), len(features) - 1)
    reduced = directions[:, :kept] * np.sqrt(len(features))
    made: Any = KMeans  # its stubs allow words alone for init and n_init
    tries = [made(2, init=centres, n_init=1).fit(reduced) for centres in _starts(reduced)]
    means = min(tries, key=lambda its: its.inertia_).labels_
    small = int(np.bincount(means, minlength=2).argmin())
    share = float(np.mean(means == small))
    apart = float(silhouette_score(reduced, means)) if len(np.unique(means)) == 2 else 0.0
    return np.flatnonzero(means == small), share, apart


def _starts(reduced: np.ndarray) -> list[np.ndarray]:
    """Two centres each: of the rows that lie farthest to one side of a component, and of the others. Nothing is drawn,
    so neither the rows' order nor a seed decides."""
    found = []
    for column in reduced.T:
        for side in (column, -column):
            out = side >= np.quantile(side, 1 - TAIL)
            found.append(np.stack([reduced[out].mean(0), reduced[~out].mean(0)]))
    return found


def _checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or 0 in features.shape:
        raise ShapeError(
            f"features {list(features.shape)} and labels {list(labels.shape)} arrived; [N, D] and [N] were wanted"
        )
    if not np.isfinite(features).all():
        at = int(np.argwhere(~np.isfinite(features))[0][0])
        raise NonFiniteError(f"the features of row {at} are NaN or infinite; clean the rows, or reload the checkpoint")
    return features, labels
