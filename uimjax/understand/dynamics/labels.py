"""Labels that look wrong: the threshold class of AUM, and confident learning."""

import importlib
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.understand.dynamics.table import Table

FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given",
           "low_normalized_margin", "low_self_confidence")  # fmt: skip
SLACK = 1e-6  # cleanlab's: of comparisons with a threshold and with the label's own probability
LEAST = 2e-6  # cleanlab's smallest threshold
TIES: Any = "stable"  # cleanlab leaves them to NumPy's default, whose answer depends on the processor (AVX-512)
SUM = 1e-3  # how far a row of probabilities may sum from 1


class Indicators(NamedTuple):
    """`ids` `[K]` of the threshold samples, and `labels` `[N]` to train on: theirs are C, a class of their own."""

    ids: np.ndarray
    labels: np.ndarray


class Threshold(NamedTuple):
    """`value`: an AUM; `ids` of the examples at or below it, most suspicious first, with their AUM `values`."""

    value: float
    ids: np.ndarray
    values: np.ndarray


class Issues(NamedTuple):
    """`ids` of the flagged, of the lowest p_y first; `mask` `[N]`; `suggested` `[N]`, the largest probability's class;
    `wrong`: the estimated number of wrong labels; `thresholds` t `[C]`; `joint` `[C, C]`, rows given, columns true
    labels, calibrated to sum to N; `scores` `[N]` by name, each low for a suspicious label."""

    ids: np.ndarray
    mask: np.ndarray
    suggested: np.ndarray
    wrong: int
    thresholds: np.ndarray
    joint: np.ndarray
    scores: dict[str, np.ndarray]


def indicator_labels(labels: Any, classes: int, seed: int = 0, ids: Any = None, besides: Any = ()) -> Indicators:
    """Threshold samples of the AUM paper (Pleiss et al. 2020, arXiv 2001.10528, section 4.2): N / (C + 1) examples,
    drawn at random, get the label C, a class that means nothing; train a network of C + 1 classes on `labels`.

    `labels` `[N]` in 0..C-1. `ids` `[N]` names the examples (0..N-1). `besides`: ids that are not drawn, as those of
    a first run: with both runs each example is judged once as itself.

    Raises:
        DataError: a label out of range. UsageError: too few examples. ShapeError.
    """
    labels = np.array(labels)
    names = np.arange(len(labels)) if ids is None else np.asarray(ids)
    if labels.ndim != 1 or names.shape != labels.shape:
        raise ShapeError(f"labels {list(labels.shape)} and ids {list(names.shape)} arrived; [N] and [N] fit")
    _check_labels(labels, classes)
    open_ = np.flatnonzero(~np.isin(names, np.asarray(besides)))
    many = len(labels) // (classes + 1)
    if not 0 < many <= len(open_):
        raise UsageError(
            f"{len(open_)} of {len(labels)} examples may be drawn; {many} = N / (C + 1) and at least 1 fit"
        )
    drawn = np.sort(np.random.default_rng(seed).choice(open_, many, replace=False))
    labels[drawn] = classes
    return Indicators(names[drawn], labels)


def threshold(aum: Any, indicator_ids: Any, percentile: float = 99.0, ids: Any = None) -> Threshold:
    """The `percentile` of the AUM of threshold samples, and the other examples at or below it, which look mislabelled
    (arXiv 2001.10528, section 4.2; 99 is the paper's). `aum`: a table, or values `[N]` with their `ids` (0..N-1).

    Raises:
        UnknownNameError: the table has no AUM. UsageError: an indicator that is not there or was never met, or a
            percentile outside 0..100.
    """
    if isinstance(aum, Table):
        if "aum" not in aum.scores:
            raise UnknownNameError("score", "aum", aum.scores)
        names, values = aum.ids, aum.scores["aum"].values
    else:
        values = np.asarray(aum, np.float64)
        names = np.arange(len(values)) if ids is None else np.asarray(ids)
    if not 0 <= percentile <= 100:
        raise UsageError(f"percentile={percentile} arrived; 0 to 100 was wanted")
    wanted = np.asarray(indicator_ids)
    absent = wanted[~np.isin(wanted, names)]
    if not len(wanted) or len(absent):
        told = f"indicator {absent[0]} is no id of the table" if len(absent) else "no indicators arrived"
        raise UsageError(f"{told}; give the ids of indicator_labels")
    inside = np.isin(names, wanted)
    unmet = np.flatnonzero(inside & np.isnan(values))
    if len(unmet):
        raise UsageError(f"indicator {names[unmet[0]]} was never met; the run should have trained on all of them")
    value = float(np.percentile(values[inside], percentile))
    below = np.flatnonzero(~inside & (values <= value))
    below = below[np.argsort(values[below], kind="stable")]
    return Threshold(value, names[below], values[below])


