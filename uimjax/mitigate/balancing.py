"""Deep feature reweighting (DFR; Kirichenko et al. 2022, arXiv 2204.02937): the last layer again, on balanced groups.

Features are standardised. Of the held-out rows, balanced by dropping rows of the larger groups, one half fits logistic
regressions with an L1 penalty and the other chooses the strength by its worst group; then `refits` regressions of that
strength, each on a fresh balanced draw of all held-out rows, are averaged.
"""

from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, NonFiniteError, ShapeError, UsageError

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # C of the paper's code
REFITS = 20


class Reweighted(NamedTuple):
    """`logits = (F - mean) / scale W + b`, `w` `[D, C]`, `b` `[C]`; `strength`: the C that was chosen; `worst` `[S]`:
    the accuracy of the worst group that each of the strengths had."""

    mean: np.ndarray
    scale: np.ndarray
    w: np.ndarray
    b: np.ndarray
    strength: float
    worst: np.ndarray


def dfr(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, strengths: tuple[float, ...] = STRENGTHS,
    refits: int = REFITS, seed: int = 0,
) -> Reweighted:  # fmt: skip
    """Fit to held-out features `[N, D]`, labels and groups `[N]`.

    Raises:
        ShapeError, NonFiniteError. UsageError: strengths or refits below what makes sense. DataError: fewer than two
            classes, or a group of fewer than two rows, or a class that lacks in the balanced halves.
    """
    x, labels, groups = _checked(features, labels, groups)
    if refits < 1 or not strengths or min(strengths) <= 0:
        raise UsageError(f"refits={refits}, strengths={strengths} arrived; 1 and more, each above 0, were wanted")
    mean, scale = x.mean(0), x.std(0)
    x = (x - mean) / np.where(scale > 0, scale, 1.0)
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    kept = balanced(groups, rng)
    one, two = kept[::2], kept[1::2]  # shuffled within groups, which stand one after the other
    worst = np.array([_worst(_fit(x[one], labels[one], c), x[two], labels[two], groups[two]) for c in strengths])
    strength = float(strengths[int(np.argmax(worst))])
    made = [_fit(x[at], labels[at], strength) for at in (balanced(groups, rng) for _ in range(refits))]
    w, b = (np.mean([_wide(its, classes)[k] for its in made], axis=0) for k in range(2))
    return Reweighted(mean, np.where(scale > 0, scale, 1.0), w, b, strength, worst)


def logits(head: Reweighted, features: np.ndarray) -> np.ndarray:
    """`[N, C]`, classes in their order."""
    return (np.asarray(features, np.float64) - head.mean) / head.scale @ head.w + head.b


def balanced(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row ids with as many of each group as the smallest has, drawn at random, group after group."""
    names, counts = np.unique(groups, return_counts=True)
    return np.concatenate([rng.permutation(np.flatnonzero(groups == g))[: counts.min()] for g in names])


def worst_group(predicted: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """The accuracy of the group that has the lowest."""
    return min(float(np.mean(predicted[groups == g] == labels[groups == g])) for g in np.unique(groups))


def _fit(x: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    two = len(np.unique(labels)) == 2
    solver: Any = "liblinear" if two else "saga"
    made = LogisticRegression(C=strength, l1_ratio=1.0, solver=solver, random_state=0, max_iter=100 if two else 5000)
    return made.fit(x, labels)


def _worst(made: Any, x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    return worst_group(made.predict(x), labels, groups)


def _wide(made: Any, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(W `[D, C]`, b `[C]`); of two classes, of which scikit-learn keeps the second alone, the first has zeros."""
    if len(made.classes_) != len(classes):
        raise DataError(f"a balanced draw holds {len(made.classes_)} of {len(classes)} classes; groups of one class "
                        "each, with more rows, were wanted")  # fmt: skip
    w, b = made.coef_.T, made.intercept_
    if len(classes) == 2:
        return np.concatenate([np.zeros_like(w), w], 1), np.concatenate([np.zeros(1), b])
    return w, b


def _checked(features: Any, labels: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, labels, groups = np.asarray(features, np.float64), np.asarray(labels), np.asarray(groups)
    if x.ndim != 2 or labels.shape != x.shape[:1] or groups.shape != labels.shape:
        raise ShapeError(f"features {list(x.shape)}, labels {list(labels.shape)} and groups {list(groups.shape)} "
                         "arrived; [N, D], [N] and [N] were wanted")  # fmt: skip
    if not np.isfinite(x).all():
        raise NonFiniteError(f"the features of row {int(np.argwhere(~np.isfinite(x))[0][0])} are NaN or infinite")
    names, counts = np.unique(groups, return_counts=True)
    if len(np.unique(labels)) < 2 or counts.min() < 2:
        few = names[counts.argmin()]
        raise DataError(f"{len(np.unique(labels))} classes arrived, and group {few} has {counts.min()} rows; two "
                        "classes and two rows a group at least were wanted")  # fmt: skip
    return x, labels, groups
