"""Logs of training that other tools wrote, as tables of dynamics; and data maps that cartography's plots read."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import DataError, MissingFileError, UnknownNameError, UsageError
from uimjax.store.base import atomic
from uimjax.tables import lines
from uimjax.understand.dynamics import logs as log
from uimjax.understand.dynamics.collector import CLASSES, Collector, Statistics
from uimjax.understand.dynamics.scoring import Definitions, Score, scores
from uimjax.understand.dynamics.table import Table, tabled

BATCH = 8192  # rows that are fed at once
EPOCH = re.compile(r"dynamics_epoch_(\d+)\.jsonl(?:\.gz)?")
CARTOGRAPHY = Definitions(never_learned="cartography")
MAPS = {  # columns of a data map; theirs, then ours
    "confidence": ("confidence", "mean of p_y", -1),
    "variability": ("variability", "standard deviation of p_y", 0),
    "correctness": ("correctness", "epochs at which y was the largest logit", -1),
    "threshold_closeness": ("threshold_closeness", "m (1 - m), m the mean of p_y", 0),
    "forgetfulness": ("forgetting", "times right, then wrong; never right: 1000", 1),
}


class Rows(NamedTuple):
    """Meetings in order: `ids` `[M]`, `epochs` `[M]`, `labels` `[M]`, `logits` `[M, C]` and `losses` `[M]` or None;
    `where(k)` says where row k stands."""

    ids: np.ndarray
    epochs: np.ndarray
    labels: np.ndarray | None
    logits: np.ndarray | None
    losses: np.ndarray | None
    where: Any


def cartography(folder: Path | str, ring: int = 0) -> Table:
    """Files `dynamics_epoch_N.jsonl` (guid, logits_epoch_N, gold), one an epoch, of a folder or of its
    `training_dynamics`, as cartography writes them (Swayamdipta et al. 2020, arXiv 2009.10795).

    An example that an epoch lacks is a mean over the others. Scores follow cartography: one that is never right is
    forgotten 1000 times. `ring`: losses kept.

    Raises:
        MissingFileError: no such files. MalformedRowError: a line that is no JSON, or lacks a field, with its number.
        DataError: an epoch is missing, a guid stands twice in one, gold changes or is out of range. NonFiniteError.
    """
    folder = Path(folder)
    inside = folder / "training_dynamics"
    folder = inside if inside.is_dir() else folder
    found = {int(m[1]): p for p in (folder.iterdir() if folder.is_dir() else ()) if (m := EPOCH.fullmatch(p.name))}
    if not found:
        raise MissingFileError(f"{folder} holds no dynamics_epoch_0.jsonl; the folder of such files was wanted")
    absent = sorted(set(range(min(found), max(found) + 1)) - set(found))
    if absent:
        raise DataError(f"{folder} lacks dynamics_epoch_{absent[0]}.jsonl between others; scores need every epoch")
    ids, epochs, labels, logits, places = [], [], [], [], []
    for epoch in sorted(found):
        for line, row in lines(found[epoch]):
            log.check_fields(found[epoch], line, row, ("guid", f"logits_epoch_{epoch}", "gold"))
            ids.append(row["guid"])
            epochs.append(epoch)
            labels.append(row["gold"])
            logits.append(row[f"logits_epoch_{epoch}"])
            places.append((found[epoch], line))
    where = lambda k: f"{places[k][0]}, line {places[k][1]}"  # noqa: E731  # one line, handed on
    golds, z = log.whole("gold", labels, where), log.matrix("logits", logits, where)
    made = Rows(log.named(ids, where), np.array(epochs), golds, z, None, where)
    return _table(made, ring, CARTOGRAPHY, str(folder))


def steps_log(
    source: Path | str | Mapping[str, Sequence[Any]], columns: Mapping[str, str] | None = None, ring: int = 0,
    floor: float = 0.0, definitions: Definitions | None = None,
) -> Table:  # fmt: skip
    """Rows of (id, step or epoch, what was seen), of a CSV, TSV, Parquet or JSON-lines file or a mapping of columns.

    Seen is `loss` (nats), or with `label` the logits (`logits_0`, `logits_1`, ..., or a list `logits`) or the
    probabilities (`p_0`, ...), whose logarithms stand for logits: margins differ by nothing. A loss beside them is kept
    as the loss. `columns` renames: {"id": "guid"}. `floor` stands for probabilities below it; 0 has no logarithm. Rows
    may come in any order: they are sorted by step.

    Raises:
        UnknownNameError: a column is missing, the nearest named. DataError: which row repeats an (id, epoch), has a
            negative loss, a label out of range, other numbers of logits or what is no probability. NonFiniteError,
            MissingFileError, MalformedRowError.
    """
    held = log.columns_of(source, dict(columns or {}))
    name = f"{source}, " if isinstance(source, (str, Path)) else ""
    where = lambda k: f"{name}row {k + 1}"  # noqa: E731  # one line, handed on
    if "epoch" not in held and "step" not in held:
        raise UnknownNameError("column", "step", held)
    if "id" not in held:
        raise UnknownNameError("column", "id", held)
    given = {name: log.whole(name, held[name], where) for name in ("step", "epoch") if name in held}
    order, epochs = given.get("step", given.get("epoch")), given.get("epoch", given.get("step"))
    assert order is not None  # one of the two is there
    assert epochs is not None
    logits = log.seen(held, floor, where)
    if logits is None and "loss" not in held:
        raise UnknownNameError("column", "loss", held)
    if logits is not None and "label" not in held:
        raise UnknownNameError("column", "label", held)
    labels = log.whole("label", held["label"], where) if "label" in held else None
    losses = log.numbers("loss", held["loss"], where) if "loss" in held else None
    if losses is not None and (losses < 0).any():
        at = int(np.flatnonzero(losses < 0)[0])
        raise DataError(
            f"{where(at)}: a loss of {losses[at]:g}; -log p is 0 or more (is it a log-probability? negate it)"
        )
    sort = np.lexsort((np.arange(len(order)), order, epochs))
    take = lambda x: None if x is None else x[sort]  # noqa: E731  # used five times
    ids = log.named(held["id"], where)
    made = Rows(ids[sort], epochs[sort], take(labels), take(logits), take(losses), lambda k: where(int(sort[k])))
    return _table(
        made, ring, definitions or Definitions(), str(source) if isinstance(source, (str, Path)) else "columns"
    )


def logits_log(
    source: Path | str | np.ndarray, labels: Any = None, ids: Any = None, ring: int = 0,
    definitions: Definitions | None = None,
) -> Table:  # fmt: skip
    """Logits `[T, N, C]` of N examples at T epochs: an array, a .npy file, or a .npz file of `logits` and `labels` (and
    `ids`). `labels` `[N]`.

    Raises:
        MissingFileError, NonFiniteError. DataError: no NumPy file, other shapes, a label out of range.
        UnknownNameError: the .npz lacks an array. UsageError: no labels.
    """
    name = str(source) if isinstance(source, (str, Path)) else "logits"
    if isinstance(source, (str, Path)):
        found, held = log.arrays(Path(source))
        labels, ids = (held.get(n) if given is None else given for n, given in (("labels", labels), ("ids", ids)))
    else:
        found = np.asarray(source)
    if labels is None:
        raise UsageError(f"{name}: no labels arrived; give labels=, one an example")
    labels = np.asarray(labels)
    if found.ndim != 3 or labels.shape != found.shape[1:2] or (ids is not None and len(ids) != len(labels)):
        raise DataError(f"{name} of shape {list(found.shape)} with labels {list(labels.shape)}; [T, N, C] and [N] fit")
    steps, count, _ = found.shape
    where = lambda k: f"{name}, epoch {k // count}, example {k % count}"  # noqa: E731  # one line, used once
    flat = found.reshape(steps * count, -1).astype(np.float64)
    log.check_finite("logits", flat, where)
    named = log.named(np.arange(count) if ids is None else ids, lambda k: f"{name}, example {k}")
    epochs, classes = np.repeat(np.arange(steps), count), np.tile(log.whole("label", labels, where), steps)
    rows = Rows(np.tile(named, steps), epochs, classes, flat, None, where)
    return _table(rows, ring, definitions or Definitions(), name)


def coordinates(path: Path | str) -> Table:
    """A finished data map, JSON lines of guid and coordinates as cartography writes them: scores alone, no statistics.

    Raises:
        MissingFileError, MalformedRowError, NonFiniteError. DataError: a guid that stands twice, or no rows.
    """
    path, rows, numbers = Path(path), [], []
    for line, row in lines(path):
        log.check_fields(path, line, row, ("guid", "confidence", "variability", "correctness"))
        rows.append(row)
        numbers.append(line)
    where = lambda k: f"{path}, line {numbers[k]}"  # noqa: E731  # one line, used twice
    if not rows:
        raise DataError(f"{path} has no rows; one an example was wanted")
    ids = log.named([row["guid"] for row in rows], where)
    _once(ids, np.zeros(len(ids), int), where)
    held = [name for name in MAPS if all(name in row for row in rows)]
    made = {
        MAPS[name][0]: Score(log.numbers(name, [row[name] for row in rows], where), *MAPS[name][1:]) for name in held
    }
    return Table(
        ids, None, None, made, None, None, {"run": str(path), "step": None, "seed": None, "examples": len(ids)}
    )


def write_cartography(table: Table, path: Path | str) -> Path:
    """Data-map coordinates of a table as cartography writes and plots them: JSON lines of guid, index,
    threshold_closeness m (1 - m) of the confidence m, confidence, variability, correctness (a count) and forgetfulness
    (1000: never right); of averaged seeds both are means. Examples that were never met have none and are left out;
    `index` is the row of the table.

    Raises:
        UnknownNameError: the table lacks confidence, variability or correctness. OutputError.
    """
    held = scores(table.statistics, CARTOGRAPHY) if table.statistics is not None else table.scores
    for name in ("confidence", "variability", "correctness"):
        if name not in held:
            raise UnknownNameError("score", name, held)
    m, v, c = (held[name].values for name in ("confidence", "variability", "correctness"))
    forgotten = held["forgetting"].values if "forgetting" in held else None
    with atomic(Path(path)) as temporary, temporary.open("w") as file:
        for k in np.flatnonzero(np.isfinite(m)):
            row = {"guid": table.ids[k].item(), "index": int(k), "threshold_closeness": float(m[k] * (1 - m[k])),
                   "confidence": float(m[k]), "variability": float(v[k]), "correctness": _count(c[k])}  # fmt: skip
            file.write(json.dumps(row | ({} if forgotten is None else {"forgetfulness": _count(forgotten[k])})) + "\n")
    return Path(path)


def _count(value: float) -> int | float:
    return int(value) if value == int(value) else float(value)


def _table(rows: Rows, ring: int, how: Definitions, run: str) -> Table:
    """Checked, and fed to a collector in order; examples in the order in which they were first met."""
    if not len(rows.ids):
        raise DataError(f"{run} has no rows; one an example and epoch was wanted")
    _once(rows.ids, rows.epochs, rows.where)
    unique, first, index = np.unique(rows.ids, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))
    index = place[index]
    ids, labels = unique[np.argsort(first)], None
    if rows.labels is not None:
        labels = rows.labels[np.sort(first)]
        odd = np.flatnonzero(rows.labels != labels[index])
        if len(odd):
            at, was = int(odd[0]), labels[index[odd[0]]]
            raise DataError(f"{rows.where(at)}: the label of {rows.ids[at]} is {rows.labels[at]}, before it was {was}")
        classes = None if rows.logits is None else rows.logits.shape[1]
        out = np.flatnonzero((rows.labels < 0) | (rows.labels >= (np.inf if classes is None else classes)))
        if len(out):
            wanted = "0 or more" if classes is None else f"0..{classes - 1}, as there are {classes} logits,"
            raise DataError(f"{rows.where(int(out[0]))}: label {rows.labels[out[0]]} arrived; {wanted} was wanted")
    statistics = _fed(rows, index, len(ids), ring)
    last = int(rows.epochs.max())
    return tabled(statistics, run=run, step=max(last, 0), ids=ids, labels=labels, definitions=how)


def _fed(rows: Rows, index: np.ndarray, count: int, ring: int) -> Statistics:
    collector = Collector(count, ("loss",) if rows.logits is None else CLASSES, ring=ring)
    cuts = np.flatnonzero(np.diff(rows.epochs)) + 1
    spans = [
        (at, min(at + BATCH, stop))
        for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(index)], strict=True)
        for at in range(start, stop, BATCH)
    ]
    size = max(stop - start for start, stop in spans)
    with jax.enable_x64(True):  # ours is the only rounding then
        state, update = collector.init(jnp.float64), jax.jit(collector.update, donate_argnums=0)
        for start, stop in spans:
            given = {"logits": rows.logits, "labels": rows.labels, "losses": rows.losses}
            if rows.logits is None:
                given = {"losses": rows.losses}
            padded = {k: jnp.asarray(_padded(x[start:stop], size, 0)) for k, x in given.items() if x is not None}
            ids = jnp.asarray(_padded(index[start:stop], size, -1))
            state = update(state, ids, epoch=jnp.asarray(rows.epochs[start], jnp.int32), **padded)
        return collector.finish(state)


def _padded(values: np.ndarray, size: int, blank: int) -> np.ndarray:
    return np.pad(values, [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1), constant_values=blank)


def _once(ids: np.ndarray, epochs: np.ndarray, where: Any) -> None:
    order = np.lexsort((epochs, ids))
    again = np.flatnonzero((ids[order][1:] == ids[order][:-1]) & (epochs[order][1:] == epochs[order][:-1]))
    if len(again):
        at, before = int(order[again[0] + 1]), int(order[again[0]])
        at, before = max(at, before), min(at, before)
        raise DataError(
            f"{where(at)}: {ids[at]} stands twice in epoch {epochs[at]} (before: {where(before)}); once fits"
        )
