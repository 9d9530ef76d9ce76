"""What is done to outputs or features afterwards, the model left as it is: thresholds by group, a temperature, and the
erasure of a concept.

- `thresholds`: for each group the threshold on a score at which the share of accepted rows (demographic parity), or of
  accepted positives (equal opportunity), is the wanted one (Hardt et al. 2016, arXiv 1610.02413);
- `temperature`: T that minimises the mean NLL of softmax(z / T) (Guo et al. 2017, arXiv 1706.04599);
- `erase`: the least change of features, in the mean of squares, after which no linear classifier tells the concept:
  `x - S^1/2 P S^-1/2 (x - mean)`, S the covariance of x, P the projection onto the columns of S^-1/2 cov(x, concept)
  (LEACE; Belrose et al. 2023, arXiv 2306.03819).
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from uimjax.errors import DataError, NonFiniteError, ShapeError, UnknownNameError, UsageError

GOALS = ("parity", "opportunity")
FLAT = 1e-10  # of the largest eigenvalue: a direction that has no spread


class Erasure(NamedTuple):
    """`features - (features - mean) change`, `change` `[D, D]` of rank `rank`."""

    mean: np.ndarray
    change: np.ndarray
    rank: int


def thresholds(
    scores: np.ndarray, groups: np.ndarray, goal: Literal["parity", "opportunity"] = "parity",
    rate: float | None = None, labels: np.ndarray | None = None,
) -> dict[Any, float]:  # fmt: skip
    """`{group: threshold}`, accepted are scores at or above it. `rate`: the share to accept of each group (default: of
    all rows at or above 0.5); for "opportunity" of the rows whose `labels` are 1.

    Raises:
        UnknownNameError: no such goal. ShapeError, NonFiniteError. UsageError: a rate outside of 0..1, or "opportunity"
            without labels. DataError: a group without rows that count.
    """
    if goal not in GOALS:
        raise UnknownNameError("goal", goal, GOALS)
    scores, groups = _scores(scores, groups)
    if (goal == "opportunity") != (labels is not None):
        raise UsageError(f"goal={goal!r} and labels={'None' if labels is None else '[N]'}: opportunity is of the rows "
                         "labelled 1, and parity of all")  # fmt: skip
    counted = np.ones(len(scores), bool) if labels is None else np.asarray(labels) == 1
    rate = float(np.mean(scores[counted] >= 0.5)) if rate is None and counted.any() else rate
    if rate is None or not 0 <= rate <= 1:
        raise UsageError(f"rate={rate} arrived; a share in 0..1 was wanted")
    found = {}
    for group in np.unique(groups):
        mine = np.sort(scores[counted & (groups == group)])[::-1]
        if not len(mine):
            raise DataError(f"group {group} has no row that counts; its threshold cannot be told")
        many = round(rate * len(mine))
        found[group.item()] = float(mine[many - 1]) if many else float(np.nextafter(mine[0], np.inf))
    return found


def accepted(scores: np.ndarray, groups: np.ndarray, made: dict[Any, float]) -> np.ndarray:
    """`[N]` bool by the thresholds of `thresholds`.

    Raises:
        UnknownNameError: a group without one.
    """
    scores, groups = _scores(scores, groups)
    for group in np.unique(groups):
        if group.item() not in made:
            raise UnknownNameError("group", str(group), map(str, made))
    return scores >= np.array([made[group.item()] for group in groups])


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """T above 0 of logits `[N, C]` and labels `[N]`.

    Raises:
        ShapeError, NonFiniteError. DataError: a label out of range, or every row right, so that the best T is 0.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    z, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if z.ndim != 2 or labels.shape != z.shape[:1] or labels.dtype.kind not in "iu" or not len(z):
        raise ShapeError(f"logits {list(z.shape)} and labels {labels.dtype} {list(labels.shape)} arrived; [N, C] and "
                         "integers [N] fit")  # fmt: skip
    if not np.isfinite(z).all():
        raise NonFiniteError(f"the logits of row {int(np.argwhere(~np.isfinite(z))[0][0])} are NaN or infinite")
    if labels.min() < 0 or labels.max() >= z.shape[1]:
        raise DataError(f"labels from {labels.min()} to {labels.max()} arrived; 0..{z.shape[1] - 1} were wanted")
    if (z.argmax(1) == labels).all():
        raise DataError(
            "every row is right, and the likeliest temperature is 0; calibrate on rows that were not trained on"
        )
    at = np.arange(len(z))
    nll = lambda log_t: -log_softmax(z * np.exp(-log_t), axis=1)[at, labels].mean()  # noqa: E731  # a scalar's function
    found: Any = minimize_scalar(nll, bounds=(-8, 8), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def erase(features: np.ndarray, concept: np.ndarray) -> Erasure:
    """Of features `[N, D]` and a concept `[N]` (classes) or `[N, K]` (numbers).

    Raises:
        ShapeError, NonFiniteError. DataError: fewer than two classes.
    """
    x, z = np.asarray(features, np.float64), np.asarray(concept)
    if x.ndim != 2 or z.shape[:1] != x.shape[:1] or z.ndim not in (1, 2) or not len(x):
        raise ShapeError(
            f"features {list(x.shape)} and a concept {list(z.shape)} arrived; [N, D], and [N] or [N, K] fit"
        )
    if z.ndim == 1:
        names = np.unique(z)
        if len(names) < 2:
            raise DataError(f"{len(names)} class of the concept arrived; two at least were wanted")
        z = (z[:, None] == names[None]).astype(np.float64)
    if not np.isfinite(x).all() or not np.isfinite(z.astype(np.float64)).all():
        raise NonFiniteError("features or the concept hold NaN or infinity; clean the rows")
    mean = x.mean(0)
    away, apart = x - mean, z - z.mean(0)
    values, vectors = np.linalg.eigh(away.T @ away / len(x))
    open_ = values > FLAT * values[-1]
    root = np.sqrt(values[open_])
    whiten, colour = vectors[:, open_] / root, (vectors[:, open_] * root).T  # x -> white, and back
    u, sizes, _ = np.linalg.svd(whiten.T @ (away.T @ apart / len(x)), full_matrices=False)
    kept = u[:, sizes > 1e-9 * max(sizes[0], 1e-300)] if sizes[0] > 1e-12 else u[:, :0]
    return Erasure(mean, whiten @ kept @ kept.T @ colour, kept.shape[1])


def erased(features: np.ndarray, made: Erasure) -> np.ndarray:
    """`[N, D]` without the concept."""
    x = np.asarray(features, np.float64)
    return x - (x - made.mean) @ made.change


def _scores(scores: Any, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, groups = np.asarray(scores, np.float64), np.asarray(groups)
    if scores.ndim != 1 or groups.shape != scores.shape or not len(scores):
        raise ShapeError(
            f"scores {list(scores.shape)} and groups {list(groups.shape)} arrived; [N] and [N] were wanted"
        )
    if not np.isfinite(scores).all():
        raise NonFiniteError(f"the score of row {int(np.flatnonzero(~np.isfinite(scores))[0])} is NaN or infinite")
    return scores, groups
