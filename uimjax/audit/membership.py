"""Weaknesses 5 and 8 by what a model says of texts: was a row in the training set, and is it known by heart.

Of a row with the log-probabilities log p_t of its tokens, nats; every score rises with membership:

- `loss`: mean_t log p_t; `min_k`: the mean of the lowest share k of them (Shi et al. 2023, arXiv 2310.16789);
- `min_k_plus`: the same of (log p_t - mu_t) / sigma_t, mu and sigma the mean and standard deviation of log p over the
  vocabulary at t (Zhang et al. 2024, arXiv 2404.02936);
- `compressed`: sum_t log p_t by bytes of the zlib-compressed text; `against`: mean log p less that of another model;
- `lira`: log of the likelihood ratio of the scaled confidence log(p / (1 - p)) under Gaussians of models trained with
  and without the row; of the `fixed` variant one spread serves all rows (Carlini et al. 2022, arXiv 2112.03570).

Memorization (open-unlearning's definitions): `exact`, the share of tokens that are the likeliest given the true ones
before; `extraction`, 1 - k / n with k the length of the shortest prefix from which every later token is the likeliest.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, NonFiniteError, ShapeError, UsageError

SHARE = 0.2  # of the tokens, for min_k
LEAST = 1e-6  # of a variance, as the reference code takes it


class Told(NamedTuple):
    """How well a score tells members: `auroc`; `tpr` at the false-positive rate `fpr`; both by ranks, ties halved."""

    auroc: float
    tpr: float
    fpr: float


def loss(log_p: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """`[N]` of log-probabilities `[N, T]` and which of them count."""
    log_p, counted = _tokens(log_p, counted)
    return np.where(counted, log_p, 0).sum(1) / counted.sum(1)


def min_k(log_p: np.ndarray, counted: np.ndarray, share: float = SHARE) -> np.ndarray:
    """`[N]`: the mean of the `share` of each row's tokens that are the least likely, one at least.

    Raises:
        ShapeError, NonFiniteError. DataError: a row without tokens. UsageError: a share outside of (0, 1].
    """
    log_p, counted = _tokens(log_p, counted)
    if not 0 < share <= 1:
        raise UsageError(f"share={share} arrived; above 0 and at most 1 was wanted")
    rising = np.sort(np.where(counted, log_p, np.inf), axis=1)
    many = np.maximum((share * counted.sum(1)).astype(int), 1)
    kept = np.arange(log_p.shape[1])[None] < many[:, None]
    return np.where(kept, rising, 0).sum(1) / many


def min_k_plus(
    log_p: np.ndarray, mean: np.ndarray, variance: np.ndarray, counted: np.ndarray, share: float = SHARE
) -> np.ndarray:
    """As `min_k`, of log-probabilities standardised by their mean and variance over the vocabulary, `[N, T]` each."""
    log_p, counted = _tokens(log_p, counted)
    if mean.shape != log_p.shape or variance.shape != log_p.shape:
        raise ShapeError(f"mean {list(mean.shape)} and variance {list(variance.shape)} arrived for {list(log_p.shape)}")
    scaled = (log_p - mean) / np.sqrt(np.maximum(variance, LEAST))
    return min_k(np.where(counted, scaled, 0.0), counted, share)


def compressed(log_p: np.ndarray, counted: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """`[N]`: nats by bytes of the compressed text."""
    log_p, counted = _tokens(log_p, counted)
    if len(texts) != len(log_p):
        raise ShapeError(f"{len(texts)} texts arrived for {len(log_p)} rows; one each was wanted")
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts])
    return np.where(counted, log_p, 0).sum(1) / sizes


def against(log_p: np.ndarray, other: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """`[N]`: how much likelier a row is than to a reference model, nats a token."""
    return loss(log_p, counted) - loss(other, counted)


def lira(scores: np.ndarray, member: np.ndarray, target: np.ndarray, fixed: bool = False) -> np.ndarray:
    """`[N]` log likelihood ratios of the `target`'s scaled confidences `[N]`, from those of S shadow models `[S, N]`
    and which rows each was trained on, `[S, N]` bool.

    Raises:
        ShapeError, NonFiniteError. DataError: a row that fewer than two shadow models saw, or fewer than two did not.
    """
    scores, member, target = np.asarray(scores, np.float64), np.asarray(member, bool), np.asarray(target, np.float64)
    if scores.ndim != 2 or member.shape != scores.shape or target.shape != scores.shape[1:]:
        raise ShapeError(f"scores {list(scores.shape)}, member {list(member.shape)} and target {list(target.shape)} "
                         "arrived; [S, N], [S, N] and [N] were wanted")  # fmt: skip
    if not np.isfinite(scores).all() or not np.isfinite(target).all():
        raise NonFiniteError("confidences hold NaN or infinity; clip p to (0, 1) before the logarithm")
    few = np.flatnonzero((member.sum(0) < 2) | ((~member).sum(0) < 2))
    if len(few):
        raise DataError(f"row {few[0]} was in {member[:, few[0]].sum()} of {len(member)} shadow models; two with it "
                        "and two without were wanted: train more of them")  # fmt: skip
    found = np.zeros(len(target))
    for inside, sign in ((member, 1.0), (~member, -1.0)):
        held = np.where(inside, scores, np.nan)
        mean, spread = np.nanmean(held, 0), np.nanstd(held, 0)
        spread = np.full(len(mean), np.sqrt(np.nanmean((held - mean) ** 2))) if fixed else spread
        spread = np.maximum(spread, 1e-12)
        found += sign * (-(((target - mean) / spread) ** 2) / 2 - np.log(spread))
    return found


def told(score: np.ndarray, member: np.ndarray, fpr: float = 0.001) -> Told:
    """How well scores `[N]` tell the members `[N]` bool.

    Raises:
        ShapeError, NonFiniteError. DataError: no members, or nothing else. UsageError: an fpr outside of [0, 1].
    """
    from sklearn.metrics import roc_auc_score

    score, member = np.asarray(score, np.float64), np.asarray(member, bool)
    if score.ndim != 1 or member.shape != score.shape:
        raise ShapeError(f"scores {list(score.shape)} and member {list(member.shape)} arrived; [N] and [N] were wanted")
    if not np.isfinite(score).all():
        raise NonFiniteError(f"the score of row {int(np.flatnonzero(~np.isfinite(score))[0])} is NaN or infinite")
    if member.all() or not member.any():
        raise DataError(f"{int(member.sum())} of {len(member)} rows are members; some of both were wanted")
    if not 0 <= fpr <= 1:
        raise UsageError(f"fpr={fpr} arrived; a share in 0..1 was wanted")
    falling = np.sort(score[~member])[::-1]
    allowed = int(fpr * len(falling))
    bar = falling[allowed] if allowed < len(falling) else -np.inf  # a score above it takes `allowed` others at most
    return Told(float(roc_auc_score(member, score)), float(np.mean(score[member] > bar)), fpr)


def exact(right: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """`[N]`: the share of counted tokens that are the likeliest, of `right` `[N, T]` bool."""
    right, counted = _flags(right, counted)
    return (right & counted).sum(1) / counted.sum(1)


def extraction(right: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """`[N]` extraction strength: 1 where all is told from the start, 0 where the last token is not."""
    right, counted = _flags(right, counted)
    found = np.zeros(len(right))
    for i, (row, kept) in enumerate(zip(right, counted, strict=True)):
        wrong = np.flatnonzero(~row[kept])
        found[i] = 1 - (wrong[-1] + 1 if len(wrong) else 0) / kept.sum()
    return found


def _tokens(log_p: Any, counted: Any) -> tuple[np.ndarray, np.ndarray]:
    log_p, counted = np.asarray(log_p, np.float64), np.asarray(counted, bool)
    _check(log_p, counted)
    if not np.isfinite(log_p[counted]).all():
        at = int(np.argwhere(~np.isfinite(np.where(counted, log_p, 0)))[0][0])
        raise NonFiniteError(f"row {at} holds log-probabilities that are NaN or infinite")
    return log_p, counted


def _flags(right: Any, counted: Any) -> tuple[np.ndarray, np.ndarray]:
    right, counted = np.asarray(right, bool), np.asarray(counted, bool)
    _check(right, counted)
    return right, counted


def _check(values: np.ndarray, counted: np.ndarray) -> None:
    if values.ndim != 2 or counted.shape != values.shape:
        raise ShapeError(
            f"values {list(values.shape)} and counted {list(counted.shape)} arrived; [N, T] and [N, T] fit"
        )
    empty = np.flatnonzero(~counted.any(1))
    if len(empty):
        raise DataError(f"row {empty[0]} counts no token; leave rows without any out")
