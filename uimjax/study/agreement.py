"""How far raters agree: percent, Krippendorff's alpha and Gwet's AC1 and AC2, from counts `[N, C]`: how many raters put
item i into category c. Items with fewer than two ratings say nothing of agreement.

- percent: the mean over items of sum_c n_ic (n_ic - 1) / (n_i (n_i - 1)).
- alpha = 1 - D_o / D_e of observed and expected disagreement (Krippendorff 2004; the package `krippendorff`, extra
  `study`); of nominal or ordinal categories. It is low where one category is nearly all there is.
- AC1 = (p_a - p_e) / (1 - p_e), p_e = sum_c pi_c (1 - pi_c) / (C - 1) (Gwet 2008), which does not have that. AC2 is the
  same with weights of partial agreement, quadratic for ordinal categories (Gwet 2014): w_kl = 1 - (k - l)^2 / (C -
  1)^2.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, UsageError

DRAWS = 500  # of items, for intervals


class Agreement(NamedTuple):
    """Each figure with its 95% interval over items (bootstrap); NaN where everybody always said the same."""

    percent: tuple[float, float, float]
    alpha: tuple[float, float, float]
    gwet: tuple[float, float, float]
    items: int
    ratings: int
    ordinal: bool


def check_installed() -> None:
    """Raises UsageError."""
    try:
        import krippendorff  # noqa: F401  # whether it can be
    except ImportError as error:
        raise UsageError("agreement takes krippendorff: pip install 'uimjax[study]'") from error


def agreement(counts: Any, ordinal: bool = False, seed: int = 0, draws: int = DRAWS) -> Agreement:
    """Of counts `[N, C]`; `ordinal`: the categories are in order.

    Raises:
        UsageError: krippendorff is not installed. DataError: counts that are none, or no item with two ratings.
    """
    check_installed()
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] < 2 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise DataError(f"counts {list(counts.shape)} of {counts.dtype} arrived; whole numbers [N, C] from 0 were "
                        "wanted, C two at least")  # fmt: skip
    several = counts.sum(1) >= 2
    if not several.any():
        raise DataError(f"no item of {len(counts)} has two ratings; agreement is between two at least")
    values = [_figures(counts, ordinal)]
    rng = np.random.default_rng(seed)
    rated = np.flatnonzero(counts.sum(1))
    kinds, back = np.unique(counts[rated], axis=0, return_inverse=True)  # items of equal counts count as often
    back = back.reshape(-1)
    for _ in range(draws):
        times = np.bincount(back[rng.integers(len(rated), size=len(rated))], minlength=len(kinds))
        values.append(_figures(kinds, ordinal, times))
    made = np.array(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a draw in which all agree there is no alpha
        low, high = np.nanquantile(made[1:], [0.025, 0.975], axis=0) if draws else (made[0], made[0])
    triple = [(float(made[0, k]), float(low[k]), float(high[k])) for k in range(3)]
    return Agreement(triple[0], triple[1], triple[2], int(several.sum()), int(counts[several].sum()), ordinal)


def _figures(counts: np.ndarray, ordinal: bool, times: np.ndarray | None = None) -> tuple[float, float, float]:
    """(percent, alpha, AC), each row of counts so many `times`."""
    times = np.ones(len(counts)) if times is None else times.astype(float)
    counts, times = counts[times > 0], times[times > 0]
    size = counts.sum(1)
    many = size >= 2
    if not many.any():
        return float("nan"), float("nan"), float("nan")
    n, r, weight = counts[many].astype(float), size[many].astype(float), times[many]
    agree = (n * (n - 1)).sum(1) / (r * (r - 1))
    return float(np.average(agree, weights=weight)), _alpha(n, weight, ordinal), _gwet(counts, times, ordinal)


def _alpha(n: np.ndarray, times: np.ndarray, ordinal: bool) -> float:
    import krippendorff

    if (n.sum(0) > 0).sum() < 2:
        return float("nan")
    whole = np.repeat(n, times.astype(int), axis=0).astype(int)
    return float(krippendorff.alpha(value_counts=whole, level_of_measurement="ordinal" if ordinal else "nominal"))


def _gwet(counts: np.ndarray, times: np.ndarray, ordinal: bool) -> float:
    classes = counts.shape[1]
    k = np.arange(classes)
    weights = 1 - ((k[:, None] - k) / (classes - 1)) ** 2 if ordinal else np.eye(classes)
    size = counts.sum(1)
    many, any_ = size >= 2, size >= 1
    n, r = counts[many].astype(float), size[many].astype(float)
    near = n @ weights
    agree = (n * (near - 1)).sum(1) / (r * (r - 1))
    observed = np.average(agree, weights=times[many])
    shares = np.average(counts[any_] / size[any_, None], axis=0, weights=times[any_])
    chance = weights.sum() / (classes * (classes - 1)) * float((shares * (1 - shares)).sum())
    return float((observed - chance) / (1 - chance)) if chance < 1 else float("nan")