def quality(labels: Any, probabilities: Any) -> dict[str, np.ndarray]:
    """Scores of labels `[N]` by probabilities `[N, C]`, low for suspicious ones (Northcutt et al. 2021, arXiv
    1911.00068; Kuan and Mueller 2022): `self_confidence` p_y; `normalized_margin` (p_y - max_{k != y} p_k + 1) / 2;
    `confidence_weighted_entropy` log(s + 1) / s, s = (H / log C) / p_y, 1 where s is 0 (cleanlab's is 0 there).

    Raises:
        ShapeError, DataError, NonFiniteError
    """
    labels, p = _checked(labels, probabilities)
    at = np.arange(len(labels)), labels
    others = p.copy()
    others[at] = -np.inf
    entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=1) / np.log(p.shape[1])
    s = entropy / np.maximum(p[at], SLACK)
    weighted = np.where(s > 0, np.log(s + 1) / np.where(s > 0, np.maximum(s, SLACK), 1), 1.0)
    return {
        "self_confidence": p[at],
        "normalized_margin": (p[at] - others.max(1) + 1) / 2,
        "confidence_weighted_entropy": weighted,
    }


def label_issues(
    labels: Any, probabilities: Any, ids: Any = None, filter_by: str = "prune_by_noise_rate", through: str = "own"
) -> Issues:
    """Confident learning (Northcutt et al. 2021, arXiv 1911.00068) from labels `[N]` and out-of-sample probabilities
    `[N, C]`.

    Thresholds t_k: the mean of p_k over the examples labelled k. An example counts as truly k where p_k >= t_k; of
    several such k, as its largest. `joint[j, k]`: how many labelled j count as k, rows scaled to the numbers of labels.
    `wrong`: those that count as another class than their label, which is not their largest either. `filter_by`, as in
    cleanlab: "prune_by_noise_rate" flags for each pair j, k the joint[j, k] examples of largest p_k - p_j,
    "prune_by_class" the lowest p_y of each class, "both" those of both, "confident_learning" those that are counted,
    "predicted_neq_given" all whose largest is another, "low_normalized_margin" and "low_self_confidence" the `wrong`
    lowest scores. `through="cleanlab"` asks cleanlab itself, where it is installed: the same, but for ties in rounding
    the joint, where its answer depends on the processor.

    Raises:
        UnknownNameError: no such filter or way. UsageError: cleanlab is not installed. ShapeError, NonFiniteError.
        DataError: a label out of range, or what is no probability, with its row.
    """
    if filter_by not in FILTERS:
        raise UnknownNameError("filter", filter_by, FILTERS)
    if through not in ("own", "cleanlab"):
        raise UnknownNameError("way", through, ("own", "cleanlab"))
    labels, p = _checked(labels, probabilities)
    names = np.arange(len(labels)) if ids is None else np.asarray(ids)
    if names.shape != labels.shape:
        raise ShapeError(f"ids {list(names.shape)} arrived for {len(labels)} labels; one each was wanted")
    made = quality(labels, p)
    found = _by_cleanlab(labels, p, filter_by) if through == "cleanlab" else _own(labels, p, filter_by, made)
    mask, count, thresholds, joint = found
    flagged = np.flatnonzero(mask)
    flagged = flagged[np.argsort(made["self_confidence"][flagged], kind="stable")]
    return Issues(names[flagged], mask, p.argmax(1), count, thresholds, joint, made)


def _own(labels: np.ndarray, p: np.ndarray, filter_by: str, made: dict[str, np.ndarray]) -> tuple[Any, ...]:
    classes = p.shape[1]
    counts = np.bincount(labels, minlength=classes)
    means = np.array([p[labels == k, k].mean() if counts[k] else np.inf for k in range(classes)])  # nobody counts as it
    thresholds = np.maximum(means, LEAST)
    above = p >= thresholds - SLACK
    guess = np.where(above.sum(1) > 1, p.argmax(1), above.argmax(1))
    sure = above.any(1)
    joint = np.zeros((classes, classes), int, order="F")  # as cleanlab's lies: sums of floats hang on it
    np.add.at(joint, (labels[sure], guess[sure]), 1)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    joint = _calibrated(joint, counts)
    eased = p.copy()
    eased[np.arange(len(p)), labels] += SLACK
    other = eased.argmax(1) != labels
    counted = sure & (guess != labels) & other
    count = int(counted.sum())
    if filter_by in ("low_normalized_margin", "low_self_confidence"):
        mask = np.zeros(len(p), bool)
        mask[np.argsort(made[filter_by[4:]], kind="stable")[:count]] = True
        return mask, count, thresholds, joint
    if filter_by in ("confident_learning", "predicted_neq_given"):
        return counted if filter_by == "confident_learning" else other, count, thresholds, joint
    mask = np.ones(len(p), bool)
    pruned = _pruned(joint)
    if filter_by in ("prune_by_noise_rate", "both"):
        mask &= _by_rate(labels, p, pruned)
    if filter_by in ("prune_by_class", "both"):
        mask &= _by_class(labels, p, pruned)
    return mask & other, count, thresholds, joint


