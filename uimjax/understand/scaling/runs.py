"""The runs of a sweep: axes crossed or a list of settings, each of them checked, and the name and key of every run."""

import dataclasses
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import UnknownNameError, UsageError
from uimjax.steps import Recipe
from uimjax.store import stage_key

VERSION = 2  # of what a built-in training computes; part of every key
Settings = dict[str, Any]
# Columns that come out of a run: no axis is called so.
TOLD = ("run", "loss", "error_rate", "accuracy", "train_loss", "seconds", "diverged", "why", "device", "devices",
        "uimjax", "jax")  # fmt: skip


class Run(NamedTuple):
    """`settings`: all of them. `key`: a digest of them and of what else the run follows from. `name`: for people."""

    name: str
    key: str
    settings: Settings


class Axis(NamedTuple):
    """`kind` int, float or str; `holds(value)` is True of what is allowed, `wanted` says it in words."""

    default: Any
    kind: type
    holds: Callable[[Any], bool]
    wanted: str


def _whole(default: Any, least: int = 1) -> Axis:
    return Axis(default, int, lambda v: v >= least, f"a whole number of {least} or more")


_RECIPE = {field.name: field.default for field in dataclasses.fields(Recipe)}
_ABOVE = (float, lambda v: v > 0, "a number above 0")
_SHARE = (float, lambda v: 0 <= v < 1, "a number in [0, 1)")
_CHOICES = {"optimizer": ("adamw", "sgd"), "schedule": ("constant", "cosine")}
AXES: dict[str, Axis] = {
    "width": _whole(64),
    "depth": _whole(2),
    "heads": _whole(4),
    "data": _whole(None),  # all there are
    "epochs": Axis(_RECIPE["epochs"], *_ABOVE),
    "steps": _whole(None),  # as the epochs say
    "batch_size": _whole(_RECIPE["batch_size"]),
    "seed": Axis(0, int, lambda v: 0 <= v < 2**31, "a whole number from 0 to 2^31 - 1"),
    "learning_rate": Axis(_RECIPE["learning_rate"], *_ABOVE),
    "corruption": Axis(0.0, *_SHARE),
    "optimizer": Axis("adamw", str, lambda v: v in _CHOICES["optimizer"], ""),
    "weight_decay": Axis(_RECIPE["weight_decay"], float, lambda v: v >= 0, "a number of 0 or more"),
    "schedule": Axis("cosine", str, lambda v: v in _CHOICES["schedule"], ""),
    "warmup": Axis(_RECIPE["warmup"], *_SHARE),
    "clip": Axis(None, *_ABOVE),  # not clipped
    "beta2": Axis(_RECIPE["beta2"], *_SHARE),
    "momentum": Axis(_RECIPE["momentum"], *_SHARE),
    "final": Axis(_RECIPE["final"], float, lambda v: 0 <= v <= 1, "a number in [0, 1]"),
}
TRAINERS = {"mlp": tuple(name for name in AXES if name != "heads"), "decoder": tuple(AXES)}
BESIDE = ("seed", "learning_rate", "corruption", "data")  # these may differ inside one program


def crossed(axes: Mapping[str, Any] | None, runs: Sequence[Mapping[str, Any]] | None) -> list[Settings]:
    """Every combination of the axes' values, the last axis fastest; or the list of runs as it is. What is no list
    counts as one value.

    Raises:
        UsageError: both or neither, an axis without values or with one twice, or no runs.
    """
    if (axes is None) == (runs is None):
        raise UsageError("one of axes={name: values} and runs=[{name: value}] was wanted, not both and not neither")
    if runs is not None:
        listed = [dict(run) for run in runs]
        if not listed:
            raise UsageError("runs=[] arrived; at least one run was wanted")
        return listed
    values = {name: _values(name, its) for name, its in (axes or {}).items()}
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def _values(name: str, given: Any) -> list[Any]:
    found = [given] if isinstance(given, str) or np.ndim(given) == 0 else list(given)
    if not found:
        raise UsageError(f"the axis {name!r} has no values; at least one was wanted")
    for k, value in enumerate(found):
        if value in found[:k]:
            raise UsageError(f"the axis {name!r} has the value {value!r} twice; list it once")
    return found


