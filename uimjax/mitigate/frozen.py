"""Every way to tune what a model gives out, by its name: rows of features (or logits) in, a predictor out.

The model stays shut. What each method is, and where it is from: `heads`, `balancing`, `cleaning`, `afterwards`,
`blackbox`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import softmax

from uimjax.errors import DataError, UnknownNameError, UsageError
from uimjax.mitigate import afterwards, balancing, blackbox, cleaning, heads
from uimjax.mitigate.heads import SKD, NMTune, Tuning

Aim = Literal["accuracy", "worst_group", "worst_class", "nll", "parity", "told"]


class Rows(NamedTuple):
    """`inputs` `[N, D]`: features, or a black box's logits `[N, C]`; `labels` `[N]` from 0; `groups` `[N]` from 0;
    `views` `[N, D]`: features of another view of each row, for NMTune; `ids` `[N]`: their places in the file."""

    inputs: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    views: np.ndarray | None = None
    ids: np.ndarray | None = None

    def take(self, ids: np.ndarray) -> "Rows":
        some = lambda x: None if x is None else x[ids]  # noqa: E731  # one line, used twice
        return Rows(self.inputs[ids], self.labels[ids], some(self.groups), some(self.views), some(self.ids))


class Predicted(NamedTuple):
    """`logits` `[N, C]`, `decided` `[N]` classes, and the `features` `[N, D]` that the decision was made from."""

    logits: np.ndarray
    decided: np.ndarray
    features: np.ndarray


class Fitted(NamedTuple):
    """`predict(rows)` needs their groups where the method does; `arrays`: all that was learned; `found`: what a reader
    wants to know of it."""

    predict: Callable[[Rows], Predicted]
    arrays: dict[str, np.ndarray]
    found: dict[str, Any]


@dataclass(frozen=True)
class Choices:
    """`head`: how heads are tuned; `tau`: of adjusted logits; `eta`: of group DRO; `first`, `upweight`: of JTT; `goal`:
    of the thresholds; `queries`: of CMA-ES."""

    classes: int
    groups: int = 0
    logits: bool = False
    head: Tuning = Tuning()
    tau: float = 1.0
    eta: float = 0.01
    first: int = 5
    upweight: float = 20.0
    goal: Literal["parity", "opportunity"] = "parity"
    queries: int = 2000

    def tuning(self, seed: int, **more: Any) -> Tuning:
        return replace(self.head, seed=seed, **more)


class Method(NamedTuple):
    """`fit(train, held, choices, seed)`; `aim`: what it is for; `against`: the controls that it is held against;
    `groups`: rows have to have them; `after`: it takes a black box's logits too."""

    fit: Callable[[Rows, Rows, Choices, int], Fitted]
    aim: Aim
    against: tuple[str, ...] = ("linear",)
    groups: bool = False
    after: bool = False


def fit(name: str, train: Rows, held: Rows, how: Choices, seed: int = 0) -> Fitted:
    """Fit to `train`; what needs rows that no head was fitted to (DFR, a temperature, thresholds, CMA-ES) to `held`.

    Raises:
        UnknownNameError: no such method. UsageError: logits or no groups arrived, and it needs features or groups; as
            the method's own function.
    """
    its = get(name)
    if its.groups and (train.groups is None or held.groups is None):
        raise UsageError(f"{name} is about groups, and the rows have none; add a column or array of them")
    if how.logits and not its.after:
        known = ", ".join(n for n, m in METHODS.items() if m.after)
        raise UsageError(f"{name} fits a head to features, and logits arrived; of those take {known}")
    return its.fit(train, held, how, seed)


def get(name: str) -> Method:
    """Raises UnknownNameError."""
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]


# ---------------------------------------------------------------- heads


