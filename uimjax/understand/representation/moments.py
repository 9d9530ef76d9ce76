"""What features are like on the whole, from one pass over them: counts and moments that stream.

Kept are the mean and the *central* sums, `S = sum_i (x_i - m)(x_i - m)^T` `[d, d]` and those of third and fourth powers
`[d]`, not sums of plain powers: where means are large against the spread, as of an activation that is always on, a
difference of plain sums has no digits left. The uncentred `X^T X = S + N m m^T` follows by adding.

*Guarantees*: a sum over rows, so the split into batches and the order of rows change nothing but rounding, and sums
made apart can be merged; memory is `O(d^2)` beside one batch, whatever N. Updates: Chan, Golub and LeVeque 1983 (doi
10.1080/00031305.1983.10483115), for higher powers Pebay 2008 (doi 10.2172/1028931).
"""

from typing import NamedTuple

import numpy as np

from uimjax.errors import ShapeError
from uimjax.understand.representation import base
from uimjax.understand.representation.base import Features

FLAT = 16 * np.finfo(np.float64).eps  # a spread below so much of the mean is rounding


class Moments(NamedTuple):
    """Sums over so many `rows` of width d, float64: `mean` `[d]`, `scatter` `[d, d]`, and `third` and `fourth` `[d]`,
    the sums of that power of `x - mean`."""

    rows: int
    mean: np.ndarray
    scatter: np.ndarray
    third: np.ndarray
    fourth: np.ndarray


class Summary(NamedTuple):
    """Of N `rows`: `mean` `[d]`; `second` `[d, d]`, the uncentred moment `X^T X / N`; `covariance` `[d, d]`, divided by
    N; `skewness` and excess `kurtosis` `[d]` (0 and 0 of a normal distribution), NaN where a feature is constant."""

    rows: int
    mean: np.ndarray
    second: np.ndarray
    covariance: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray


def init(width: int) -> Moments:
    """No rows yet, of features of this width."""
    zeros = np.zeros(width)
    return Moments(0, zeros, np.zeros((width, width)), zeros, zeros)


def update(moments: Moments, batch: np.ndarray) -> Moments:
    """With a batch `[B, d]` added; the moments given stay as they are.

    Raises:
        ShapeError: not `[B, d]`, or another width. NonFiniteError: NaN or infinity.
    """
    x = base.matrix(batch)
    first = x[0].copy()
    x -= first  # a constant feature is then zero exactly, whatever the rounding of a mean
    mean = x.mean(0)
    x -= mean
    squares = np.square(x)
    scatter = x.T @ x
    return merge(moments, Moments(len(x), first + mean, scatter, (squares * x).sum(0), np.square(squares).sum(0)))


def merge(first: Moments, second: Moments) -> Moments:
    """The moments of both sets of rows together.

    Raises:
        ShapeError: features of two widths.
    """
    if first.mean.shape != second.mean.shape:
        raise ShapeError(
            f"features of width {second.mean.size} arrived and moments of width {first.mean.size} are kept; one width "
            "was wanted: take them from one layer of one model"
        )
    a, b = first.rows, second.rows
    n = a + b
    if not n:
        return first
    step = second.mean - first.mean
    s_a, s_b = np.diag(first.scatter), np.diag(second.scatter)
    third = first.third + second.third + step**3 * (a * b * (a - b) / n**2) + 3 * step * (a * s_b - b * s_a) / n
    fourth = (
        first.fourth
        + second.fourth
        + step**4 * (a * b * (a * a - a * b + b * b) / n**3)
        + 6 * step**2 * (a * a * s_b + b * b * s_a) / n**2
        + 4 * step * (a * second.third - b * first.third) / n
    )
    scatter = first.scatter + second.scatter + np.outer(step, step) * (a * b / n)
    return Moments(n, first.mean + step * (b / n), scatter, third, fourth)


def finish(moments: Moments) -> Summary:
    """Sums to means.

    Raises:
        ShapeError: no rows.
    """
    n, mean, scatter, third, fourth = moments
    if not n:
        raise ShapeError("moments of no rows; update them with at least one batch")
    skewness, kurtosis = shape_of(mean, np.diag(scatter) / n, third / n, fourth / n)
    return Summary(n, mean, gram(moments) / n, scatter / n, skewness, kurtosis)


def moments_of(features: Features) -> Moments:
    """The moments of features, an array `[N, d]` or an iterable of batches `[B, d]`, in one pass.

    Raises:
        ShapeError: not `[N, d]`, widths that differ, or nothing. NonFiniteError: NaN or infinity.

    >>> import numpy as np
    >>> summary = finish(moments_of([np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]])]))
    >>> summary.mean.tolist(), summary.second.tolist(), summary.covariance.tolist()
    ([2.0, 2.0], [[5.0, 6.0], [6.0, 8.0]], [[1.0, 2.0], [2.0, 4.0]])
    """
    found = None
    for batch in base.batches(features):
        found = update(init(batch.shape[1]) if found is None else found, batch)
    assert found is not None  # no batch has raised
    return found


def gram(moments: Moments) -> np.ndarray:
    """`X^T X` `[d, d]`, uncentred."""
    return moments.scatter + moments.rows * np.outer(moments.mean, moments.mean)


def shape_of(
    mean: np.ndarray, variance: np.ndarray, third: np.ndarray, fourth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(skewness, excess kurtosis) `[d]` from the mean and the central moments `[d]`; NaN where all is constant."""
    varies = variance > np.square(FLAT * mean)
    safe = np.where(varies, variance, 1.0)
    return np.where(varies, third / safe**1.5, np.nan), np.where(varies, fourth / safe**2 - 3, np.nan)