def _calibrated(joint: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows that sum to the numbers of labels, in whole numbers."""
    scaled = (joint.T / np.maximum(joint.sum(1), 1) * counts).T
    return np.stack([_rounded(row) for row in scaled / np.sum(scaled) * counts.sum()])


def _rounded(row: np.ndarray) -> np.ndarray:
    """Whole numbers of the same sum: those that rounding moved furthest are moved back, by one each."""
    whole = row.round()
    while (short := int(round(row.sum()) - whole.sum())) != 0:
        step = 1 if short > 0 else -1
        order = np.argsort(row - whole, kind=TIES)[::-step]
        whole[order[: abs(short)]] += step
    return whole.astype(int)


def _pruned(joint: np.ndarray) -> np.ndarray:
    """How many examples of each pair (true, given) are flagged: each given class keeps one example at least, taken off
    its other entries evenly."""
    matrix = joint.T.astype(float)
    diagonal = matrix.diagonal()
    kept = np.maximum(diagonal, 1)
    spread = (kept - diagonal) / np.maximum(np.count_nonzero(matrix, axis=0) - 1.0, 1.0)
    matrix = np.maximum(matrix - spread, 0)
    np.fill_diagonal(matrix, kept)
    return matrix.astype(int)


def _by_rate(labels: np.ndarray, p: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(labels), bool)
    for given in range(p.shape[1]):
        rows = np.flatnonzero(labels == given)
        for true in range(p.shape[1]):
            if true != given and len(rows) > 1:
                order = np.argsort(p[rows, given] - p[rows, true], kind="stable")
                mask[rows[order[: pruned[true, given]]]] = True
    return mask


def _by_class(labels: np.ndarray, p: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(labels), bool)
    for given in range(p.shape[1]):
        rows = np.flatnonzero(labels == given)
        if len(rows) > 1:
            order = np.argsort(p[rows, given], kind="stable")
            mask[rows[order[: max(len(rows) - pruned[given, given], 0)]]] = True
    return mask


def _by_cleanlab(labels: np.ndarray, p: np.ndarray, filter_by: str) -> tuple[Any, ...]:
    try:
        counting, filtering = (importlib.import_module(f"cleanlab.{name}") for name in ("count", "filter"))
    except ImportError as error:
        raise UsageError("cleanlab is not installed: pip install cleanlab, or take through='own'") from error
    mask = filtering.find_label_issues(labels, p, filter_by=filter_by, n_jobs=1)
    thresholds = np.asarray(counting.get_confident_thresholds(labels, p))
    joint = np.asarray(counting.compute_confident_joint(labels, p))
    return np.asarray(mask), int(counting.num_label_issues(labels, p)), thresholds, joint


def _checked(labels: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or p.shape[1] < 2 or labels.shape != p.shape[:1]:
        raise ShapeError(f"labels {list(labels.shape)} and probabilities {list(p.shape)} arrived; [N] and [N, C] fit")
    if not np.isfinite(p).all():
        raise NonFiniteError(
            f"probabilities of row {int(np.flatnonzero(~np.isfinite(p).all(1))[0])} are NaN or infinite"
        )
    odd = np.flatnonzero((p < 0).any(1) | (p > 1).any(1) | (np.abs(p.sum(1) - 1) > SUM))
    if len(odd):
        raise DataError(
            f"row {odd[0]}: {p[odd[0]].tolist()} are no probabilities, which lie in 0..1 and sum to 1; of logits take "
            "the softmax"
        )
    _check_labels(labels, p.shape[1])
    return labels.astype(np.int64), p


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if not len(labels):
        raise DataError("no labels arrived; one for each example was wanted")
    if labels.dtype.kind not in "iu" or (labels < 0).any() or (labels >= classes).any():
        whole = labels.dtype.kind in "iu"
        at = int(np.flatnonzero((labels < 0) | (labels >= classes))[0]) if whole else 0
        raise DataError(f"row {at}: label {labels[at]!r} arrived; whole numbers in 0..{classes - 1} were wanted")
