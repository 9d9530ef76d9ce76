"""Failures of a language model as people write them down, one JSON object a line, to rows and a measurement.

    {"prompt": "The capital of France is", "bad": " Rome", "good": " Paris"}

`bad` is what the model says and should not; `good`, what it should have said. Keys besides these three travel along.
Every measurement rises with the failure.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from uimjax.corpora.documents import clean
from uimjax.errors import DataError, MalformedRowError, MissingFileError, ShapeError, UnknownNameError, UsageError
from uimjax.task import Measurement, Task

KEYS = ("prompt", "bad", "good")


class Failures(NamedTuple):
    """`rows`: `{"bad": {"tokens" [Q, T], "counted" [Q, T]}}` and, for measurements that compare, `"good"` likewise:
    prompt and completion, of which the completion's tokens count. `lines`: the objects themselves."""

    rows: dict[str, dict[str, np.ndarray]]
    measurement: Measurement
    lines: list[dict[str, Any]]


def read_failures(
    path: str | Path, task: Task, tokenizer: tokenizers.Tokenizer, length: int, measure: str = ""
) -> Failures:
    """Failures of a file, for a `task` whose loss is `[T]` nats of `{"tokens", "counted"}`; `length`: the most tokens.

    `measure`, by name:
      logprob       log p(bad | prompt), of all its tokens together
      loss          nats a token of `bad`, here the text that the model should know
      differential  log p(bad | prompt) - log p(good | prompt)
      preference    -log sigmoid of (log p(good | prompt) - log p(bad | prompt)), the loss of a preference (Rafailov et
                    al. 2023, arXiv 2305.18290, without a reference model)
    "": differential where all have a `good`, logprob where none has.

    Raises:
        MissingFileError, DataError: no such file, or nothing in it. MalformedRowError: the line is named. ShapeError: a
        line of more than `length` tokens. UnknownNameError: no such measurement. UsageError: it wants a `good`.
    """
    lines = _lines(Path(path))
    whole = [number for number, line in lines if "good" in line]
    name = measure or ("differential" if whole else "logprob")
    if name not in MEASURES:
        raise UnknownNameError("measurement", name, MEASURES)
    compares, make, reading = MEASURES[name]
    lacking = [number for number, line in lines if "good" not in line]
    if compares and lacking:
        cure = "add it" if measure else "add it everywhere, or name a measurement that needs none (logprob)"
        raise UsageError(f"{path}, line {lacking[0]}: {name} compares `bad` with `good`, and there is none; {cure}")
    sides = ("bad", "good") if compares else ("bad",)
    coded = {
        side: [_coded(Path(path), number, line, side, tokenizer, length) for number, line in lines] for side in sides
    }
    longest = max(len(tokens) for each in coded.values() for tokens, _ in each)
    rows = {side: _padded(each, longest) for side, each in coded.items()}
    unit = "nats" if name in ("logprob", "differential") else "relative"
    return Failures(rows, Measurement(name, functools.partial(make, task), unit, reading), [line for _, line in lines])


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise MissingFileError(f"{path} is not there (looked in {path.absolute().parent})")
    found = []
    try:
        whole = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    for number, text in enumerate(whole.split("\n"), start=1):
        if text.strip():
            found.append((number, _line(path, number, text)))
    if not found:
        raise DataError(f'{path} holds no failures; a line a failure was wanted: {{"prompt": "...", "bad": "..."}}')
    return found


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedRowError(path, number, f"not JSON ({error})") from error
    if not isinstance(line, dict):
        raise MalformedRowError(path, number, f"a {type(line).__name__} arrived, an object was wanted")
    for key in KEYS:
        if key in line and not isinstance(line[key], str):
            raise MalformedRowError(path, number, f"{key!r} is a {type(line[key]).__name__}, text was wanted")
    for key in ("prompt", "bad"):
        if key not in line:
            raise MalformedRowError(path, number, str(UnknownNameError("key", key, line)) + f" {key!r} was wanted")
    for key in ("bad", "good"):
        if key in line and not line[key]:
            raise MalformedRowError(path, number, f"{key!r} is empty; a completion was wanted")
    return line | {key: clean(line[key]) for key in KEYS if key in line}


def _coded(
    path: Path, number: int, line: dict[str, Any], side: str, tokenizer: tokenizers.Tokenizer, length: int
) -> tuple[list[int], list[int]]:
    """(tokens of prompt and completion, 1 for those of the completion). A token that holds the end of the prompt and
    the beginning of the completion is the completion's: the text is cut as the model would meet it, in one piece."""
    code = tokenizer.encode(line["prompt"] + line[side])
    cut = len(line["prompt"])
    counted = [int(stop > cut) for _, stop in code.offsets]
    if len(code.ids) > length:
        told = f"prompt and {side!r} are {len(code.ids)} tokens and {length} fit"
        raise ShapeError(f"{path}, line {number}: {told}; shorten the prompt from its beginning")
    if counted and counted[0]:
        raise MalformedRowError(
            path, number, "nothing stands before the completion: give it a prompt of a token or more"
        )
    if not any(counted):
        raise MalformedRowError(path, number, f"the tokenizer makes no token of {side!r}")
    return code.ids, counted


def _padded(coded: Sequence[tuple[list[int], list[int]]], longest: int) -> dict[str, np.ndarray]:
    tokens, counted = np.zeros((len(coded), longest), np.int32), np.zeros((len(coded), longest), np.float32)
    for row, (ids, which) in enumerate(coded):
        tokens[row, : len(ids)], counted[row, : len(ids)] = ids, which
    return {"tokens": tokens, "counted": counted}


# ---------------------------------------------------------------- measurements: (task, params, row) -> a number


def _log_likelihood(task: Task, params: Any, row: Any) -> Any:
    return -task.loss(params, row).sum()


def _logprob(task: Task, params: Any, row: Any) -> Any:
    return _log_likelihood(task, params, row["bad"])


def _loss(task: Task, params: Any, row: Any) -> Any:
    return task.loss(params, row["bad"]).sum() / jnp.maximum(row["bad"]["counted"].sum(), 1)


def _differential(task: Task, params: Any, row: Any) -> Any:
    return _log_likelihood(task, params, row["bad"]) - _log_likelihood(task, params, row["good"])


def _preference(task: Task, params: Any, row: Any) -> Any:
    return jax.nn.softplus(_differential(task, params, row))


Measure = Callable[[Task, Any, Any], Any]
MEASURES: dict[str, tuple[bool, Measure, str]] = {  # (does it compare with `good`?, the function, how to read it)
    "logprob": (False, _logprob, "log p of what was said, given the prompt"),
    "loss": (False, _loss, "nats a token of the text that should be known"),
    "differential": (True, _differential, "log p of the bad answer minus log p of the good one"),
    "preference": (True, _preference, "loss of preferring the good answer to the bad one"),
}
