"""What a sweep has finished, line by line, and the tables made of it.

`journal.jsonl` has one JSON object a run, each with the digest of the rest of its line, appended and synced. Processes
append to the same file, one after the other. A line that was torn by a crash is cut off by whoever appends next.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import csv, parquet

from uimjax.errors import CorruptError, DataError, MismatchError, OutputError
from uimjax.store import digest_text, write_json
from uimjax.store.base import atomic
from uimjax.understand.scaling.runs import Run

JOURNAL, TABLE, TEXT, LEFT, ABOUT = "journal.jsonl", "runs.parquet", "runs.csv", "left_out.csv", "columns.json"
_CHECK = "xxh3"
Row = dict[str, Any]

MEANING = {
    "run": "name of the run",
    "N": "trainable parameters",
    "D": "training examples (of token rows: predicted tokens) met in total, steps x batch_size",
    "U": "different ones among them",
    "C": "floating-point operations, 6 N D (Kaplan et al. 2020, arXiv 2001.08361)",
    "noise": "share of the run's labels (tokens) replaced by another",
    "loss": "mean held-out loss after training, nats an example (a predicted token)",
    "error_rate": "share of held-out examples (predicted tokens) that are wrong",
    "accuracy": "1 - error_rate",
    "train_loss": "mean loss after training over the run's own data, as it met them, nats",
    "repeats": "D / U, how often each was met",
    "seconds": "wall time of the runs trained together, divided by their number; compiling apart",
    "diverged": "the training loss was not finite, or too high for too long",
    "why": "why the run is left out",
    "device": "kind of device", "devices": "how many shared the work",
    "uimjax": "version", "jax": "version",
}  # fmt: skip
_FIRST = ("run", "N", "D", "U", "C", "noise", "loss", "error_rate", "accuracy", "train_loss")
_LAST = ("repeats", "seconds", "diverged", "why", "device", "devices", "uimjax", "jax")


class Entry(NamedTuple):
    """What came of a run: its `results`, or why it `failed`."""

    key: str
    run: str
    settings: Row
    results: Row
    failed: str | None = None


class Swept(NamedTuple):
    """`rows`: a row of each run that can be fitted, as `fit` takes them. `left_out`: those that diverged or failed, and
    `why`. `waiting`: runs that no process has finished yet. `table`: the path of runs.parquet, which is written when
    none is waiting (else None)."""

    rows: list[Row]
    left_out: list[Row]
    waiting: int
    table: Path | None


def append(folder: Path, entries: Iterable[Entry]) -> None:
    """All at once, after what other processes have written.

    Raises:
        OutputError: the folder cannot be written.
    """
    path, data = folder / JOURNAL, "".join(map(_line, entries)).encode()
    try:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of whoever died while appending the lock is gone
            _cut(file)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot append to {path}: {error.strerror}. Finished runs are safe.") from error


def _cut(file: Any) -> None:
    """A torn last line, off."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _line(entry: Entry) -> str:
    body = {name: value for name, value in entry._asdict().items() if value is not None}
    return json.dumps(body | {_CHECK: _digest(body)}, allow_nan=False) + "\n"


def _digest(body: Row) -> str:
    return digest_text(json.dumps(body, sort_keys=True))[:16]


def read(folder: Path) -> dict[str, Entry]:
    """By key: the first that finished, else the last that failed.

    Raises:
        CorruptError: a line that was changed after it was written.
    """
    path, found = folder / JOURNAL, {}
    if not path.exists():
        return {}
    data = path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        try:
            body = json.loads(line)
            fits = body.pop(_CHECK) == _digest(body)
            entry = Entry(**body)
        except (ValueError, TypeError, KeyError, AttributeError):
            fits, entry = False, None
        if entry is None or not fits:
            raise CorruptError(f"{path}, line {number} was changed or damaged. Remove that line: its run is run again.")
        if entry.key not in found or found[entry.key].failed is not None:
            found[entry.key] = entry
    return found


def finished(entries: Mapping[str, Entry], run: Run) -> bool:
    """A run that failed is tried again."""
    return run.key in entries and entries[run.key].failed is None


def begun(folder: Path, runs: Sequence[Run], versions: Mapping[str, str]) -> None:
    """Before runs are added: none that other versions finished stand beside them, and tables of an earlier, smaller
    sweep go, which would pass for this one's. (The journal has all that they were made of.)

    Raises:
        MismatchError: runs of this sweep are there of other versions, and others are not.
    """
    entries = read(folder)
    there = [entries[run.key] for run in runs if finished(entries, run)]
    made = sorted({tuple((name, str(entry.results.get(name))) for name in versions) for entry in there})
    other = [its for its in made if dict(its) != versions]
    if other and (len(there) < len(runs) or len(made) > 1):
        said = "; ".join(", ".join(f"{name} {value}" for name, value in its) for its in other)
        here = ", ".join(f"{name} {value}" for name, value in versions.items())
        raise MismatchError(
            f"{folder / JOURNAL} has runs of this sweep of {said}; here is {here}. One table would mix them: take "
            "another folder, or finish it with those versions."
        )
    if any(run.key not in entries for run in runs):
        for name in (TABLE, TEXT, LEFT, ABOUT):
            (folder / name).unlink(missing_ok=True)


def settled(folder: Path, runs: Sequence[Run]) -> Swept:
    """The tables of these runs, in this order, written when all are there.

    Raises:
        DataError: none of them can be fitted.
    """
    entries = read(folder)
    there = [entries[run.key] for run in runs if run.key in entries]
    waiting = len(runs) - len(there)
    kept = [_row(entry) for entry in there if not (out := _why(entry))]
    left = [_row(entry) | {"why": out} for entry in there if (out := _why(entry))]
    if waiting:
        return Swept(kept, left, waiting, None)
    names = _names([*kept, *left])
    for name, rows in ((TABLE, kept), (TEXT, kept), (LEFT, left)):
        _write(folder / name, rows, [n for n in names if n != "why" or name == LEFT])
    write_json(folder / ABOUT, {name: MEANING.get(name, "") for name in names})
    if not kept:
        raise DataError(f"all {len(left)} runs diverged or failed; see {folder / LEFT}. The first: {left[0]['why']}")
    return Swept(kept, left, 0, folder / TABLE)


def _why(entry: Entry) -> str:
    return entry.failed or ("diverged" if entry.results.get("diverged") else "")


def _row(entry: Entry) -> Row:
    found = {"run": entry.run} | entry.settings | entry.results
    if "loss" not in found or found["loss"] is None:
        found["loss"] = float("nan")
    return {name: found[name] for name in _names([found])}


def _names(rows: Sequence[Row]) -> list[str]:
    """Columns in an order that depends on nothing but their names, and on how the settings were listed."""
    there = dict.fromkeys(name for row in rows for name in row)
    between = [name for name in there if name not in _FIRST and name not in _LAST]
    return [name for name in (*_FIRST, *between, *_LAST) if name in there]


def _write(path: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Nothing where there are no rows; what an earlier sweep left there goes."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    made = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
    with atomic(path) as temporary:
        if path.suffix == ".csv":
            csv.write_csv(made, temporary)
        else:
            said = {name: MEANING[name] for name in names if name in MEANING}
            parquet.write_table(made.replace_schema_metadata(said), temporary)


def _column(values: Sequence[Any]) -> Any:
    """Of one type: a column of numbers and words is one of words."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return pa.array(values) if kinds else pa.array(values, pa.float64())
    if kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    return pa.array([None if value is None else str(value) for value in values])
