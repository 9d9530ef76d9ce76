"""What commands share: configs with flags over them, the reader's own functions, answers as JSON and as text."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uimjax.errors import UsageError


def override(kind: Any, values: dict[str, Any], flags: list[str]) -> Any:
    """Config values, then flags over them."""
    import tyro

    from uimjax.config import parse

    config = parse(kind, values, "config")
    if not flags:
        return config
    return tyro.cli(kind, default=config, args=flags, prog="uimjax ... ")


def loaded(reference: str, wanted: str, count: int) -> tuple[Any, ...]:
    """What the reader's own function returns, the first of it a Task."""
    from uimjax.references import call
    from uimjax.task import Task

    found = call(reference)
    if not isinstance(found, tuple) or len(found) != count or not isinstance(found[0], Task):
        raise UsageError(f"{reference} returned {type(found).__name__}; {wanted} was wanted")
    return found


def mesh_of(config: Any) -> Any:
    """Of the devices of this process that a config asks for; None for one."""
    import jax

    from uimjax.mesh import make_mesh

    return None if config.devices == 1 else make_mesh(config.devices, jax.local_devices())


def pairs(given: Sequence[str] | None, what: str, value: str = "VALUE") -> dict[str, str]:
    """NAME=VALUE of a flag that takes several.

    Raises:
        UsageError: one without an equals sign, or a name given twice.
    """
    found: dict[str, str] = {}
    for item in given or []:
        name, _, text = item.partition("=")
        if not name or not text or name in found:
            raise UsageError(f"{what} {item!r} arrived; NAME={value} was wanted, each name once")
        found[name] = text
    return found


def number(text: str, what: str) -> float:
    """Raises UsageError."""
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{what}: {text!r} is no number") from error


def listed(at: Sequence[str]) -> dict[str, list[float]]:
    """Values of inputs, as `--at N=1e9,1e10 D=2e10,2e11` gives them. Raises UsageError."""
    split = {n: [number(v, f"--at {n}") for v in values.split(",")] for n, values in pairs(at, "--at").items()}
    counts = {len(values) for values in split.values()}
    if len(counts) > 1:
        raise UsageError(f"--at lists {sorted(counts)} values; as many of each input were wanted")
    return split


def as_json(value: Any) -> str:
    """One object on one line, as `--json` prints it: valid JSON whatever the numbers are; dates and such are text."""
    return json.dumps(plain(value), allow_nan=False, default=str)


def plain(value: Any) -> Any:
    """As JSON has it: NaN is null, infinities are text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, Path) else value


def cells(heads: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first values of each row under `heads`; numbers with four digits, names harmless."""
    from uimjax.report.figures import label

    short = lambda x: f"{x:.4g}" if isinstance(x, float) else label(x)  # noqa: E731  # of one cell
    return columns(heads, [[short(x) for x in list(row.values())[: len(heads)]] for row in rows])


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in plain text: the first column to the left, numbers to the right."""
    lines = [heads, *rows]
    first, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rest = [[f"{cell:>{width}}" for cell, width in zip(line[1:], widths, strict=True)] for line in lines]
    return ["  " + "  ".join([f"{line[0]:{first}}", *more]) for line, more in zip(lines, rest, strict=True)]
