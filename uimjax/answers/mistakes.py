"""Mistakes of a classifier as people write them down, one JSON object a line, to rows and a measurement.

    {"image": "photos/17.png", "label": "cat", "predicted": "dog"}

`image`, `text` or `features` is what the model was shown, `label` what it is, `predicted` what the model said (left
out: what it says). Every measurement rises with the failure.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.answers.failures import Failures, json_lines
from uimjax.corpora.documents import clean
from uimjax.corpora.examples import label_of, picture_of
from uimjax.corpora.labelled import Encoder, class_number
from uimjax.errors import MalformedRowError, ShapeError, UnknownNameError, UsageError
from uimjax.references import resolve
from uimjax.task import Measurement, Task

DIFFERENTIAL = "differential"


@dataclass(frozen=True)
class Measure:
    """`of(logits, label, predicted)`; `label`: it needs what is right, not only what was said."""

    of: Callable[[Any, Any, Any], Any]
    reading: str
    unit: str = "relative"
    label: bool = False


def _margin(logits: Any, _label: Any, said: Any) -> Any:
    others = jnp.where(jnp.arange(len(logits)) == said, -jnp.inf, logits)
    return logits[said] - jax.nn.logsumexp(others)


MEASURES: dict[str, Measure] = {
    "differential": Measure(
        lambda z, label, said: z[said] - z[label], "log p of the class that was said minus log p of the label", "nats",
        label=True,
    ),
    "logprob": Measure(
        lambda z, _, said: jax.nn.log_softmax(z)[said], "log p of the class that was said", "nats"
    ),
    "logit": Measure(lambda z, _, said: z[said], "logit of the class that was said"),
    "margin": Measure(_margin, "log odds of the class that was said (TRAK, arXiv 2303.14186)"),
    "loss": Measure(
        lambda z, label, _: -jax.nn.log_softmax(z)[label], "nats of the label: what the model should have said",
        "nats", label=True,
    ),
}  # fmt: skip


class Mistakes(NamedTuple):
    """`failures`: rows of the encoder with `"label"` and `"predicted"`, and the measurement; `p` `[Q, C]`: what the
    model gives each class."""

    failures: Failures
    p: np.ndarray


class Model(NamedTuple):
    """A task with outputs, its parameters, the names of its outputs, and what makes its rows; `names`: classes are
    called by name alone."""

    task: Task
    params: Any
    classes: Sequence[str]
    encoder: Encoder
    names: bool = False


def read_mistakes(
    path: str | Path, model: Model, examples: Mapping[str, Any], measure: str = "", batch_size: int = 32
) -> Mistakes:
    """Mistakes of a file; `examples`: rows that theirs must look like. `measure`, by name: differential (the default
    where all lines have a label), logprob (where they have not), logit, margin, loss; or `pkg.module:function` of your
    own, `(task, params, row) -> a number that rises with the failure`, of rows with `"label"` (-1 where there is none)
    and `"predicted"`.

    Raises:
        MissingFileError, DataError: no such file, or nothing in it. MalformedRowError: the line is named.
        UnknownNameError: no such measurement. MismatchError: no such class. UsageError: the measurement wants a label
        and there is none, or what was said is right. ShapeError: a longer text than a row, or another size.
    """
    path, (task, params, classes, encoder, names) = Path(path), model
    own = ":" in measure
    if measure and not own and measure not in MEASURES:
        raise UnknownNameError("measurement of a classifier", measure, MEASURES)
    lines = json_lines(path, f'{{"{encoder.kind}": ..., "label": "...", "predicted": "..."}}')
    encoded = [_row(path, number, line, encoder, examples) for number, line in lines]
    rows = {name: np.stack([one[name] for one in encoded]) for name in encoded[0]}
    rows["label"] = np.array([_class(path, n, line, "label", classes, names) for n, line in lines], np.int32)
    said = np.array([_class(path, n, line, "predicted", classes, names) for n, line in lines], np.int32)
    p = _given(task, params, rows | {"label": np.maximum(rows["label"], 0)}, min(batch_size, len(lines)))
    rows["predicted"] = np.where(said < 0, p.argmax(1), said).astype(np.int32)
    name = measure or (DIFFERENTIAL if (rows["label"] >= 0).all() else "logprob")
    plain = [line | _named(rows, k, classes) for k, (_, line) in enumerate(lines)]
    if own:
        measurement = Measurement(name, functools.partial(resolve(name), task), "relative")
        return Mistakes(Failures(rows, measurement, plain, None, False), p)
    its = MEASURES[name]
    _check_labels(path, [number for number, _ in lines], rows, name, classes)
    measurement = Measurement(name, functools.partial(_measured, its.of, task), its.unit, its.reading)
    return Mistakes(Failures(rows, measurement, plain, None, False), p)


def _given(task: Task, params: Any, rows: Any, batch_size: int) -> np.ndarray:
    """Probabilities of the classes, `[Q, C]`."""
    assert task.outputs is not None
    program = jax.jit(jax.vmap(task.outputs, (None, 0)))
    found = [program(params, b.rows)[: int(b.mask.sum())] for b in row.batches(rows, batch_size)]
    return np.asarray(jax.nn.softmax(np.concatenate(found).astype(np.float64)), np.float64)


def _measured(of: Any, task: Task, params: Any, its: Any) -> Any:
    assert task.outputs is not None
    shown = {**its, "label": jnp.maximum(its["label"], 0)}
    return of(task.outputs(params, shown), shown["label"], its["predicted"])


def _check_labels(path: Path, numbers: Sequence[int], rows: Any, name: str, classes: Sequence[str]) -> None:
    """Raises UsageError: a label is needed that is not there, or the difference of a class to itself is asked for."""
    if not MEASURES[name].label:
        return
    for number, label, said in zip(numbers, rows["label"], rows["predicted"], strict=True):
        if label < 0:
            raise UsageError(f"{path}, line {number}: {name} needs the label, and there is none; add it everywhere")
        if name == DIFFERENTIAL and label == said:
            raise UsageError(
                f"{path}, line {number}: {classes[said]!r} is both what was said and the label, so nothing is wrong "
                "there. Leave the line out, or ask for --measure loss"
            )


def _row(
    path: Path, number: int, line: Mapping[str, Any], encoder: Encoder, examples: Mapping[str, Any]
) -> dict[str, np.ndarray]:  # fmt: skip
    if encoder.kind not in line:
        raise MalformedRowError(path, number, f"{UnknownNameError('key', encoder.kind, line)} It was wanted here.")
    value = line[encoder.kind]
    if encoder.kind == "image":
        value, why = picture_of(value, path.parent)
        if why:
            raise MalformedRowError(path, number, f"{why}; a path beside {path.name} was wanted")
    elif encoder.kind == "text":
        if not isinstance(value, str) or not value.strip():
            raise MalformedRowError(path, number, f"'text' is {value!r}; words were wanted")
        value = clean(value)
    try:
        made, remark = encoder.encode(value)
    except (ValueError, TypeError) as error:
        raise MalformedRowError(path, number, str(error)) from error
    if remark:
        raise ShapeError(f"{path}, line {number}: {remark}. Raise --length, or shorten the text")
    for name, x in made.items():
        if x.shape != examples[name].shape[1:]:
            told = f"{name} {list(x.shape)} arrived, and the examples have {list(examples[name].shape[1:])}"
            raise ShapeError(f"{path}, line {number}: {told}; make them the same (pictures: --side)")
    return made


def _class(
    path: Path, number: int, line: Mapping[str, Any], key: str, classes: Sequence[str], names: bool
) -> int:  # fmt: skip
    """-1 where there is none."""
    label = label_of(line.get(key))
    return -1 if label is None else class_number(label, classes, f"{path}, line {number}, {key!r}", names)


def _named(rows: Any, k: int, classes: Sequence[str]) -> dict[str, Any]:
    label = int(rows["label"][k])
    return {"label": None if label < 0 else classes[label], "predicted": classes[int(rows["predicted"][k])]}
