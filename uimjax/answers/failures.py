"""Failures of a language model as people write them down, one JSON object a line, to rows and a measurement.

    {"prompt": "The capital of France is", "bad": " Rome", "good": " Paris"}

`bad` is what the model says and should not; `good`, what it should have said; `contrast`, a list of matched safe twins
`{"prompt": ..., "bad": ...}` (of the two what is left out is the line's own); `group`, one of two groups that are
compared. Other keys travel along. Every measurement rises with the failure.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from uimjax import tables
from uimjax.answers.measures import MEASURES, Measure
from uimjax.corpora.documents import clean
from uimjax.errors import DataError, MalformedRowError, MissingFileError, ShapeError, UnknownNameError, UsageError
from uimjax.references import resolve
from uimjax.task import Measurement, Task

KEYS = ("prompt", "bad", "good")
Line = dict[str, Any]


class Failures(NamedTuple):
    """`rows`: `{"bad": {"tokens" [Q, T], "counted" [Q, T]}}` and, for measurements that compare, `"good"` likewise (of
    `contrast` `[Q, K, T]`): prompt and completion, of which the completion's tokens count. `lines`: the objects
    themselves. `parts(params, row)`: the measurement by token, of `bad` and then of what it is compared with; None for
    one of the reader's own. `together`: the measurement is of all lines at once."""

    rows: dict[str, Any]
    measurement: Measurement
    lines: list[Line]
    parts: Callable[[Any, Any], Any] | None
    together: bool


def read_failures(
    path: str | Path, task: Task, tokenizer: tokenizers.Tokenizer, length: int, measure: str = ""
) -> Failures:
    """Failures of a file, for a `task` whose loss is `[T]` nats of `{"tokens", "counted"}`; `length`: the most tokens.

    `measure`, by name:
      logprob       log p(bad | prompt), of all its tokens together
      loss          nats a token of `bad`, here the text that the model should know
      logit         the tokens' logits, added up; margin: their log odds, added up
      extraction    the lead in logits of the weakest token said: above 0, greedy decoding says it all
      differential  log p(bad | prompt) - log p(good | prompt)
      preference    -log sigmoid of (log p(good | prompt) - log p(bad | prompt)), the loss of a preference (Rafailov et
                    al. 2023, arXiv 2305.18290, without a reference model)
      contrast      log p(bad | prompt) less its mean over the line's safe twins
      group_gap     mean log p(bad | prompt) over the lines of the first line's group, minus that over the other group
    or `pkg.module:function` of your own, `(task, params, row) -> a number that rises with the failure`, of rows with
    the sides that all lines have.
    "": contrast or differential where there are twins or good answers (then all lines need them), else logprob.

    Raises:
        MissingFileError, DataError: no such file, or nothing in it. MalformedRowError: the line is named. ShapeError: a
        line of more than `length` tokens. UnknownNameError: no such measurement. UsageError: it wants what a line has
        not.
    """
    wanted = '{"prompt": "...", "bad": "..."}'
    lines = [(number, _line(Path(path), number, its)) for number, its in json_lines(Path(path), wanted)]
    its, name = _measure(Path(path), lines, measure)
    if its is not None and its.logits and task.outputs is None:
        raise UsageError(f"{name} reads logits, and the task has no outputs; take logprob or differential")
    coder = functools.partial(_coded, Path(path), tokenizer, length)
    sides: dict[str, list[list[Coded]]] = {
        side: [[coder(number, twin, key) for twin, key in _twins(line, side)] for number, line in lines]
        for side in _sides(lines, its)
    }
    longest = max(len(tokens) for side in sides.values() for each in side for tokens, _ in each)
    rows: dict[str, Any] = {side: _padded(each, longest, side == "contrast") for side, each in sides.items()}
    if "contrast" in sides:
        most = rows["contrast"]["tokens"].shape[1]
        rows["twins"] = np.array([[k < len(each) for k in range(most)] for each in sides["contrast"]], np.float32)
    if name == "group_gap":
        rows["weight"] = _weights(Path(path), lines)
    plain = [line for _, line in lines]
    if its is None:
        return Failures(rows, Measurement(name, functools.partial(resolve(name), task), "relative"), plain, None, False)
    reading = its.reading.replace("one group", f"group {plain[0]['group']}") if name == "group_gap" else its.reading
    measurement = Measurement(name, functools.partial(its.fun, task), its.unit, reading)
    return Failures(rows, measurement, plain, functools.partial(its.parts, task), its.together)


def shuffled(rows: dict[str, Any], seed: int) -> dict[str, Any]:
    """Rows of failures with the words inside each side in random order: they say nothing any more. Padding stays where
    it is, and so do the places of the completion."""
    rng = np.random.default_rng(seed)

    def side(its: Any) -> Any:
        if not isinstance(its, dict):
            return its
        tokens, counted = np.array(its["tokens"]), np.asarray(its["counted"])
        flat, marks = tokens.reshape(-1, tokens.shape[-1]), counted.reshape(-1, tokens.shape[-1])
        for line, mark in zip(flat, marks, strict=True):
            stop = int(np.flatnonzero(mark).max(initial=-1)) + 1  # a completion ends its row
            line[:stop] = rng.permutation(line[:stop])
        return its | {"tokens": tokens}

    return {name: side(its) for name, its in rows.items()}


