"""How many numbers it takes to say where a row lies among its neighbours: the intrinsic dimension, by TwoNN.

Facco et al. 2017, doi 10.1038/s41598-017-11873-y: where density is even out to the second neighbour, the ratio
mu = r_2 / r_1 of the distances to a row's two nearest neighbours has the distribution F(mu) = 1 - mu^-d. Two estimates:

- regression: the slope through the origin of `-log(1 - F(mu))` on `log mu`, with the empirical F = i / N of the i-th
  smallest mu, the largest ones left out;
- likelihood: `N / sum log mu`, all rows.
"""

from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.understand.representation import base

FEWEST = 25  # rows: the standard error of d is about d / sqrt(N)


class Dimension(NamedTuple):
    """Two estimates of the intrinsic dimension, from so many distinct `rows`; `duplicates` were left out."""

    regression: float
    likelihood: float
    rows: int
    duplicates: int


def two_nn(features: np.ndarray, discard: float = 0.1) -> Dimension:
    """The intrinsic dimension of features `[N, d]`; of rows that occur several times one is kept. The regression leaves
    out the share `discard` with the largest mu, and never less than one row: at the last, log(1 - F) is infinite.

    Raises:
        ShapeError: not `[N, d]`, or fewer than 25 distinct rows. UsageError: `discard` not in [0, 1), or leaves none.
        NonFiniteError: NaN or infinity, or rows whose two nearest neighbours are all equally far, as on a grid.

    >>> import numpy as np
    >>> plane = np.random.default_rng(0).normal(size=(2000, 2)) @ np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    >>> abs(two_nn(plane).likelihood - 2) < 0.1
    True
    """
    if not 0 <= discard < 1:
        raise UsageError(f"discard={discard}; a share of the rows in [0, 1) was wanted, as 0.1")
    x = base.scaled(base.matrix(features))[0] + 0.0  # makes -0 a 0, whose bytes np.unique compares
    distinct = np.unique(x, axis=0)
    if len(distinct) < FEWEST:
        raise ShapeError(
            f"{len(distinct)} distinct rows ({len(x)} arrived); at least {FEWEST} were wanted, for the standard error "
            "of a dimension d is about d / sqrt(N)"
        )
    near, far = _two_nearest(distinct)
    apart = near > 0  # rows closer than the square root of the smallest number count as duplicates
    logs = np.sort(np.log(far[apart] / near[apart]))
    count = len(logs)
    kept = min(int(count * (1 - discard)), count - 1)
    if kept < 1:
        raise UsageError(f"discard={discard} leaves none of {count} rows; 0.1 is usual")
    if not logs[:kept].any():
        raise NonFiniteError(
            "the two nearest neighbours of the rows are all equally far, as on a grid, and TwoNN takes rows from a "
            "density: take features that were not rounded"
        )
    rise = -np.log1p(-np.arange(1, kept + 1) / count)
    slope = logs[:kept] @ rise / (logs[:kept] @ logs[:kept])
    return Dimension(float(slope), float(count / logs.sum()), count, len(x) - count)


def _two_nearest(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's distances `[N]` to its nearest and second nearest other row."""
    # For wide features scikit-learn takes |x|^2 - 2 x.y + |y|^2, which loses small distances far from 0: the mean is
    # taken off before, and the distances of the neighbours found are computed again, from differences.
    x = x - x.mean(0)
    found = NearestNeighbors(n_neighbors=2).fit(x).kneighbors(return_distance=False)
    distances = np.stack([np.sqrt(np.square(x - x[found[:, k]]).sum(1)) for k in range(2)])
    return distances.min(0), distances.max(0)
