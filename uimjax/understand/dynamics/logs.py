"""Rows of logs as numbers, and every row that cannot be used named."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uimjax import tables
from uimjax.errors import DataError, MalformedRowError, MissingFileError, NonFiniteError, UnknownNameError

SUM = 1e-3  # how far a row of probabilities may sum from 1: they are often written with few digits


def check_fields(path: Path, line: int, row: dict[str, Any], wanted: Sequence[str]) -> None:
    """Raises MalformedRowError: one is not there; the nearest is named."""
    for name in wanted:
        if name not in row:
            raise MalformedRowError(path, line, str(UnknownNameError("field", name, row)).rstrip("."))


def columns_of(source: Any, renamed: dict[str, str]) -> dict[str, list[Any]]:
    """Columns of a file or mapping, some of them under names of ours. Raises as `elsewhere.steps_log`."""
    if isinstance(source, (str, Path)):
        key, path = renamed.get("id", "id"), Path(source)
        held = tables.read(path, "a log of training", text=(key,))
        if tables.kind(path) in ("csv", "tsv") and key in held:
            held[key] = _canonical(held[key])
    else:
        held = {name: list(values) for name, values in source.items()}
        if len({len(values) for values in held.values()}) > 1:
            raise DataError("columns of several lengths arrived; all should have as many rows")
    for name, theirs in renamed.items():
        if theirs not in held:
            raise UnknownNameError("column", theirs, held)
        held[name] = held[theirs]
    return held


def _canonical(texts: list[Any]) -> list[Any]:
    """Integers where all are written as integers are; 012 is a name."""
    whole = all(isinstance(x, str) and re.fullmatch(r"0|-?[1-9]\d{0,17}", x, re.ASCII) for x in texts)
    return [int(x) for x in texts] if whole else texts


def arrays(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the logits, every array of the file). Raises as `elsewhere.logits_log`."""
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; a .npy or .npz of logits [T, N, C] was wanted")
    try:
        held = np.load(path, allow_pickle=False)
        found = {"logits": held} if isinstance(held, np.ndarray) else {name: held[name] for name in held.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no NumPy file of plain numbers: {error}") from error
    if "logits" not in found:
        raise UnknownNameError("array", "logits", found)
    return found["logits"], found


def seen(held: dict[str, list[Any]], floor: float, where: Any) -> np.ndarray | None:
    """Logits `[M, C]`, or logarithms of probabilities."""
    if "logits" in held:
        return matrix("logits", held["logits"], where)
    for kind in ("logits", "p"):
        places = sorted(int(m[1]) for name in held if (m := re.fullmatch(rf"{kind}_(\d+)", name)))
        if not places:
            continue
        absent = sorted(set(range(places[-1] + 1)) - set(places))
        if absent:
            raise UnknownNameError("column", f"{kind}_{absent[0]}", held)
        found = np.stack([numbers(f"{kind}_{k}", held[f"{kind}_{k}"], where) for k in places], axis=1)
        return found if kind == "logits" else _logarithms(found, floor, where)
    return None


def _logarithms(p: np.ndarray, floor: float, where: Any) -> np.ndarray:
    odd = np.flatnonzero((p < 0).any(1) | (p > 1).any(1) | (np.abs(p.sum(1) - 1) > SUM))
    if len(odd):
        raise DataError(f"{where(int(odd[0]))}: {p[odd[0]].tolist()} are no probabilities: in 0..1, with sum 1")
    p = np.maximum(p, floor)
    if (p == 0).any():
        at, k = (int(x[0]) for x in np.nonzero(p == 0))
        raise DataError(
            f"{where(at)}: p_{k} is 0, which has no logarithm; say what it stands for: "
            "floor=1e-7 (--floor 1e-7), or log logits"
        )
    return np.log(p)


def matrix(name: str, rows: Sequence[Any], where: Any) -> np.ndarray:
    """Lists of as many numbers each, `[M, C]`. Raises DataError, NonFiniteError."""
    width = len(rows[0]) if len(rows) and isinstance(rows[0], (list, tuple, np.ndarray)) else 0
    for k, row in enumerate(rows):
        if not isinstance(row, (list, tuple, np.ndarray)) or len(row) != width or not len(row):
            what = f"{len(row)} numbers" if isinstance(row, (list, tuple, np.ndarray)) else repr(row)
            raise DataError(f"{where(k)}: {what} as {name}; row 1 has {width}, and every row should have as many")
    found = numbers(name, [x for row in rows for x in row], lambda k: where(k // max(width, 1)))
    return found.reshape(len(rows), width)


def numbers(name: str, values: Any, where: Any) -> np.ndarray:
    """In float64, finite. Raises DataError, NonFiniteError."""
    try:
        found = np.array([np.nan if x is None else x for x in values], np.float64)
    except (TypeError, ValueError):
        at = tables.no_number(values)
        raise DataError(f"{where(at)}: {name} is {values[at]!r}; a number was wanted") from None
    check_finite(name, found, where)
    return found


def check_finite(name: str, found: np.ndarray, where: Any) -> None:
    """Raises NonFiniteError."""
    if not np.isfinite(found).all():
        at = int(np.argwhere(~np.isfinite(found))[0][0])
        raise NonFiniteError(f"{where(at)}: {name} is NaN, infinite or missing; a number was wanted")


def whole(name: str, values: Any, where: Any) -> np.ndarray:
    """In int64. Raises DataError, NonFiniteError."""
    found = numbers(name, values, where)
    if (found != np.round(found)).any():
        at = int(np.flatnonzero(found != np.round(found))[0])
        raise DataError(f"{where(at)}: {name} is {found[at]:g}; a whole number was wanted")
    return found.astype(np.int64)


def named(values: Any, where: Any) -> np.ndarray:
    """Ids as integers where all are, else as strings. Raises DataError: an id is missing or empty."""
    found = list(values)
    for k, x in enumerate(found):
        if x is None or x == "" or (isinstance(x, (float, np.floating)) and np.isnan(x)):
            raise DataError(f"{where(k)}: the id is {'missing' if x != '' else 'empty'}; name the row's example")
    whole = [isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in found]
    if any(whole) and not all(whole):
        at, to = whole.index(True), whole.index(False)
        raise DataError(f"{where(at)}: the id is the number {found[at]}, and {where(to)} has {found[to]!r}; numbers or "
                        "texts throughout were wanted")  # fmt: skip
    return np.array(found, np.int64) if all(whole) else np.array([str(x) for x in found])
