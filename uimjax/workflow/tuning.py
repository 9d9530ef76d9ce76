"""Tune what a model gives out, by one method and its controls, and say what came of it on rows that nobody saw.

Each method is for something (accuracy, the worst group, calibration ...). The verdict is about that: the difference to
the best control, mean over seeds, with a percentile bootstrap interval over the test rows, drawn within their groups.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import log_softmax

from uimjax import store
from uimjax.config import TuneConfig
from uimjax.corpora.features import Features, read_features
from uimjax.errors import DataError, MismatchError, UsageError
from uimjax.mitigate import frozen, heads
from uimjax.mitigate.frozen import Fitted, Predicted, Rows
from uimjax.progress import Progress, quiet
from uimjax.store.base import atomic, make_folder
from uimjax.workflow import base

CLEARED = ("head.npz", "tuned.json")
SEEDS, APART = 3, 0.2  # least repetitions for a verdict; share of the training rows that is held out, or tested on
LOWER = ("nll", "parity", "told")  # less is better
TOLD = {
    "accuracy": "accuracy", "worst_group": "accuracy of the worst group", "worst_class": "accuracy of the worst class",
    "nll": "negative log likelihood, nats", "parity": "gap between groups in how often class 1 is given",
    "told": "how often a linear head tells the group",
}  # fmt: skip


def tune(config: TuneConfig, out: Path, progress: Progress = quiet) -> dict[str, Any]:
    """The whole; `out` gets `tuned.json`, the first seed's head, and its predictions of each test file.

    Raises: as `read_features` and `frozen.fit`. MismatchError: files that do not belong together.
    """
    chosen = frozen.get(config.method)
    train, held, tests, classes, groups = _read(config)
    logits = tests[0][2] == "logits"
    scaled: dict[str, np.ndarray] = {}
    if config.scale:
        if logits:
            raise UsageError("scale is of features, and logits arrived; leave it out")
        scaled = {"scale_mean": train.inputs.mean(0), "scale_std": np.maximum(train.inputs.std(0), 1e-6)}
        train, held, *rest = (_scaled(rows, **scaled) for rows in (train, held, *(rows for _, rows, _ in tests)))
        tests = [(name, rows, kind) for (name, _, kind), rows in zip(tests, rest, strict=True)]
    how = _choices(config, len(classes), len(groups), logits)
    controls = {"as_given": frozen.AS_GIVEN} if logits else {name: frozen.get(name) for name in chosen.against}
    base.check_ours(out, CLEARED)
    made: dict[str, list[Fitted]] = {name: [] for name in (config.method, *controls)}
    jobs = [(name, config.seed + k) for k in range(config.seeds) for name in made]
    for name, seed in progress(jobs, "tuning", unit="heads"):
        fitted = (
            frozen.fit(name, train, held, how, seed)
            if name != "as_given"
            else controls[name].fit(train, held, how, seed)
        )
        made[name].append(fitted)
    aim = "worst_class" if chosen.aim == "worst_group" and not groups else chosen.aim
    telling = _telling(train, made, how, config.seed) if aim == "told" else None
    measured = {name: _measured(rows, made, aim, telling, config) for name, rows, _ in tests}
    make_folder(out)
    store.write_json(out / base.MARK, "tuned")
    document = {
        "method": config.method, "aim": aim, "classes": classes, "groups": groups,
        "rows": {"train": len(train.labels), "held_out": len(held.labels)}, "found": made[config.method][0].found,
        "tests": measured,
    }  # fmt: skip
    with atomic(out / "head.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **scaled, **made[config.method][0].arrays)  # type: ignore[arg-type]  # names to arrays
    for k, (name, rows, _) in enumerate(tests):
        document["tests"][name]["predictions"] = str(
            _predictions(out, k, made[config.method][0].predict(rows), rows, classes)
        )
    store.write_json(out / "tuned.json", document | {"config": config.model_dump(mode="json")})
    return document


def _choices(config: TuneConfig, classes: int, groups: int, logits: bool) -> frozen.Choices:
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "ratio")
    head = heads.Tuning(**{name: getattr(config, name) for name in names})
    own = [its.name for its in dataclasses.fields(frozen.Choices) if its.name in type(config).model_fields]
    return frozen.Choices(classes, groups, logits, head, **{name: getattr(config, name) for name in own})


def _scaled(rows: Rows, scale_mean: np.ndarray, scale_std: np.ndarray) -> Rows:
    its = lambda x: None if x is None else ((x - scale_mean) / scale_std).astype(np.float32)  # noqa: E731  # twice
    return rows._replace(inputs=its(rows.inputs), views=its(rows.views))


# ---------------------------------------------------------------- what arrives


def _read(config: TuneConfig) -> tuple[Rows, Rows, list[tuple[str, Rows, str]], list[str], list[str]]:
    """(train, held out, tests with their names and kinds, names of the classes, names of the groups)."""
    given = read_features(Path(config.train), config.label, config.group)
    paths = [path for path in (config.held_out, *config.test) if path]
    others = [read_features(Path(path), config.label, config.group) for path in paths]
    for path, its in zip(paths, others, strict=True):
        _alike(config.train, given, path, its)
    classes = np.unique(given.labels)
    groups = None if given.groups is None else np.unique(given.groups)
    if len(classes) < 2:
        raise DataError(f"{config.train}: every row has the label {classes[0]}; two classes at least were wanted")
    whole = _rows(config.train, given, classes, groups)
    coded = [_rows(path, its, classes, groups) for path, its in zip(paths, others, strict=True)]
    held = coded.pop(0) if config.held_out else None
    parts = _parts(whole, [held is None, not config.test], config.seed)
    train = whole.take(parts[0])
    held = whole.take(parts[1]) if held is None else held
    tests = list(zip(config.test, coded, strict=True)) or [("a fifth of the rows", whole.take(parts[2]))]
    names = [] if groups is None else [str(name) for name in groups]
    return train, held, [(name, rows, given.kind) for name, rows in tests], [str(c) for c in classes], names


def _alike(first: str, one: Features, path: str, other: Features) -> None:
    if one.kind != other.kind or one.inputs.shape[1] != other.inputs.shape[1]:
        raise MismatchError(f"{path} holds {other.kind} of {other.inputs.shape[1]} numbers, {first} {one.kind} of "
                            f"{one.inputs.shape[1]}; the same model's were wanted")  # fmt: skip
    if one.groups is not None and other.groups is None:
        raise MismatchError(f"{first} has groups and {path} has none; both or neither were wanted")


def _rows(path: str, its: Features, classes: np.ndarray, groups: np.ndarray | None) -> Rows:
    if its.kind == "logits" and its.inputs.shape[1] != len(classes):
        raise MismatchError(f"{path} holds logits of {its.inputs.shape[1]} classes and labels of {len(classes)}; "
                            "column k belongs to the k-th label in order, and each should occur")  # fmt: skip
    of = None if groups is None or its.groups is None else _places(path, "group", its.groups, groups)
    return Rows(its.inputs, _places(path, "label", its.labels, classes), of, its.views, np.arange(len(its.labels)))


def _places(path: str, what: str, values: np.ndarray, known: np.ndarray) -> np.ndarray:
    odd = np.flatnonzero(~np.isin(values, known))
    if len(odd):
        raise MismatchError(f"{path}, row {odd[0]}: the {what} {values[odd[0]]} does not occur among the training rows "
                            f"({', '.join(map(str, known[:8]))})")  # fmt: skip
    return np.searchsorted(known, values).astype(np.int64)


def _parts(rows: Rows, wanted: Sequence[bool], seed: int) -> list[np.ndarray]:
    """Ids of the training rows, of the held-out and of the test ones, a fifth each of every class in every group where
    they are wanted."""
    strata = rows.labels if rows.groups is None else rows.groups * (rows.labels.max() + 1) + rows.labels
    rng, parts = np.random.default_rng([seed, 5]), [[], [], []]
    for k in np.unique(strata):
        ids = rng.permutation(np.flatnonzero(strata == k))
        many = round(APART * len(ids))
        for part, needed in enumerate(wanted, 1):
            if needed:
                parts[part].append(ids[:many])
                ids = ids[many:]
        parts[0].append(ids)
    found = [np.sort(np.concatenate(part)) if part else np.zeros(0, int) for part in parts]
    for name, part, needed in zip(("held-out", "test"), found[1:], wanted, strict=True):
        if needed and len(part) < 2:
            raise DataError(f"{len(rows.labels)} rows are too few to take {name} ones from; give a file of their own")
    return found


# ---------------------------------------------------------------- what came of it


def _telling(train: Rows, made: dict[str, list[Fitted]], how: frozen.Choices, seed: int) -> dict[str, heads.Tuned]:
    """For each method a linear head that tells the group from what is left of the features."""
    assert train.groups is not None  # the methods that this is asked of need them
    return {
        name: heads.tune(each[0].predict(train).features, train.groups, how.tuning(seed), classes=how.groups)
        for name, each in made.items()
    }


def _measured(
    rows: Rows, made: dict[str, list[Fitted]], aim: str, telling: dict[str, heads.Tuned] | None, config: TuneConfig
) -> dict[str, Any]:
    """Every figure of every method on one test file, and the verdict."""
    predicted = {name: [fitted.predict(rows) for fitted in each] for name, each in made.items()}
    told = {} if telling is None else {name: heads.logits(head, predicted[name][0].features).argmax(1)
                                       for name, head in telling.items()}  # fmt: skip
    values = {name: _figures(rows, each, told.get(name)) for name, each in predicted.items()}
    strata = rows.labels if rows.groups is None else rows.groups
    sign = -1.0 if aim in LOWER else 1.0
    controls = [name for name in made if name != config.method]
    best = max(controls, key=lambda name: sign * values[name][aim](slice(None)))
    draws = _draws(strata, config.draws, config.seed)
    gain = [_difference(values[config.method][key], values[best][key], draws) for key in (aim, "accuracy")]
    shown = {name: {key: fun(slice(None)) for key, fun in its.items()} for name, its in values.items()}
    return {
        "rows": len(rows.labels), "figures": shown, "against": best, "change": gain[0], "accuracy_change": gain[1],
        "says": _says(aim, shown[best][aim], shown[config.method][aim], gain[0], gain[1], best, config.seeds),
    }  # fmt: skip


def _figures(rows: Rows, each: list[Predicted], told: np.ndarray | None) -> dict[str, Callable[[Any], float]]:
    """Functions of row ids: the mean over seeds of each figure that these rows have."""
    at, labels, groups = np.arange(len(rows.labels)), rows.labels, rows.groups
    right = np.mean([its.decided == labels for its in each], 0)
    nll = np.mean([-log_softmax(its.logits.astype(np.float64), 1)[at, labels] for its in each], 0)
    found: dict[str, Callable[[Any], float]] = {
        "accuracy": lambda ids: float(right[ids].mean()),
        "worst_class": lambda ids: _worst(right[ids], labels[ids]),
        "nll": lambda ids: float(nll[ids].mean()),
    }
    if groups is not None:
        found["worst_group"] = lambda ids: _worst(right[ids], groups[ids])
        if labels.max(initial=0) <= 1:
            given = np.mean([its.decided == 1 for its in each], 0)
            found["parity"] = lambda ids: _spread(given[ids], groups[ids])
        if told is not None:
            hit = told == groups
            found["told"] = lambda ids: float(hit[ids].mean())
    return found


def _means(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    counts = np.bincount(of)
    return (np.bincount(of, values) / np.maximum(counts, 1))[counts > 0]


def _worst(values: np.ndarray, of: np.ndarray) -> float:
    return float(_means(values, of).min())


def _spread(values: np.ndarray, of: np.ndarray) -> float:
    found = _means(values, of)
    return float(found.max() - found.min())


def _draws(strata: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    rng, parts = np.random.default_rng([seed, 7]), [np.flatnonzero(strata == k) for k in np.unique(strata)]
    return [np.concatenate([rng.choice(part, len(part)) for part in parts]) for _ in range(draws)]


def _difference(
    one: Callable[[Any], float], other: Callable[[Any], float], draws: list[np.ndarray]
) -> dict[str, float]:
    drawn = [one(ids) - other(ids) for ids in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": one(slice(None)) - other(slice(None)), "low": float(low), "high": float(high)}


def _says(
    aim: str,
    before: float,
    after: float,
    change: dict[str, float],
    accuracy: dict[str, float],
    against: str,
    seeds: int,
) -> str:
    what = f"{TOLD[aim]} {before:.3f} -> {after:.3f} ({change['low']:+.3f} to {change['high']:+.3f}) against {against}"
    if seeds < SEEDS:
        return f"no verdict from {seeds} repetition(s), at least {SEEDS} are needed: {what}"
    good, bad = (change["high"] < 0, change["low"] > 0) if aim in LOWER else (change["low"] > 0, change["high"] < 0)
    told = f"better: {what}" if good else f"worse: {what}" if bad else f"no difference that these rows show: {what}"
    if aim != "accuracy" and accuracy["high"] < 0:
        told += f"; it costs {-100 * accuracy['mean']:.1f} points of accuracy"
    return told


def _predictions(out: Path, number: int, its: Predicted, rows: Rows, classes: list[str]) -> Path:
    path = out / f"predictions-{number}.parquet"
    p = np.exp(log_softmax(its.logits.astype(np.float64), 1))
    columns = {"label": [classes[k] for k in rows.labels], "decided": [classes[k] for k in its.decided]}
    table = pa.table(columns | {f"p_{name}": p[:, k] for k, name in enumerate(classes)})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)
    return path


def lines(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]], str]]:
    """For a terminal: (test file, heads, a row a method, what may be said)."""
    found = []
    for name, its in document["tests"].items():
        keys = list(next(iter(its["figures"].values())))
        rows = [[method, *(f"{values[key]:.3f}" for key in keys)] for method, values in its["figures"].items()]
        found.append((name, ["", *keys], rows, its["says"]))
    return found