def _head(**more: Any) -> Callable[[Rows, Rows, Choices, int], Fitted]:
    def fit(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
        del held
        made = heads.tune(
            train.inputs, train.labels, how.tuning(seed, **more), classes=how.classes,
            views=train.views if isinstance(more.get("penalty"), NMTune) else None,
        )  # fmt: skip
        return _of_head(made)

    return fit


def _of_head(made: heads.Tuned, **found: Any) -> Fitted:
    arrays = {name: np.asarray(value) for name, value in {**made.params, **made.stats}.items()}
    return Fitted(lambda rows: _plain(heads.logits(made, rows.inputs), rows), arrays, found)


def _plain(logits: np.ndarray, rows: Rows) -> Predicted:
    return Predicted(logits, logits.argmax(1), rows.inputs)


def _adjusted(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    return _head(adjust=how.tau)(train, held, how, seed)


def _robust(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    del held
    made = heads.tune(
        train.inputs, train.labels, how.tuning(seed, robust=how.eta), classes=how.classes, groups=train.groups
    )
    return _of_head(made, weights_of_groups=made.groups.tolist())


def _jtt(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    del held
    made, wrong = heads.jtt(train.inputs, train.labels, how.tuning(seed), how.first, how.upweight, classes=how.classes)
    return _of_head(made, upweighted_rows=len(wrong))


def _dfr(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    del train
    assert held.groups is not None  # which `fit` has seen to
    if len(np.unique(held.labels)) < how.classes:
        raise DataError(f"the held-out rows have {len(np.unique(held.labels))} of {how.classes} classes; dfr is fitted "
                        "to them alone: hold out more rows")  # fmt: skip
    made = balancing.dfr(held.inputs, held.labels, held.groups, seed=seed)
    arrays = {name: getattr(made, name) for name in ("mean", "scale", "w", "b")}
    return Fitted(lambda rows: _plain(balancing.logits(made, rows.inputs), rows), arrays, {"strength": made.strength})


def _relabelled(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    del held
    made = cleaning.relabelled(train.inputs, train.labels, how.classes, how.tuning(seed))
    return _of_head(made.head, relabelled_rows=_places(train, made.rows))


def _pruned(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    assert held.groups is not None  # which `fit` has seen to
    asked = held.inputs, held.labels, held.groups
    made = cleaning.pruned(train.inputs, train.labels, *asked, how.classes, how.tuning(seed))
    return _of_head(made.head, dropped_rows=_places(train, made.rows))


def _places(rows: Rows, ids: np.ndarray) -> list[int]:
    """In the file that they came from."""
    return (ids if rows.ids is None else rows.ids[ids]).tolist()


def _erased(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    assert train.groups is not None
    made = afterwards.erase(train.inputs, train.groups)
    clean = lambda rows: rows._replace(inputs=afterwards.erased(rows.inputs, made).astype(np.float32))  # noqa: E731  # twice
    head = _head()(clean(train), held, how, seed)
    arrays = head.arrays | {"erase_mean": made.mean, "erase_change": made.change}
    return Fitted(lambda rows: head.predict(clean(rows)), arrays, {"rank": made.rank})


# ---------------------------------------------------------------- afterwards


def _base(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    """Logits as they are, or of a linear head."""
    if how.logits:
        return Fitted(lambda rows: _plain(np.asarray(rows.inputs), rows), {}, {})
    return _head()(train, held, how, seed)


def _temperature(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    base = _base(train, held, how, seed)
    t = afterwards.temperature(base.predict(held).logits, held.labels)
    predict = lambda rows: _plain(base.predict(rows).logits / t, rows)  # noqa: E731  # a method's own function
    return Fitted(predict, base.arrays | {"temperature": np.asarray(t)}, {"temperature": t})


def _thresholds(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    if how.classes != 2:
        raise UsageError(f"thresholds by group are of two classes (1 is the one to be given); there are {how.classes}")
    base = _base(train, held, how, seed)
    score = lambda rows: softmax(base.predict(rows).logits.astype(np.float64), 1)[:, 1]  # noqa: E731  # twice
    labels = held.labels if how.goal == "opportunity" else None
    made = afterwards.thresholds(score(held), held.groups, how.goal, labels=labels)  # type: ignore[arg-type]  # there are

    def predict(rows: Rows) -> Predicted:
        if rows.groups is None:
            raise UsageError("thresholds by group decide by a row's group, and these rows have none")
        given = afterwards.accepted(score(rows), rows.groups, made).astype(int)
        return base.predict(rows)._replace(decided=given)

    learned = {"threshold_groups": np.array(list(made)), "thresholds": np.array(list(made.values()))}
    return Fitted(predict, base.arrays | learned, {"thresholds": made})


def _searched(train: Rows, held: Rows, how: Choices, seed: int) -> Fitted:
    base = _base(train, held, how, seed)
    size, ask = blackbox.affine(base.predict(held).logits, held.labels)
    found = blackbox.search(ask, size, blackbox.Search(how.queries, sigma=0.3, seed=seed))
    curve = [[int(q), float(v)] for q, v in zip(found.queries, found.curve, strict=True)]
    predict = lambda rows: _plain(blackbox.apply_affine(base.predict(rows).logits, found.z), rows)  # noqa: E731  # once
    return Fitted(predict, base.arrays | {"z": found.z}, {"queries": int(found.queries[-1]), "curve": curve})


BOTH = ("linear", "mlp")  # a penalised MLP is held against the plain one as well
METHODS: dict[str, Method] = {
    "linear": Method(_head(), "accuracy", ("mlp",)),
    "mlp": Method(_head(head="mlp"), "accuracy"),
    "nmtune": Method(_head(head="mlp", penalty=NMTune()), "accuracy", BOTH),
    "nmtune_paper": Method(_head(head="mlp", penalty=NMTune.paper()), "accuracy", BOTH),
    "skd": Method(_head(head="mlp", penalty=SKD()), "accuracy", BOTH),
    "adjusted": Method(_adjusted, "worst_class"),
    "group_dro": Method(_robust, "worst_group", groups=True),
    "jtt": Method(_jtt, "worst_group"),
    "dfr": Method(_dfr, "worst_group", groups=True),
    "relabel": Method(_relabelled, "accuracy"),
    "d3m": Method(_pruned, "worst_group", groups=True),
    "erase": Method(_erased, "told", groups=True),
    "temperature": Method(_temperature, "nll", after=True),
    "thresholds": Method(_thresholds, "parity", groups=True, after=True),
    "cmaes": Method(_searched, "nll", after=True),
}
AS_GIVEN = Method(_base, "accuracy", (), after=True)  # the control of what is done to a black box's logits
