"""Weakness 1 in decisions: what groups get, and how often it is wrong for them.

Of decisions d_i in {0, 1}, labels y_i in {0, 1} and groups g:

- demographic parity gap: `max_g - min_g P(d = 1 | g)`;
- equalised odds gap: the larger over y of `max_g - min_g P(d = 1 | y, g)` (Hardt et al. 2016, arXiv 1610.02413);
- worst group: `min_g P(d = y | g)`, beside the mean;
- amplification: a gap after fine-tuning less that of the base and that of the data.

Each has a percentile bootstrap interval, rows drawn within their groups. A gap is never negative, so that of a fair
decision is above 0 by chance: `chance` is its mean where groups are dealt out anew among rows of the same label.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, ShapeError, UsageError

DRAWS, LEVEL = 1000, 0.95


class Gap(NamedTuple):
    """`value` with its interval; `chance`: what a decision that knows no groups has, and `limit` what it exceeds with a
    probability of (1 - level) / 2; `by_group`: the rates. The interval tells how large a gap is, and the limit whether
    there is one: resampled gaps of many small groups are larger than the gap itself."""

    value: float
    low: float
    high: float
    chance: float
    limit: float
    by_group: dict[Any, float]


class Worst(NamedTuple):
    """The accuracy of the worst group with its interval, the mean over rows, each group's, and what the worst of as
    many groups has by `chance`, dealt out anew (below `limit` with a probability of (1 - level) / 2)."""

    value: float
    low: float
    high: float
    mean: float
    chance: float
    limit: float
    by_group: dict[Any, float]


def parity(decisions: Any, groups: Any, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> Gap:
    """The demographic parity gap.

    Raises:
        ShapeError: not `[N]` each. DataError: decisions that are not 0 or 1, or one group alone. UsageError: draws or
            a level that are none.
    """
    d, g = _checked(decisions, groups)
    return _gap(lambda rows, of: _spread(d[rows], of), g, np.zeros(len(g), int), draws, level, seed, _rates(d, g))


def equalised_odds(
    decisions: Any, labels: Any, groups: Any, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Gap:
    """The equalised odds gap; `by_group`: `(group, label)` to P(d = 1).

    Raises:
        As `parity`. DataError: a group that lacks one of the labels.
    """
    d, g = _checked(decisions, groups)
    y, _ = _checked(labels, groups)
    rates = {(name, k): value for k in (0, 1) for name, value in _rates(d[y == k], g[y == k]).items()}
    for name in np.unique(g):
        for k in (0, 1):
            if (name.item(), k) not in rates:
                raise DataError(f"group {name} has no row of label {k}: its odds cannot be told")

    def odds(rows: np.ndarray, of: np.ndarray) -> float:
        return max(_spread(d[rows][y[rows] == k], of[y[rows] == k]) for k in (0, 1))

    return _gap(odds, 2 * np.unique(g, return_inverse=True)[1] + y, y, draws, level, seed, rates, g)


def worst_group(
    predicted: Any, labels: Any, groups: Any, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Worst:
    """The lowest accuracy of a group. Predictions and labels may be of any classes.

    Raises:
        ShapeError, UsageError
    """
    right, g = np.asarray(predicted) == np.asarray(labels), np.asarray(groups)
    if right.ndim != 1 or g.shape != right.shape or not len(g):
        raise ShapeError(f"predictions {list(np.shape(predicted))}, labels {list(np.shape(labels))} and groups "
                         f"{list(g.shape)} arrived; [N] each was wanted")  # fmt: skip
    rates = _rates(right, g)
    drawn = [min(_rates(right[rows], g[rows]).values()) for rows in _draws(g, draws, level, seed)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    rng = np.random.default_rng([seed, 1])
    dealt = [min(_rates(right, rng.permutation(g)).values()) for _ in range(draws)]
    limit, mean = float(np.quantile(dealt, (1 - level) / 2)), float(right.mean())
    return Worst(min(rates.values()), float(low), float(high), mean, float(np.mean(dealt)), limit, rates)


def amplification(after: float, base: float, data: float) -> float:
    """How much of a gap fine-tuning added: `after - base - data`."""
    return after - base - data


def _gap(
    gap: Callable[[np.ndarray, np.ndarray], float], strata: np.ndarray, same: np.ndarray, draws: int, level: float,
    seed: int, rates: dict[Any, float], groups: np.ndarray | None = None,
) -> Gap:  # fmt: skip
    """`strata`: rows are drawn within them; `same`: groups are dealt out anew within these."""
    groups = strata if groups is None else groups
    rows = np.arange(len(groups))
    drawn = [gap(at, groups[at]) for at in _draws(strata, draws, level, seed)]
    rng, dealt = np.random.default_rng([seed, 1]), []
    for _ in range(draws):
        of = groups.copy()
        for k in np.unique(same):
            here = same == k
            of[here] = rng.permutation(of[here])
        dealt.append(gap(rows, of))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    limit = float(np.quantile(dealt, (1 + level) / 2))
    return Gap(gap(rows, groups), float(low), float(high), float(np.mean(dealt)), limit, rates)


def _draws(strata: np.ndarray, draws: int, level: float, seed: int) -> list[np.ndarray]:
    if draws < 1 or not 0 < level < 1:
        raise UsageError(f"draws={draws}, level={level} arrived; 1 and more, and (0, 1) were wanted")
    rng = np.random.default_rng(seed)
    parts = [np.flatnonzero(strata == k) for k in np.unique(strata)]
    return [np.concatenate([rng.choice(part, len(part)) for part in parts]) for _ in range(draws)]


def _rates(values: np.ndarray, groups: np.ndarray) -> dict[Any, float]:
    return {name.item(): float(values[groups == name].mean()) for name in np.unique(groups)}


def _spread(values: np.ndarray, groups: np.ndarray) -> float:
    rates = _rates(values, groups).values()
    return max(rates) - min(rates)


def _checked(decisions: Any, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    d, g = np.asarray(decisions), np.asarray(groups)
    if d.ndim != 1 or g.shape != d.shape or not len(d):
        raise ShapeError(
            f"decisions or labels {list(d.shape)} and groups {list(g.shape)} arrived; [N] and [N] were wanted"
        )
    odd = np.flatnonzero(~np.isin(d, (0, 1)))
    if len(odd):
        raise DataError(f"row {odd[0]} has {d[odd[0]]}; decisions and labels are 0 or 1")
    if len(np.unique(g)) < 2:
        raise DataError(f"all rows are of group {g[0]}; two groups at least were wanted")
    return d.astype(int), g