def completed(settings: Mapping[str, Any], trainer: str, rows: int) -> Settings:
    """All settings of a run of a built-in trainer on so many training rows, checked, in the order of `AXES`. Epochs
    are told in steps: those that go `epochs` times over the run's data, ceil(epochs data / batch_size).

    Raises:
        UnknownNameError: names the nearest axis. UsageError: a value that is none, more data than there are, or both
        steps and epochs.
    """
    known = TRAINERS[trainer]
    for name in settings:
        if name not in known:
            raise UnknownNameError(f"axis of trainer {trainer!r}", name, known)
    if settings.get("steps") is not None and settings.get("epochs") is not None:
        raise UsageError("steps and epochs both say how long a run is; leave one out")
    found = {name: _checked(name, settings.get(name)) for name in known}
    found["data"] = rows if found["data"] is None else found["data"]
    if found["data"] > rows:
        raise UsageError(f"data={found['data']} arrived and there are {rows} training rows")
    epochs = found.pop("epochs")
    if found["steps"] is None:  # a product such as 0.1 * 30 lies a little above 3
        found["steps"] = max(1, math.ceil(epochs * found["data"] / found["batch_size"] - 1e-9))
    return found


def _checked(name: str, value: Any) -> Any:
    """As Python's own type; what is left out (None) is the default."""
    axis = AXES[name]
    if value is None:
        return axis.default
    if axis.kind is str:
        if not isinstance(value, str) or not axis.holds(value):
            raise UnknownNameError(name, str(value), _CHOICES[name])
        return value
    try:
        plain = _number(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}={value!r} arrived; {axis.wanted} was wanted") from error
    if not math.isfinite(plain) or (axis.kind is int and plain != int(plain)) or not axis.holds(plain):
        raise UsageError(f"{name}={value!r} arrived; {axis.wanted} was wanted")
    return axis.kind(plain)


def _number(value: Any) -> int | float:
    """Of Python, NumPy or JAX; texts and truth values are none."""
    if isinstance(value, str | bytes | bool) or getattr(value, "dtype", None) == "bool":
        raise TypeError("no number")
    try:
        return operator.index(value)
    except TypeError:
        return float(value)


def plain(settings: Mapping[str, Any]) -> Settings:
    """Settings of the reader's own trainer: any names, of numbers, texts, truth values or None.

    Raises:
        UsageError: another type, a number that is not finite, or the name of a column that comes out of a run.
    """
    found = {name: value.item() if hasattr(value, "item") else value for name, value in settings.items()}
    for name, value in found.items():
        if not isinstance(name, str) or not name or name in TOLD:
            raise UsageError(f"an axis called {name!r} arrived; a name was wanted, none of {', '.join(TOLD)}")
        if value is not None and not isinstance(value, bool | int | float | str):
            raise UsageError(f"{name}={value!r} is a {type(value).__name__}; a number, a text or a truth value wanted")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name}={value!r} arrived; a finite number was wanted")
    return found


def named(listed: Sequence[Settings], said: Sequence[Mapping[str, Any]], *causes: Any) -> list[Run]:
    """Each of the `listed` with its key, which follows from its settings and the `causes`, and a name made of what the
    reader `said` of it.

    Raises:
        UsageError: two runs are the same.
    """
    found: dict[str, Run] = {}
    for number, (settings, words) in enumerate(zip(listed, said, strict=True), start=1):
        key = stage_key(VERSION, settings, *causes)
        if key in found:
            first = 1 + list(found).index(key)
            raise UsageError(f"run {number} is run {first} again: {settings}. List it once, or give it another seed.")
        told = "-".join(f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
                        for name, value in words.items())  # fmt: skip
        safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", told)[:120]  # it may become the name of a folder
        found[key] = Run(f"{safe}-{key[:8]}".lstrip("-."), key, settings)
    return list(found.values())
