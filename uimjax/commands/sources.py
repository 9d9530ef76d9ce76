"""What the commands of training dynamics read: tables of runs, ids, arrays and influence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uimjax import tables
from uimjax.errors import DataError, MalformedRowError, MissingFileError, ShapeError, UnknownNameError, UsageError

MAIN = ("aum", "loss_mean", "el2n", "forgetting", "confidence")  # shown beside the chosen score, the first its default
IDS = ("id", "row_id", "guid")
INFLUENCE = ("self_influence", "influence", "score", "value")  # what a column of influence is called, or an array


def tables_of(source: str, step: int | None = None, seed: int | None = None) -> list[Any]:
    """One a seed. A file of JSON lines is a finished data map."""
    from uimjax.understand.dynamics import elsewhere, table

    path = Path(source)
    if path.is_file():
        if step is not None or seed is not None:
            raise UsageError(f"{path} is the table of one step and seed; leave --step and --seed out, or name its run")
        kind = tables.kind(path)
        if kind not in ("parquet", *tables.JSON_LINES) or (kind in tables.JSON_LINES and not is_map(path)):
            raise UsageError(f"{path} is no table of a run, nor a finished data map; of a log: uimjax dynamics import "
                             f"{path} --out RUN")  # fmt: skip
        return [elsewhere.coordinates(path) if kind != "parquet" else table.read(path)]
    if not path.is_dir():
        raise MissingFileError(
            f"{path} is no run with dynamics/*.parquet (of a log: uimjax dynamics import LOG --out RUN)"
        )
    return table.read_seeds(path, step) if seed is None else [table.read(path, step, seed)]


def is_map(path: Path) -> bool:
    """Has its first line a guid and a coordinate? An empty file, too, is for the reader of maps to refuse."""
    first = next(tables.lines(path), (0, None))[1]
    return first is None or {"guid", "confidence"} <= set(first)


def chosen(name: str | None, *many: Any) -> str:
    """The score that was asked for, or the first of `MAIN`, or of all detectors, that every table has."""
    absent = next((t for t in many if name not in t.scores), None)
    if name is not None and absent is not None:
        raise UnknownNameError("score", name, absent.scores)
    shared = [n for n, s in many[0].scores.items() if s.suspicious and all(n in t.scores for t in many)]
    if not shared:
        raise DataError(f"no score that detects bad examples is here; there are: {', '.join(many[0].scores)}")
    return name or next((n for n in MAIN if n in shared), shared[0])


def ids_of(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Ids of a file, a line each, or the `id` of JSON lines; of the kind that the table's are (`wanted`)."""
    from uimjax.understand.dynamics import logs

    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; ids, a line each (.txt), or JSON lines of `id` were wanted")
    if tables.kind(path) in tables.JSON_LINES:
        held = list(tables.lines(path))
        for line, row in held:
            logs.check_fields(path, line, row, ("id",))
        rows = [(line, row["id"]) for line, row in held]
    else:
        texts = enumerate(map(str.strip, path.read_text(errors="replace").split("\n")), 1)
        rows = [(line, text) for line, text in texts if text]
    if not rows:
        raise DataError(f"{path} holds no ids; a line each was wanted")
    if wanted.dtype.kind == "U":
        return np.array([str(value) for _, value in rows])
    for line, value in rows:
        if not str(value).removeprefix("-").isdecimal():
            raise MalformedRowError(path, line, f"{value!r} is no whole number, as the ids of the table are")
    return np.array([int(value) for _, value in rows])


def array_of(path: Path, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the array, all arrays) of a NumPy file: of several, the one that is called so."""
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; a .npy or .npz was wanted")
    try:
        opened = np.load(path, allow_pickle=False)
        held = {names[0]: opened} if isinstance(opened, np.ndarray) else {n: opened[n] for n in opened.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no NumPy file of plain numbers: {error}") from error
    others = [name for name in held if name != "ids"]
    name = next((n for n in names if n in held), others[0] if len(others) == 1 else None)
    if name is None:
        raise UnknownNameError("array", names[0], held)
    return held[name], held


def influence_of(path: Path, column: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """(values, ids or None for the order of ids) of a table with a row an example, such as hits of one query, or of a
    NumPy file: an array `[N]` or `[N, 1]`, in a .npz with `ids` beside it or without.

    Raises:
        UnknownNameError: no such column. UsageError: several that could be it. ShapeError, DataError: no numbers. As
        `uimjax.tables.read`.
    """
    kind = tables.kind(path)
    if kind not in ("npy", "npz"):
        return _influence_column(path, column)
    if kind == "npy" and column is not None:
        raise UsageError(f"{path} is one array without a name; leave --influence-column out")
    values, held = array_of(path, INFLUENCE if column is None else (column,))
    if column is not None and column not in held:
        raise UnknownNameError("array", column, held)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.dtype.kind not in "fiub" or values.ndim != 1:
        raise ShapeError(f"{path}: {values.dtype} of shape {list(values.shape)}; numbers [N], one an example, fit (of "
                         "several queries, save one)")  # fmt: skip
    return values, held.get("ids")


def _influence_column(path: Path, column: str | None) -> tuple[np.ndarray, np.ndarray]:
    held = tables.read(path, "influence of examples", text=IDS)
    key = next((name for name in IDS if name in held), None)
    if key is None:
        raise UnknownNameError("column", "id", held)
    if column is not None and column not in held:
        raise UnknownNameError("column", column, held)
    rest = [name for name in held if name != key]
    known = [column] if column is not None else [name for name in INFLUENCE if name in rest] or rest
    if len(known) != 1:
        told = f"{', '.join(known)} could each be the influence; --influence-column NAME says which"
        raise UsageError(f"{path}: {told if known else f'no column beside {key}; one of numbers was wanted'}")
    name, values = known[0], []
    for row, value in enumerate(held[name], 1):
        try:
            values.append(np.nan if value is None else float(value))
        except (TypeError, ValueError):
            raise DataError(f"{path}, row {row}: {name} is {value!r}; a number was wanted") from None
        if held[key][row - 1] is None:
            raise DataError(f"{path}, row {row} has no {key}")
    return np.array(values), np.asarray(held[key])
