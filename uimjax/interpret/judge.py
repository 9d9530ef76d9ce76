"""Attribution judged by retraining: the linear datamodeling score, its interval and its ceiling; calibration.

LDS (Park et al. 2023, arXiv 2303.14186): for each query, Spearman's correlation over random subsets S between the
prediction `sum_{i in S} score_i` and the measurement after training on S; then the mean over queries. The truth itself
is noisy: with the correlation r between two seeds' truths, a perfect prediction of the expected measurement reaches
`sqrt(k r / (1 + (k - 1) r))` against the mean of k seeds (Spearman-Brown).
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from uimjax.errors import ShapeError, UsageError
from uimjax.interpret.bank import Bank

RESAMPLES = 500
LEVEL = 0.95


class Lds(NamedTuple):
    """`value` with its bootstrap interval `low`, `high` (over subsets and queries); `queries` `[Q]` each its own (NaN:
    the truth does not vary); `agreement` between seeds and the `ceiling` that follows (NaN with one seed); `protocol`
    of the retraining."""

    value: float
    low: float
    high: float
    queries: np.ndarray
    agreement: float
    ceiling: float
    protocol: str

    def __str__(self) -> str:
        best = "" if np.isnan(self.ceiling) else f" of at most {self.ceiling:.2f}"
        return f"LDS {self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{best} ({self.protocol})"


def lds(values: np.ndarray, bank: Bank, seed: int = 0) -> Lds:
    """Of scores `[N, Q]`; raises ShapeError where they are of other rows or queries than the bank."""
    values = np.asarray(values, np.float64)
    rows, queries = bank.kept.shape[1], bank.values.shape[2]
    if values.shape != (rows, queries):
        raise ShapeError(f"scores {list(values.shape)} for a bank of {rows} rows and {queries} queries")
    predicted, truth = bank.kept.astype(np.float64) @ values, bank.values.mean(1)
    each = correlations(predicted, truth)
    rng, found = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        subsets, chosen = rng.integers(len(truth), size=len(truth)), rng.integers(queries, size=queries)
        again = correlations(predicted[np.ix_(subsets, chosen)], truth[np.ix_(subsets, chosen)])
        found.append(_mean(again))
    drawn = [x for x in found if not np.isnan(x)] or [np.nan]  # NaN: the truth of no query drawn varies
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    agreement, ceiling = noise_ceiling(bank)
    return Lds(_mean(each), float(low), float(high), each, agreement, ceiling, bank.protocol)


def correlations(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column: 0 where the prediction is one number, NaN where the truth is."""
    ranks = [stats.rankdata(x, axis=0) - (len(x) + 1) / 2 for x in (predicted, truth)]
    size = [np.sqrt((x**2).sum(0)) for x in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(size[0] > 0, (ranks[0] * ranks[1]).sum(0) / (size[0] * size[1]), 0.0)
    return np.where(size[1] > 0, found, np.nan)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def noise_ceiling(bank: Bank) -> tuple[float, float]:
    """(mean correlation between two seeds' truths, the LDS of a perfect prediction); NaN with one seed."""
    k = bank.values.shape[1]
    if k < 2:
        return float("nan"), float("nan")
    pairs = [correlations(bank.values[:, a], bank.values[:, b]) for a in range(k) for b in range(a)]
    r = _mean(np.concatenate(pairs))
    return r, float(np.sqrt(max(k * r / (1 + (k - 1) * r), 0.0)))


class Calibration(NamedTuple):
    """Measured against predicted changes: `slope` of the line through the origin with its bootstrap interval, Pearson's
    `correlation`, and the pairs themselves `[K]`."""

    slope: float
    low: float
    high: float
    correlation: float
    predicted: np.ndarray
    measured: np.ndarray


def calibration(predicted: np.ndarray, measured: np.ndarray, seed: int = 0) -> Calibration:
    """Of K removals' predicted (`- sum score_i / n`) and retrained changes of f, `[K]` or `[K, Q]`. A slope of 1: as
    predicted; above 1: the effects are larger. The interval draws removals and queries apart: what a retraining
    changes by chance, it changes for all queries.

    Raises:
        ShapeError: of different shapes, or fewer than 2 removals. UsageError: every predicted change is 0.
    """
    predicted, measured = (np.asarray(x, np.float64) for x in (predicted, measured))
    if predicted.shape != measured.shape or predicted.ndim not in (1, 2) or len(predicted) < 2:
        raise ShapeError(
            f"{predicted.shape} predicted and {measured.shape} measured changes; [K] or [K, Q] of 2 or more removals "
            "was wanted"
        )
    predicted, measured = (x.reshape(len(x), -1) for x in (predicted, measured))
    if not predicted.any():
        raise UsageError("every predicted change is 0, and there is no line through that: the scores are all 0")
    rng, again = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        at = np.ix_(*(rng.integers(size, size=size) for size in predicted.shape))
        again.append(_slope(predicted[at], measured[at]))
    low, high = np.nanquantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    varies = min(predicted.std(), measured.std()) > 0
    related = float(np.corrcoef(predicted.ravel(), measured.ravel())[0, 1]) if varies else float("nan")
    slope = _slope(predicted, measured)
    return Calibration(slope, float(low), float(high), related, predicted.ravel(), measured.ravel())


def _slope(predicted: np.ndarray, measured: np.ndarray) -> float:
    square = (predicted**2).sum()
    return float((predicted * measured).sum() / square) if square > 0 else float("nan")
