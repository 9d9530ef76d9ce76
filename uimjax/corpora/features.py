"""Features or logits with labels, groups and second views, from .npz or a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax import tables
from uimjax.errors import DataError, MalformedRowError, MissingFileError, NonFiniteError, ShapeError, UnknownNameError

INPUTS, SAME = ("features", "logits"), {"label": "labels", "group": "groups", "feature": "features"}
KNOWN = (*INPUTS, "labels", "groups", "views")


class Features(NamedTuple):
    """`inputs` `[N, D]` float32, `kind` "features" or "logits"; `labels` `[N]` as they are written; `groups` `[N]` or
    None; `views` `[N, D]` or None."""

    inputs: np.ndarray
    kind: str
    labels: np.ndarray
    groups: np.ndarray | None
    views: np.ndarray | None


def read_features(path: Path, label: str = "", group: str = "") -> Features:
    """Of a .npz: arrays `features` `[N, D]` or `logits` `[N, C]`, `labels` `[N]`, and if there are, `groups` `[N]` and
    `views` `[N, D]` (singular names do as well). Of a table (.parquet, .jsonl, .csv, .tsv): a column of lists of one
    of these names, or all columns of numbers that are neither label nor group. `label`, `group`: other names of theirs.

    Raises:
        MissingFileError, DataError: no such file, one that cannot be read, or without features or labels.
            UnknownNameError: no column of that name. ShapeError, NonFiniteError, MalformedRowError: of what is in it.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; features in .npz, .parquet, .jsonl or .csv were wanted")
    held = _arrays(path) if path.suffix == ".npz" else dict(tables.read(path, "features"))
    named = {label: "labels", group: "groups"} if label or group else {}
    for name in filter(None, (label, group)):
        if name not in held:
            raise UnknownNameError("column", name, held)
    found: dict[str, Any] = {}
    for name, values in held.items():
        meant = named.get(name, SAME.get(name, name))
        if meant in found:
            raise DataError(f"{path}: two columns are {meant}; name the one that is meant")
        found[meant] = values
    if "labels" not in found:
        raise DataError(f"{path} has no labels, only {', '.join(held) or 'nothing'}; name theirs with --label NAME")
    inputs, kind = _inputs(path, found)
    count = len(inputs)
    groups, views = found.get("groups"), found.get("views")
    for name in ("labels", "groups"):
        if name in found:
            found[name] = _names(path, name, found[name], count)
    if views is not None:
        views = _numbers(path, "views", views)
        if views.shape != inputs.shape:
            raise ShapeError(
                f"{path}: views {list(views.shape)} for features {list(inputs.shape)}; the same was wanted"
            )
    return Features(inputs, kind, found["labels"], None if groups is None else found["groups"], views)


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if SAME.get(name, name) in KNOWN}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no archive of plain arrays: {error}") from error


def _inputs(path: Path, found: dict[str, Any]) -> tuple[np.ndarray, str]:
    both = [name for name in INPUTS if name in found]
    if len(both) > 1:
        raise DataError(f"{path} holds features and logits; one of them was wanted: what should be tuned?")
    if both:
        return _numbers(path, both[0], found[both[0]]), both[0]
    columns = {n: v for n, v in found.items() if n not in KNOWN and n != "id" and _is_number(v)}
    if not columns:
        raise DataError(f"{path} has no features, only {', '.join(found)}; a column or array `features` or "
                        "`logits` was wanted, or columns of numbers")  # fmt: skip
    return _numbers(path, "features", np.stack([np.asarray(v, np.float64) for v in columns.values()], 1)), "features"


def _is_number(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _numbers(path: Path, name: str, values: Any) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        first = len(values[0]) if values and isinstance(values[0], list) else None
        for number, row in enumerate(values, 1):
            if not isinstance(row, list) or len(row) != first or not _is_number(row):
                raise MalformedRowError(path, number, f"{name}: a list of {first or 'D'} numbers was wanted")
        values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiub":
        raise ShapeError(f"{path}: {name} {values.dtype} {list(values.shape)} arrived; numbers [N, D] were wanted")
    odd = np.flatnonzero(~np.isfinite(values.astype(np.float64)).all(1))
    if len(odd):
        raise NonFiniteError(f"{path}: {name} of row {odd[0]} are NaN or infinite; leave the row out, or mend it")
    return values.astype(np.float32)


def _names(path: Path, name: str, values: Any, count: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (count,):
        raise ShapeError(f"{path}: {name} {list(found.shape)} for {count} rows; one each was wanted")
    if found.dtype.kind not in "iubUS":
        whole = found.dtype.kind == "f" and bool((found == np.round(found)).all())
        if not whole:
            raise DataError(f"{path}: {name} are {found.dtype}; whole numbers or words were wanted, none empty")
        found = found.astype(np.int64)
    return found
