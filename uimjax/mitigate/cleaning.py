"""A linear head on frozen features `[N, D]`, once rows of its training data were cleaned.

- `relabelled`: rows that confident learning flags get the class that other rows' heads give them (Northcutt et al.
  2021, arXiv 1911.00068); probabilities are of heads that did not see the row, in `FOLDS` parts.
- `pruned`: rows go whose influence serves worst the groups that the head fails most: D3M's g below 0 (Jain et al. 2024,
  arXiv 2406.16846), by the inverse curvature of the head's own loss.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from uimjax.answers.classifiers import HEAD_TASK
from uimjax.errors import DataError, UsageError
from uimjax.interpret import methods
from uimjax.mitigate import curation, heads
from uimjax.mitigate.heads import Tuned, Tuning
from uimjax.task import Measurement
from uimjax.understand.dynamics import labels as issues

FOLDS = 5


def _mean_loss(params: Any, group: Any) -> Any:
    each = jax.vmap(HEAD_TASK.loss, (None, 0))(params, {name: group[name] for name in ("features", "label")})
    return jnp.sum(each * group["share"])


LOSS = Measurement("mean loss of a group", _mean_loss)


class Cleaned(NamedTuple):
    """A head, and the rows `[K]` of the training data that were changed or left out."""

    head: Tuned
    rows: np.ndarray


def relabelled(features: np.ndarray, labels: np.ndarray, classes: int, how: Tuning) -> Cleaned:
    """Raises: as `heads.tune` and `label_issues`; DataError: fewer rows of a class than there are parts."""
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < FOLDS:
        raise DataError(f"class {counts.argmin()} has {counts.min()} rows; {FOLDS} of each were wanted, as every "
                        "fifth is judged by the others")  # fmt: skip
    folds = _folds(labels, np.random.default_rng([how.seed, 31]))
    p = np.zeros((len(labels), classes))
    for k in range(FOLDS):
        here = folds == k
        made = heads.tune(features[~here], labels[~here], how, classes=classes)
        p[here] = softmax(heads.logits(made, features[here]).astype(np.float64), 1)
    found = issues.label_issues(labels, p / p.sum(1, keepdims=True))
    better = np.where(found.mask, found.suggested, labels)
    return Cleaned(heads.tune(features, better, how, classes=classes), np.flatnonzero(found.mask))


def _folds(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of each row; each class in equal parts."""
    found = np.zeros(len(labels), int)
    for label in np.unique(labels):
        ids = rng.permutation(np.flatnonzero(labels == label))
        found[ids] = np.arange(len(ids)) % FOLDS
    return found


def pruned(
    features: np.ndarray, labels: np.ndarray, asked: np.ndarray, asked_labels: np.ndarray, groups: np.ndarray,
    classes: int, how: Tuning,
) -> Cleaned:  # fmt: skip
    """`asked`, `asked_labels`, `groups`: rows that no head was fitted to, which tell whom it fails.

    Raises: as `heads.tune`; UsageError: all or too many rows of a class would go.
    """
    first = heads.tune(features, labels, how, classes=classes)
    params = _params(first)
    rows, names, queries = _rows(features, labels), np.unique(groups), _by_group(asked, asked_labels, groups)
    found = methods.score(HEAD_TASK, params, rows, LOSS, queries, "ekfac", each=True)
    losses = np.asarray(jax.vmap(LOSS.fun, (None, 0))(params, queries), np.float64)
    gone = np.flatnonzero(curation.group_support(found.values, names, losses) < 0)
    stay = np.setdiff1d(np.arange(len(labels)), gone)
    if len(np.unique(labels[stay])) < len(np.unique(labels)):
        raise UsageError(f"{len(gone)} of {len(labels)} rows harm the groups that the head fails, all of one class "
                         "among them; more rows of the groups were wanted")  # fmt: skip
    return Cleaned(heads.tune(features[stay], labels[stay], how, classes=classes), gone)


def _params(head: Tuned) -> dict[str, Any]:
    learned = head.params
    return {"kernel": learned["w"], "bias": learned["b"]}


def _by_group(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """A query a group, `[G, M, ...]` with M rows of the largest: scores are linear, so that of a mean loss is the mean
    of the scores, and no `[N, Q]` of them is held. `share`: 1 over the group's rows, 0 of padding."""
    ids = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    most = max(map(len, ids))
    at = np.stack([np.resize(its, most) for its in ids])
    share = np.stack([np.where(np.arange(most) < len(its), 1 / len(its), 0) for its in ids]).astype(np.float32)
    return _rows(features[at], labels[at]) | {"share": share}


def _rows(features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"features": np.asarray(features, np.float32), "label": np.asarray(labels, np.int32)}
