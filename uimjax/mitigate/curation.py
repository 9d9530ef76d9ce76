"""Curation: which rows to train on, by what they are like, by what they repeat, by whom they serve.

- `dsir`: hashed 1- and 2-grams of words in buckets; a text's log importance is the sum over its grams of
  log (p_target(bucket) / p_raw(bucket)); so many are drawn without replacement, with those weights (Xie et al. 2023,
  arXiv 2302.03169).
- `semantic_duplicates`: k-means of features of length 1; of rows of one cluster whose cosine is above 1 - epsilon the
  one farthest from the centre stays (Abbas et al. 2023, arXiv 2303.09540).
- `group_support`: D3M's g_i = mean over groups of loss_g times the mean over the group's rows z of support_i(z),
  support the sign-flipped score of this engine; rows with g_i < 0 harm most whom the model fails most, and are to go
  (Jain et al. 2024, arXiv 2406.16846).
- `culprit_tokens`: of scores by token those above a quantile, with their neighbours, up to a share of all; in tuning
  their loss counts against itself (IF-Guide: Coalson et al. 2025, arXiv 2506.01790).
- `mixture`: DoReMi's weights of domains, w <- (1 - smooth) softmax(log w + eta excess) + smooth / k, and their mean
  over steps (Xie et al. 2023, arXiv 2305.10429).
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from uimjax.errors import DataError, NonFiniteError, ShapeError, UsageError

BUCKETS = 10_000
FLOOR = 1e-8  # of a bucket's probability, as the reference code adds
WORDS = re.compile(r"\w+|[^\w\s]+")


class Selected(NamedTuple):
    """`rows` `[K]`, rising, and the log importance `[N]` of every text: a sum over its grams, so that of texts that
    are alike the longer weigh more, and of others less."""

    rows: np.ndarray
    importance: np.ndarray


def grams(text: str, buckets: int = BUCKETS) -> np.ndarray:
    """Buckets of the words and pairs of words of a text, lower case, one entry each."""
    words = WORDS.findall(text.lower())
    pairs = [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
    return np.array([xxhash.xxh32_intdigest(gram.encode()) % buckets for gram in (*words, *pairs)], np.int64)


def dsir(raw: Sequence[str], target: Iterable[str], count: int, buckets: int = BUCKETS, seed: int = 0) -> Selected:
    """Choose `count` of the `raw` texts that are like the `target` ones.

    Raises:
        UsageError: more texts wanted than there are, or fewer than one. DataError: no word in the target texts.
    """
    if not 0 < count <= len(raw):
        raise UsageError(f"{count} of {len(raw)} texts were asked for; 1 to {len(raw)} can be chosen")
    wanted, whole = (_counts(texts, buckets) for texts in (target, raw))
    if not wanted.sum():
        raise DataError("the target texts hold no word; give texts that the model should do well on")
    ratio = np.log(wanted / wanted.sum() + FLOOR) - np.log(whole / max(whole.sum(), 1) + FLOOR)
    importance = np.array([ratio[grams(text, buckets)].sum() for text in raw])  # read twice, nothing is held
    noise = np.random.default_rng(seed).gumbel(size=len(raw))
    return Selected(np.sort(np.argsort(-(importance + noise), kind="stable")[:count]), importance)


def _counts(texts: Iterable[str], buckets: int) -> np.ndarray:
    found = np.zeros(buckets, np.int64)
    for text in texts:
        np.add.at(found, grams(text, buckets), 1)
    return found


def semantic_duplicates(
    features: np.ndarray, epsilon: float = 0.05, clusters: int | None = None, seed: int = 0
) -> np.ndarray:
    """Rows `[K]`, rising, that repeat another one by their features `[N, D]`; `clusters`: default sqrt(N).

    Raises:
        ShapeError, NonFiniteError. UsageError: epsilon outside of (0, 1), or clusters outside of 1..N.
    """
    from sklearn.cluster import KMeans

    x = np.asarray(features, np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ShapeError(f"features {list(x.shape)} arrived; [N, D] was wanted")
    if not np.isfinite(x).all():
        raise NonFiniteError(f"the features of row {int(np.argwhere(~np.isfinite(x))[0][0])} are NaN or infinite")
    clusters = max(1, round(len(x) ** 0.5)) if clusters is None else clusters
    if not 0 < epsilon < 1 or not 1 <= clusters <= len(x):
        raise UsageError(f"epsilon={epsilon}, clusters={clusters} arrived; (0, 1), and 1 to {len(x)} were wanted")
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    made = KMeans(clusters, random_state=seed, n_init="auto").fit(x)
    gone = []
    for k in range(clusters):
        here = np.flatnonzero(made.labels_ == k)
        far = here[np.argsort(x[here] @ made.cluster_centers_[k], kind="stable")]  # the farthest first
        alike = np.triu(x[far] @ x[far].T > 1 - epsilon, 1)
        gone.append(far[alike.any(0)])
    return np.sort(np.concatenate(gone))


def group_support(scores: np.ndarray, groups: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """D3M's g `[N]` from scores `[N, Q]` of this engine, in which a positive one raises the loss of query z (support is
    their negative), the queries' groups `[Q]` and their losses `[Q]`. The lowest, below 0, are to go.

    Raises:
        ShapeError, NonFiniteError
    """
    scores, groups, losses = np.asarray(scores, np.float64), np.asarray(groups), np.asarray(losses, np.float64)
    if scores.ndim != 2 or groups.shape != scores.shape[1:] or losses.shape != groups.shape or not len(groups):
        raise ShapeError(f"scores {list(scores.shape)}, groups {list(groups.shape)} and losses {list(losses.shape)} "
                         "arrived; [N, Q], [Q] and [Q] were wanted")  # fmt: skip
    if not np.isfinite(scores).all() or not np.isfinite(losses).all():
        raise NonFiniteError("scores or losses hold NaN or infinity")
    each = [losses[groups == g].mean() * -scores[:, groups == g].mean(1) for g in np.unique(groups)]
    return np.mean(each, axis=0)


def mixture(excess: np.ndarray, eta: float = 1.0, smooth: float = 1e-4) -> np.ndarray:
    """Weights `[k]` of domains from their excess losses `[T, k]` over a reference model, clipped at 0, step by step
    from equal ones.

    Raises:
        ShapeError, NonFiniteError. UsageError: eta not above 0, or smooth outside of [0, 1).
    """
    excess = np.asarray(excess, np.float64)
    if excess.ndim != 2 or 0 in excess.shape:
        raise ShapeError(f"excess losses {list(excess.shape)} arrived; [T, k] was wanted")
    if not np.isfinite(excess).all():
        raise NonFiniteError(f"the excess loss of step {int(np.argwhere(~np.isfinite(excess))[0][0])} is not finite")
    if not eta > 0 or not 0 <= smooth < 1:
        raise UsageError(f"eta={eta}, smooth={smooth} arrived; above 0, and [0, 1) were wanted")
    w, total = np.full(excess.shape[1], 1 / excess.shape[1]), np.zeros(excess.shape[1])
    for step in excess:
        w = moved(w, step, eta, smooth)
        total += w
    return total / len(excess)


def moved(weights: np.ndarray, excess: np.ndarray, eta: float = 1.0, smooth: float = 1e-4) -> np.ndarray:
    """Weights `[k]` of domains after one step of `mixture`."""
    log_w = np.log(weights) + eta * np.maximum(excess, 0)
    w = np.exp(log_w - log_w.max())
    return (1 - smooth) * w / w.sum() + smooth / len(w)


def culprit_tokens(
    scores: np.ndarray, counted: np.ndarray, quantile: float = 0.99, window: int = 1, most: float = 0.02
) -> np.ndarray:
    """`[N, T]` bool: the tokens that score above the `quantile` of all that count and above 0, the highest first, each
    with `window` neighbours on either side of its row, until the share `most` of the tokens that count is reached.

    Raises:
        ShapeError, NonFiniteError. UsageError: a share outside of (0, 1). DataError: no token scores above 0.
    """
    scores, counted = np.asarray(scores, np.float64), np.asarray(counted, bool)
    if scores.ndim != 2 or counted.shape != scores.shape or not counted.any():
        raise ShapeError(f"scores {list(scores.shape)} and counted {list(counted.shape)}, {counted.sum()} of which are "
                         "true, arrived; [N, T] twice, and one token that counts, were wanted")  # fmt: skip
    if not np.isfinite(scores[counted]).all():
        raise NonFiniteError("scores of tokens hold NaN or infinity")
    if not 0 < quantile < 1 or not 0 < most < 1 or window < 0:
        raise UsageError(f"quantile={quantile}, most={most}, window={window}: (0, 1) twice, 0 and more were wanted")
    line = max(float(np.quantile(scores[counted], quantile)), 0.0)
    places = np.argwhere(counted & (scores > line))
    if not len(places):
        raise DataError("no token scores above 0: none of them raises the failures")
    found, room, held = np.zeros(scores.shape, bool), max(1, int(most * counted.sum())), 0
    for i, t in places[np.argsort(-scores[tuple(places.T)], kind="stable")]:
        around = slice(max(0, t - window), t + window + 1)
        more = counted[i, around] & ~found[i, around]
        if held and held + more.sum() > room:
            break
        held += int(more.sum())
        found[i, around] |= more
    return found