def _measure(path: Path, lines: list[tuple[int, Line]], asked: str) -> tuple[Measure | None, str]:
    """(the measurement, or None for one of the reader's own; its name)."""
    if ":" in asked:
        return None, asked
    if asked and asked not in MEASURES:
        raise UnknownNameError("measurement", asked, MEASURES)
    able = [name for name in ("contrast", "differential") if _have(lines, MEASURES[name].needs)]
    name = asked or next(iter(able), "logprob")
    for key in MEASURES[name].needs:
        lacking = [number for number, line in lines if key not in line]
        if lacking:
            cure = "add it" if asked else "add it everywhere, or name a measurement that needs none (logprob)"
            raise UsageError(
                f"{path}, line {lacking[0]}: {name} compares `bad` with {key!r}, and there is none; {cure}"
            )
    return MEASURES[name], name


def _have(lines: list[tuple[int, Line]], keys: Sequence[str]) -> bool:
    """Some line has them: that others lack them is then an error, and no other question."""
    return any(all(key in line for key in keys) for _, line in lines)


def _sides(lines: list[tuple[int, Line]], its: Measure | None) -> list[str]:
    """Completions that are made rows: what the measurement reads; for the reader's own all that every line has."""
    if its is None:
        return ["bad", *(key for key in ("good", "contrast") if all(key in line for _, line in lines))]
    return ["bad", *(key for key in its.needs if key in ("good", "contrast"))]


def _twins(line: Line, side: str) -> list[tuple[Line, str]]:
    """(an object with a prompt, which of its keys is the completion)."""
    return [(line | twin, "bad") for twin in line["contrast"]] if side == "contrast" else [(line, side)]


def _weights(path: Path, lines: list[tuple[int, Line]]) -> np.ndarray:
    """Such that the mean over lines is the difference of the two groups' means."""
    groups = list(dict.fromkeys(str(line["group"]) for _, line in lines))
    if len(groups) != 2:
        raise UsageError(f"{path}: group_gap compares two groups, and there are {len(groups)}: {', '.join(groups[:5])}")
    mine = np.array([str(line["group"]) == groups[0] for _, line in lines])
    return np.where(mine, len(mine) / mine.sum(), -len(mine) / (~mine).sum()).astype(np.float32)


def json_lines(path: Path, wanted: str) -> list[tuple[int, Line]]:
    """(number from 1, object) of every line that is not empty.

    Raises:
        MissingFileError, DataError: no such file, or nothing in it (`wanted` is shown). MalformedRowError.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there (looked in {path.absolute().parent})")
    found = list(tables.lines(path))
    if not found:
        raise DataError(f"{path} holds no failures; a line a failure was wanted: {wanted}")
    return found


def _line(path: Path, number: int, line: Line) -> Line:
    """As it was written, checked and cleaned."""
    for key in KEYS:
        if key in line and not isinstance(line[key], str):
            raise MalformedRowError(path, number, f"{key!r} is a {type(line[key]).__name__}, text was wanted")
    for key in ("prompt", "bad"):
        if key not in line:
            raise MalformedRowError(path, number, str(UnknownNameError("key", key, line)) + f" {key!r} was wanted")
    for key in ("bad", "good"):
        if key in line and not line[key]:
            raise MalformedRowError(path, number, f"{key!r} is empty; a completion was wanted")
    twins = line.get("contrast", [])
    if not isinstance(twins, list) or ("contrast" in line and not twins):
        raise MalformedRowError(path, number, '\'contrast\' is no list of safe twins, as [{"prompt": "..."}]')
    for twin in twins:
        fits = isinstance(twin, dict) and all(isinstance(twin.get(key, ""), str) for key in ("prompt", "bad"))
        if not fits or not twin.keys() & {"prompt", "bad"}:
            raise MalformedRowError(path, number, "a twin of 'contrast' is no object with a prompt, a bad, or both")
    cleaned = [twin | {key: clean(twin[key]) for key in ("prompt", "bad") if key in twin} for twin in twins]
    return line | {key: clean(line[key]) for key in KEYS if key in line} | ({"contrast": cleaned} if twins else {})


Coded = tuple[list[int], list[int]]


def _coded(path: Path, tokenizer: tokenizers.Tokenizer, length: int, number: int, line: Line, side: str) -> Coded:
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


def _padded(coded: list[list[Coded]], longest: int, several: bool) -> dict[str, np.ndarray]:
    """`[Q, T]`, or of `several` twins a line `[Q, K, T]`."""
    shape = (len(coded), max(map(len, coded)), longest)
    tokens, counted = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row, each in enumerate(coded):
        for k, (ids, which) in enumerate(each):
            tokens[row, k, : len(ids)], counted[row, k, : len(ids)] = ids, which
    made = {"tokens": tokens, "counted": counted}
    return made if several else {name: x[:, 0] for name, x in made.items()}
