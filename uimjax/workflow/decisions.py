"""Audit of decisions by group, from a table alone: what groups get, and how often it is wrong for them."""

from pathlib import Path
from typing import Any

import numpy as np

from uimjax import store, tables
from uimjax.audit import fairness
from uimjax.config import DecisionsConfig
from uimjax.errors import DataError, MalformedRowError, UnknownNameError
from uimjax.report import audits
from uimjax.store.base import make_folder

LEAST = 0.01  # beyond chance, below which nothing is said
CANNOT = {
    "parity": "whether the groups should get the decision as often: that they differ in what is right may be so",
    "odds": "why; labels that are themselves unfair make a fair decision look wrong",
    "worst": "groups that no column names; a group of few rows is left out",
}


def audit(config: DecisionsConfig, out: Path) -> dict[str, Any]:
    """The scorecard, which is in `audit.json` and on a page.

    Raises:
        MissingFileError, DataError: as `tables.read`. UnknownNameError: no such column, or no such decision.
        MalformedRowError: a row without label, decision or group.
    """
    path = Path(config.predictions)
    columns = tables.read(path, "predictions")
    names = config.group or ("group",)
    label, decided = (_column(path, columns, name) for name in (config.label, config.predicted))
    if not {*label} & {*decided}:
        raise DataError(f"{path}: none of the decisions ({', '.join(sorted({*decided})[:5])}) occurs among the labels "
                        f"({', '.join(sorted({*label})[:5])}); the same names were wanted")  # fmt: skip
    cards: dict[str, Any] = {}
    for name in names:
        group = _column(path, columns, name)
        here, few = kept(group, config.least, f"{path}: {name}")
        some = label[here], decided[here], group[here]
        cards[f"worst group by {name}"] = worst(*some, few, config)
        cards |= {f"{key} by {name}": card for key, card in _gaps(*some, few, config).items()}
    document = {"model": path.name, "rows": len(label), "weaknesses": cards, "failures": None}
    make_folder(out)
    store.write_json(out / "audit.json", document | {"config": config.model_dump(mode="json")})
    audits.write_page(document, out / "report.html")
    return document


def _column(path: Path, columns: Any, name: str) -> np.ndarray:
    """As words, so that 1 of one file is "1" of another."""
    if name not in columns:
        raise UnknownNameError(f"column of {path}", name, columns)
    values = columns[name]
    for number, value in enumerate(values, 1):
        if value is None or value == "" or value != value:
            raise MalformedRowError(path, number, f"{name} is empty; leave the row out, or fill it in")
    whole = lambda v: isinstance(v, bool) or (isinstance(v, float) and v.is_integer())  # noqa: E731  # True is 1
    return np.array([str(int(v)) if whole(v) else str(v) for v in values])


def kept(group: np.ndarray, least: int, where: str) -> tuple[np.ndarray, list[str]]:
    """(which rows `[N]` are of groups of `least` rows, the names of the other groups).

    Raises:
        DataError: fewer than two groups are left.
    """
    kinds, counts = np.unique(group, return_counts=True)
    few = [str(k) for k, n in zip(kinds, counts, strict=True) if n < least]
    if len(kinds) - len(few) < 2:
        raise DataError(f"{where} has {len(kinds) - len(few)} groups of {least} rows and more; two at least were "
                        "wanted (--least)")  # fmt: skip
    return ~np.isin(group, few), few


def worst(label: np.ndarray, decided: np.ndarray, group: np.ndarray, few: list[str], config: Any) -> dict[str, Any]:
    """The card of the group that is wrong most often; `config`: its `draws` and `seed`."""
    its = fairness.worst_group(decided, label, group, draws=config.draws, seed=config.seed)
    alarm = its.value < its.limit and its.chance - its.value > LEAST
    made = _card(its, "accuracy of the worst group", alarm, "worst", few, len(label))
    return made | {"also": {"mean": its.mean}}


def _gaps(
    label: np.ndarray, decided: np.ndarray, group: np.ndarray, few: list[str], config: DecisionsConfig
) -> dict[str, Any]:  # fmt: skip
    """Cards of parity and odds, where one decision is the one to be given."""
    how = {"draws": config.draws, "seed": config.seed}
    positive = config.positive or ("1" if {*label, *decided} <= {"0", "1"} else "")
    if not positive:
        return {}
    if positive not in {*label, *decided}:
        raise UnknownNameError(f"decision in {config.label} and {config.predicted}", positive, {*label, *decided})
    given, right = (decided == positive).astype(int), (label == positive).astype(int)
    unit = f"gap between groups in how often {positive!r} is decided"
    found = {"parity": (fairness.parity(given, group, **how), unit, few)}
    one_sided = [str(k) for k in np.unique(group) if len(np.unique(right[group == k])) < 2]
    both = ~np.isin(group, one_sided)
    if len(np.unique(group[both])) > 1:
        odds = fairness.equalised_odds(given[both], right[both], group[both], **how)
        found["odds"] = odds, f"the same among those that are alike in {config.label}", [*few, *one_sided]
    cards = {}
    for key, (its, what, left) in found.items():
        alarm = its.value > its.limit and its.value - its.chance > LEAST
        cards[key] = _card(its, what, alarm, key, left, len(label))
    return cards


def _card(its: Any, unit: str, alarm: bool, kind: str, few: list[str], rows: int) -> dict[str, Any]:
    by = {" labelled ".join(map(str, k)) if isinstance(k, tuple) else str(k): v for k, v in its.by_group.items()}
    return {
        "value": its.value, "low": its.low, "high": its.high, "items": rows, "also": {}, "unit": unit,
        "reference": its.chance, "limit": its.limit, "competent": None,
        "says": "alarm" if alarm else "no alarm from these rows", "cannot": CANNOT[kind], "by_category": by,
        "worse": "low" if kind == "worst" else "high", "cut_prompts": 0, "left_out": few,
    }  # fmt: skip
