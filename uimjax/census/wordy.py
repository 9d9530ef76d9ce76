"""A classifier of texts that is trained on the spot: hashed words and pairs of words, logistic regression.

It serves two findings. Toxicity, from a labelled file of the reader's: the share of the sample that is flagged, and
what that says of it once the classifier's own errors are taken off, (q - fpr) / (tpr - fpr) (Rogan & Gladen 1978),
which holds where texts are as in that file: another classifier looks whether it can tell them apart.
And label noise, from the corpus's own labels: confident learning (Northcutt et al. 2021) of out-of-fold probabilities.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError

FOLDS = 5
DRAWS = 1000  # for an interval
UNLIKE = 0.9  # AUC, from which on labelled texts and a sample are of different kinds
COMPARED = 2000  # texts of either
APART = 0.2  # tpr - fpr, below which a classifier says nothing about a share
THRESHOLD = 0.5


class Learned(NamedTuple):
    """`model` of all rows; `held_out` `[N, C]`: probabilities of each row by a model that did not see it; `classes`."""

    model: Any
    held_out: np.ndarray
    classes: list[str]


def learn(texts: Sequence[str], labels: Sequence[str], seed: int, balanced: bool = False) -> Learned:
    """`balanced`: rows of rare classes count more, so that a probability is no share of what is there.

    Raises
        DataError: fewer than two classes, or one of fewer than five texts.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(y)
    if len(classes) < 2 or counts.min() < FOLDS:
        few = dict(zip(classes.tolist()[:5], counts.tolist(), strict=False))
        raise DataError(f"{len(classes)} classes, as {few}: two of {FOLDS} texts and more were wanted")  # fmt: skip
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    held_out = cross_val_predict(_made(balanced), list(texts), y, cv=folds, method="predict_proba")
    return Learned(_made(balanced).fit(list(texts), y), np.asarray(held_out), classes.tolist())


def _made(balanced: bool) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = HashingVectorizer(ngram_range=(1, 2), alternate_sign=False, n_features=1 << 18)
    return make_pipeline(
        words,
        TfidfTransformer(sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=300, class_weight="balanced" if balanced else None),
    )


def unlike(labelled: Sequence[str], sample: Sequence[str], seed: int) -> float:
    """AUC, 0.5 to 1, of telling the labelled texts from the sample; of `COMPARED` of either at most."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    texts, truth = [], []
    for side, its in enumerate((labelled, sample)):
        drawn = rng.permutation(len(its))[:COMPARED]
        texts += [its[k] for k in drawn]
        truth += [str(side)] * len(drawn)
    auc = float(roc_auc_score(np.array(truth) == "1", learn(texts, truth, seed).held_out[:, 1]))
    return max(auc, 1 - auc)


class Rate(NamedTuple):
    """`flagged`: share of the sample; `estimate` of the corpus, with its interval; None where it cannot be told."""

    flagged: float
    estimate: float | None
    low: float | None
    high: float | None
    tpr: float
    fpr: float


def prevalence(flagged: np.ndarray, toxic: np.ndarray, said: np.ndarray, seed: int = 0) -> Rate:
    """`flagged` `[n]` of the sample; `toxic`, `said` `[N]`: the truth of labelled rows, and what was said of them by a
    model that did not see them. The interval draws both anew."""
    rates = lambda t, s: (float(s[t].mean()), float(s[~t].mean()))  # noqa: E731  # (tpr, fpr)
    tpr, fpr = rates(toxic, said)
    q = float(flagged.mean())
    if tpr - fpr < APART:
        return Rate(q, None, None, None, tpr, fpr)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        yes, no = rng.binomial(toxic.sum(), tpr) / toxic.sum(), rng.binomial((~toxic).sum(), fpr) / (~toxic).sum()
        share = rng.binomial(len(flagged), q) / len(flagged)
        drawn.append((share - no) / (yes - no) if yes > no else 1.0)
    low, high = np.quantile(np.clip(drawn, 0, 1), [0.025, 0.975])
    return Rate(q, float(np.clip((q - fpr) / (tpr - fpr), 0, 1)), float(low), float(high), tpr, fpr)
