"""Tables of runs: files or columns, which of them the form takes, and every row that cannot be fitted named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uimjax import tables
from uimjax.errors import DataError, NonFiniteError, UnknownNameError, UsageError
from uimjax.tables import Columns
from uimjax.understand.scaling.base import Form, Objective, Rows

KNOWN = {  # how tables spell what the forms call by a letter; compared without case, spaces, dashes and underscores
    "N": ("n", "params", "parameters", "modelsize", "numparams", "nparams", "nonembeddingparams"),
    "D": ("d", "tokens", "data", "trainingtokens", "ntokens", "numtokens", "examples", "trainexamples"),
    "C": ("c", "flops", "flop", "compute", "trainingflop", "trainingflops"),
    "U": ("u", "uniquetokens", "unique", "uniqueexamples"),
    "M": ("m", "tokensperparameter", "tokensperparam"),
    "noise": ("noise", "corruption", "corruptionrate", "noiserate", "labelnoise"),
    "loss": ("loss", "valloss", "validationloss", "testloss", "evalloss", "finalloss"),
}
FLOPS = 6.0  # C = 6 N D, Kaplan et al. 2020, arXiv 2001.08361, section 2.1
Table = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def read(table: Table) -> Columns:
    """Columns of a CSV, TSV, Parquet or JSON-lines file, of a mapping of columns, or of a list of rows.

    Raises:
        DataError: no rows, or columns of several lengths. As `uimjax.tables.read`, for a file.
    """
    if isinstance(table, (str, Path)):
        found = tables.read(Path(table), "a table of runs", commas=("csv", "txt"))
    elif isinstance(table, Mapping):
        found = {str(name): list(values) for name, values in table.items()}
    else:
        names = dict.fromkeys(name for row in table for name in row)
        found = {name: [row.get(name) for row in table] for name in names}
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1:
        raise DataError(f"columns of {sorted(lengths)} rows arrived; all should have as many")
    if not lengths or lengths == {0}:
        raise DataError("the table has no rows; one a run was wanted")
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def column(columns: Columns, what: str, given: Mapping[str, str]) -> str | None:
    """The name of the column for a letter of the forms: as it was given, else by the known spellings.

    Raises:
        UnknownNameError: the name given is no column. UsageError: two columns could be it.
    """
    if what in given:
        if given[what] not in columns:
            raise UnknownNameError("column", given[what], columns)
        return given[what]
    if what in columns:
        return what
    found = [name for name in columns if _plain(name) in KNOWN.get(what, (_plain(what),))]
    if len(found) > 1:
        raise UsageError(f"{what} could be any of the columns {', '.join(map(repr, found))}; say which: {what}=NAME")
    return found[0] if found else None


def rows_of(
    table: Table,
    form: Form,
    objective: Objective,
    given: Mapping[str, str] | None = None,
    loss: str = "loss",
    group: str | None = None,
) -> tuple[Rows, dict[str, str]]:
    """(the rows as numbers, which column each was taken from). D is C / (6 N) where a table has C instead, M is D / N.

    `loss` names the fitted column, any measurement; `group` that of the runs (each row its own otherwise).

    Raises:
        UnknownNameError: a column that is not there. DataError: values that a logarithm refuses, with their row.
        NonFiniteError, UsageError
    """
    columns, given = read(table), dict(given or {})
    for what in given:
        if what not in (*form.inputs, "C", "D", "N"):
            raise UnknownNameError("input of the form", what, (*form.inputs, "C"))
    target = column(columns, "loss", {} if loss == "loss" and "loss" not in columns else {"loss": loss})
    if target is None:
        raise UnknownNameError("column", loss, columns)
    used = {"loss": target}
    taken: set[str] = set()
    x = {name: _input(columns, name, given, used, taken, form) for name in form.inputs}
    idle = sorted(set(given) - taken)
    if idle:
        raise UsageError(
            f"{', '.join(f'{what}={given[what]}' for what in idle)} would change nothing: {form.name} takes "
            f"{', '.join(f'{what} from {used[what]}' for what in form.inputs)}; leave it out"
        )
    y = numbers(columns, target, positive=objective.residual == "log")
    for name in form.inputs:
        if name not in form.raw:
            _check_positive(used[name], x[name], "the form takes its logarithm")
        if name in form.shares:
            check_share(used[name], x[name])
    return Rows(x, y, groups(columns, group, len(y))), used


def check_share(name: str, values: np.ndarray) -> None:
    """Raises DataError."""
    if not ((values >= 0) & (values <= 1)).all():
        at = int(np.flatnonzero(~((values >= 0) & (values <= 1)))[0])
        raise DataError(f"{name!r}, row {at + 1} is {values[at]:g}; a share from 0 to 1 was wanted (percent / 100)")


def _input(
    columns: Columns, what: str, given: Mapping[str, str], used: dict[str, str], taken: set[str], form: Form
) -> np.ndarray:
    """A column by itself, or made of others; what it was `taken` from is noted."""
    name = column(columns, what, given)
    taken.add(what)
    if name is not None:
        used[what] = name
        return numbers(columns, name)
    size, flops = column(columns, "N", given), column(columns, "C", given)
    if what == "D" and size and flops:
        used[what] = f"{flops} / ({FLOPS:g} {size})"
        taken |= {"N", "C"}
        return numbers(columns, flops) / (FLOPS * numbers(columns, size))
    data = column(columns, "D", given)
    if what == "M" and size and data:
        used[what] = f"{data} / {size}"
        taken |= {"N", "D"}
        return numbers(columns, data) / numbers(columns, size)
    known = f" ({form.name} takes {', '.join(form.inputs)}; say which column: {what}=NAME)"
    raise UnknownNameError(f"column for {what}{known}", what, columns)


def numbers(columns: Columns, name: str, positive: bool = False) -> np.ndarray:
    """A column `[n]` in float64. Raises DataError, NonFiniteError."""
    try:
        found = np.array([np.nan if value is None else float(value) for value in columns[name]], np.float64)
    except (TypeError, ValueError) as error:
        at = tables.no_number(columns[name])
        raise DataError(f"column {name!r}, row {at + 1}: {error}; numbers were wanted") from error
    if not np.isfinite(found).all():
        at = int(np.flatnonzero(~np.isfinite(found))[0])
        raise NonFiniteError(
            f"column {name!r}, row {at + 1} is {columns[name][at]}; remove diverged and unfinished runs"
        )
    if positive:
        _check_positive(name, found, "the residual is of logarithms: residual='linear' takes any sign")
    return found


def _check_positive(name: str, values: np.ndarray, why: str) -> None:
    if not (values > 0).all():
        at = int(np.flatnonzero(values <= 0)[0])
        raise DataError(f"{name!r}, row {at + 1} is {values[at]:g}; above 0 was wanted ({why})")


def groups(columns: Columns, name: str | None, count: int) -> np.ndarray:
    """Numbers of the runs `[n]`."""
    if name is None:
        return np.arange(count)
    if name not in columns:
        raise UnknownNameError("column", name, columns)
    values = [None if value is None or value != value or value == "" else str(value) for value in columns[name]]
    if None in values:
        raise DataError(f"column {name!r}, row {values.index(None) + 1} names no run, and rows are resampled by runs; "
                        "name the run of every row")  # fmt: skip
    return np.unique(np.array(values), return_inverse=True)[1]
