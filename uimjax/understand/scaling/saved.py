"""A fitted law on disk: law.json (what it is and how it was found), the rows, and the refits of resampled rows."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from uimjax import __version__
from uimjax.errors import CorruptError, MismatchError, MissingFileError
from uimjax.store import digest_array, read_json, write_json
from uimjax.store.base import atomic, make_folder
from uimjax.understand.scaling.base import Fit, Objective, Optimum, Rows, natural_all
from uimjax.understand.scaling.forms import form_of
from uimjax.understand.scaling.intervals import LEVEL, Draws, percentiles

LAW, ROWS, REFITS = "law.json", "rows.parquet", "draws.parquet"
VERSION = 2  # 1: the forms of MOVED in other coordinates
MOVED = ("kaplan", "overtraining", "sigmoid")
NONE = 1e-9  # of the smallest loss


def told(fit: Fit, draws: Draws | None, used: Mapping[str, str], reference: str) -> dict[str, Any]:
    """All of a fit as JSON: the objective first, the parameters second."""
    found: dict[str, Any] = {
        "version": VERSION, "uimjax": __version__, "form": reference, "equation": fit.form.equation,
        "source": fit.form.source, "columns": dict(used), "rows": len(fit.rows.y),
        "runs": len(np.unique(fit.rows.group)),
        "objective": dataclasses.asdict(fit.objective), "value": fit.value, "r2": fit.r2,
        "parameters": _floored(fit, fit.natural),
        "fixed": fit.fixed, "starts": fit.starts,
        "optima": [{"value": o.value, "share_of_starts": o.share, "parameters": _floored(fit, o.natural)}
                   for o in fit.optima],
        "condition": {"fitted_coordinates": fit.condition[0], "raw_coordinates": fit.condition[1]},
        "warnings": fit.warnings, "centre": fit.centre, "theta": [float(v) for v in fit.theta],
        "digest": _digest(fit.rows),
    }  # fmt: skip
    if draws is not None:
        ends = {name: percentiles(values) for name, values in draws.natural.items()}
        sides = [_floored(fit, {name: float(each[k]) for name, each in ends.items()}) for k in (0, 1)]
        found["intervals"] = {name: [side[name] for side in sides] for name in ends}
        found |= {"standard_errors": draws.errors, "level": LEVEL, "draws": len(draws.theta), "seed": draws.seed}
        found["resampled"] = f"{draws.groups} runs, with replacement"
    return found


def _floored(fit: Fit, natural: Mapping[str, float]) -> dict[str, float]:
    """A floor of the loss that is lost in its rounding is 0: how far below it a descent ended means nothing."""
    least = NONE * float(np.min(np.abs(fit.rows.y)))
    return {name: 0.0 if name == "E" and 0 < value < least else value for name, value in natural.items()}


def _digest(rows: Rows) -> str:
    return digest_array(np.stack([*(rows.x[name] for name in sorted(rows.x)), rows.y, rows.group.astype(np.float64)]))


def save(folder: Path, fit: Fit, draws: Draws, used: Mapping[str, str], reference: str) -> Path:
    """Write the law into a folder; `reference` is what names its form. Returns the path of law.json."""
    make_folder(folder)
    columns = fit.rows.x | {"loss": fit.rows.y, "group": fit.rows.group}
    _write(folder / ROWS, columns, {"fitted": used["loss"]})
    refits = {name: draws.theta[:, k] for k, name in enumerate(f"theta_{n}" for n in fit.form.names)}
    _write(folder / REFITS, refits | draws.natural, {"seed": str(draws.seed), "groups": str(draws.groups)})
    write_json(folder / LAW, told(fit, draws, used, reference))  # last: a law without its rows is none
    return folder / LAW


def _write(path: Path, columns: Mapping[str, np.ndarray], said: dict[str, str]) -> None:
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with atomic(path) as temporary:
        parquet.write_table(table.replace_schema_metadata(said), temporary)


def load(folder: Path) -> tuple[Fit, Draws]:
    """The law that `save` wrote.

    Raises:
        MissingFileError: no law there. CorruptError: the rows are not those it was fitted to. MismatchError: a later
            version, or an earlier one of a form that has changed.
    """
    if not (folder / LAW).is_file():
        raise MissingFileError(f"{folder} holds no {LAW}; write one: uimjax scaling fit RUNS.csv --out {folder}")
    law = read_json(folder / LAW)
    if law["version"] > VERSION:
        raise MismatchError(f"{folder / LAW} is of version {law['version']}; this uimjax reads up to {VERSION}")
    form, held = form_of(law["form"]), _read(folder / ROWS)
    if law["version"] < VERSION and form.name in MOVED:
        raise MismatchError(f"{folder / LAW} is of version {law['version']}, whose {form.name} had other coordinates; "
                            f"fit its rows again: uimjax scaling fit {folder / ROWS} --form {law['form']}")  # fmt: skip
    rows = Rows({name: held[name] for name in form.inputs}, held["loss"], held["group"].astype(np.int64))
    if _digest(rows) != law["digest"]:
        raise CorruptError(f"{folder / ROWS} does not hold the rows of {LAW}; fit the law again")
    kept = _read(folder / REFITS)
    centre, theta = law["centre"], np.array(law["theta"])
    drawn = np.stack([kept[f"theta_{name}"] for name in form.names], axis=1)
    optima = [
        Optimum(o["value"], o["parameters"], o["share_of_starts"], theta if k == 0 else np.full(len(theta), np.nan))
        for k, o in enumerate(law["optima"])
    ]
    condition = law["condition"]["fitted_coordinates"], law["condition"]["raw_coordinates"]
    fit = Fit(form, Objective(**law["objective"]), rows, theta, centre, law["fixed"], optima, law["starts"], condition,
              law["r2"], law["warnings"])  # fmt: skip
    return fit, Draws(drawn, natural_all(form, drawn, centre), law["seed"], len(np.unique(rows.group)))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; fit the law again")
    table = parquet.read_table(path)
    return {name: np.asarray(table[name].to_numpy()) for name in table.column_names}
