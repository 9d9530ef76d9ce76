"""Where a training run's curves, histograms, texts and hyper-parameters go: JSON lines, and TensorBoard (without
TensorFlow)."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from uimjax.errors import MalformedRowError, NonFiniteError, OutputError, ShapeError, UsageError
from uimjax.store.base import atomic, make_folder

BUCKETS = 30  # as many as TensorBoard draws


class Sink(Protocol):
    """One method: scalars at a step. Writing a step again (after a resume) must leave one record of it."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...


class Recorder(Sink, Protocol):
    """A sink of everything that a run may have to show; `JsonLines` and `TensorBoard` are both.

    `histogram`: how the values of an array of any shape are spread. `text`: a sample, as what the model continues a
    prompt with; it may be empty. `hparams`: the choices of a run (numbers, strings, bools) and what came of them
    (empty: nothing yet); a sweep has a sink a run, each with a folder of its own. Of a run they are stated once:
    stated again, the later metrics stand.

    Raises:
        UsageError: an empty name, a value of another type, or no choices. ShapeError: no values, or what holds no real
        numbers. NonFiniteError: NaN or infinity. OutputError: the file cannot be written.
    """

    def histogram(self, step: int, name: str, values: Any) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None: ...


class Buckets(NamedTuple):
    """`edges` `[31]`, `counts` `[30]`: buckets of one width from the least value to the largest, as TensorBoard has
    them. Each holds its left edge, the last its right edge too; equal values are all in the last."""

    edges: np.ndarray
    counts: np.ndarray


def buckets(values: Any) -> Buckets:
    """Of all elements of an array.

    Raises:
        ShapeError: no values, or what holds no real numbers. NonFiniteError: NaN or infinity.

    >>> buckets([0.0, 30.0, 30.0, 1.0]).counts[[0, 1, 29]].tolist()
    [1, 1, 2]
    """
    try:
        given = np.asarray(values)
        x = np.empty(0) if np.iscomplexobj(given) else given.astype(np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"a histogram of {type(values).__name__}: {error}; an array of numbers was wanted") from error
    if not x.size:
        raise ShapeError(f"a histogram of shape {list(given.shape)}, {given.dtype}; real numbers, one at least, wanted")
    low, high = float(x.min()), float(x.max())
    if not math.isfinite(high - low):
        wrong = int((~np.isfinite(x)).sum())
        raise NonFiniteError(
            f"a histogram of {x.size} values, {wrong} of them NaN or infinite, from {low} to {high}; finite values, "
            "and a finite distance between them, were wanted"
        )
    width = (high - low) / BUCKETS
    if width == 0:  # one value, or numbers nearer to each other than any width
        return Buckets(np.full(BUCKETS + 1, high), np.bincount([BUCKETS - 1], [x.size], BUCKETS).astype(np.int64))
    place = np.minimum(((x - low) / width).astype(np.int64), BUCKETS - 1)
    return Buckets(np.linspace(low, high, BUCKETS + 1), np.bincount(place, minlength=BUCKETS))


class JsonLines:
    """`metrics.jsonl`: one object a step; NaN and infinity, which JSON has not, are null. Steps from `resume` on are
    cut off, so a resumed run has no doubles.

    What is no scalar stands beside it, made when the first is written: `metrics-histograms.jsonl` and
    `metrics-texts.jsonl`, one object a step and name, and `metrics-hparams.json`, one object.
    """

    def __init__(self, path: Path, resume: int = 0):
        make_folder(path.parent)
        self._path = path
        beside = lambda kind, suffix: path.with_name(f"{path.stem}-{kind}{suffix}")  # noqa: E731  # said thrice
        self._histograms, self._texts = beside("histograms", path.suffix), beside("texts", path.suffix)
        self._hparams = beside("hparams", ".json")
        for each in (path, self._histograms, self._texts):
            if each == path or each.exists():
                _cut(each, resume)
        if resume == 0:
            self._hparams.unlink(missing_ok=True)  # of another run

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        plain = {k: float(v) for k, v in scalars.items()}
        _append(self._path, {"step": step} | {k: v if math.isfinite(v) else None for k, v in plain.items()})

    def histogram(self, step: int, name: str, values: Any) -> None:
        """`edges` and `counts` as `buckets` gives them."""
        found = buckets(values)
        numbers = {"edges": found.edges.tolist(), "counts": found.counts.tolist()}
        _append(self._histograms, {"step": int(step), "name": _named(name)} | numbers)

    def text(self, step: int, name: str, text: str) -> None:
        _append(self._texts, {"step": int(step), "name": _named(name), "text": _worded(text)})

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        found = {"hparams": _choices(values), "metrics": _measured(metrics)}
        with atomic(self._hparams) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")


class TensorBoard:
    """An event file that `tensorboard --logdir` reads; a resumed run opens a further file, which TensorBoard merges.

    With `resume`, the step that the run goes on at, TensorBoard forgets what an earlier file had from there on.
    """

    def __init__(self, folder: Path, resume: int = 0):
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]  # generated
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        fresh = not any(make_folder(folder).glob("*tfevents*"))
        self._writer = EventFileWriter(str(folder))
        self._kinds: dict[str, str] = {}
        if fresh or resume:  # TensorBoard takes the second such mark for a restart, which needs a first
            self._add(resume, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboard.plugins.scalar import summary_v2

        for name, value in scalars.items():
            self._add(step, summary=summary_v2.scalar_pb(self._tag(name, "scalar"), float(value)))
        self._writer.flush()

    def histogram(self, step: int, name: str, values: Any) -> None:
        from tensorboard.plugins.histogram import metadata
        from tensorboard.util import tensor_util

        edges, counts = buckets(values)
        tensor = tensor_util.make_tensor_proto(np.stack([edges[:-1], edges[1:], counts], 1), np.float64)
        about = metadata.create_summary_metadata(display_name=None, description=None)
        self._add(step, summary=_summary(self._tag(name, "histogram"), about, tensor))
        self._writer.flush()

    def text(self, step: int, name: str, text: str) -> None:
        """TensorBoard shows it as Markdown."""
        from tensorboard.plugins.text import summary_v2

        self._add(step, summary=summary_v2.text_pb(self._tag(name, "text"), _utf8(_worded(text))))
        self._writer.flush()

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Metrics are scalars named `hparam/...`, at step 0; with them the run counts as finished. Runs of equal
        choices are a group, whose metrics TensorBoard averages. It keeps the first choices that a folder has."""
        from tensorboard.plugins.hparams import metadata, summary_v2
        from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS  # pyright: ignore[reportAttributeAccessIssue]  # generated
        from tensorboard.plugins.hparams.plugin_data_pb2 import (  # generated
            HParamsPluginData,  # pyright: ignore[reportAttributeAccessIssue]
            SessionEndInfo,  # pyright: ignore[reportAttributeAccessIssue]
        )

        choices, measured = _choices(values), _measured(metrics)
        # No list of the sweep's choices and metrics is written: TensorBoard takes that of whichever run it meets
        # first, and without one it collects the types and domains of all runs.
        known = {_utf8(k): _utf8(v) if isinstance(v, str) else v for k, v in choices.items()}
        self._add(0, summary=summary_v2.hparams_pb(known))
        for name, value in measured.items():
            self.write(0, {f"hparam/{name}": value})
        if measured:
            end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
            about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end))
            self._add(0, summary=_summary(metadata.SESSION_END_INFO_TAG, about, metadata.NULL_TENSOR))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  # generated

        self._writer.add_event(Event(step=step, wall_time=time.time(), **what))

    def _tag(self, name: str, kind: str) -> str:
        """TensorBoard tells kinds apart by the first record of a name, and fails at a second kind."""
        first = self._kinds.setdefault(_named(name), kind)
        if first != kind:
            raise UsageError(f"{name!r} is the name of a {first} already; give the {kind} another name")
        return _utf8(name)


class Several:
    """One recorder that writes to each of several alike."""

    def __init__(self, *recorders: Recorder):
        self._recorders = recorders

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for each in self._recorders:
            each.write(step, scalars)

    def histogram(self, step: int, name: str, values: Any) -> None:
        for each in self._recorders:
            each.histogram(step, name, values)

    def text(self, step: int, name: str, text: str) -> None:
        for each in self._recorders:
            each.text(step, name, text)

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        for each in self._recorders:
            each.hparams(values, metrics)

    def close(self) -> None:
        """Those that hold something open."""
        for each in self._recorders:
            close = getattr(each, "close", None)
            if close is not None:
                close()


def _summary(tag: str, about: Any, tensor: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  # generated

    summary = Summary()
    summary.value.add(tag=tag, metadata=about, tensor=tensor)
    return summary


def _utf8(text: str) -> str:
    """A lone surrogate, which no UTF-8 holds and protocol buffers refuse, as a backslash and its number."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cut(path: Path, resume: int) -> None:
    """Keep the records of the steps before `resume`."""
    kept = []
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)  # the last may be torn by a crash
        whole = [line.strip() for line in lines if line.endswith("\n")]
        kept = [line for number, line in enumerate(whole, 1) if line and _step(path, number, line) < resume]
    with atomic(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))


def _step(path: Path, number: int, line: str) -> int:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedRowError(path, number, f"not JSON ({error}); move the file away, or mend it") from error
    step = found.get("step") if isinstance(found, dict) else None
    if not isinstance(step, int):
        raise MalformedRowError(path, number, "an object with a whole number `step` was wanted; move the file away")
    return step


def _append(path: Path, record: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise OutputError(f"cannot append to {path}: {error.strerror}") from error


def _named(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UsageError(f"{name!r} arrived as a name; a string that is not empty was wanted")
    return name


def _worded(text: Any) -> str:
    if not isinstance(text, str):
        raise UsageError(f"a text of type {type(text).__name__} arrived; a string was wanted")
    return text


def _choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain bools, integers, floats and strings."""
    if not values:
        raise UsageError("no hyper-parameters arrived; at least one name and value was wanted")
    scalar = lambda v: v.item() if hasattr(v, "item") and np.ndim(v) == 0 else v  # noqa: E731  # of NumPy or JAX
    plain = {_named(name): scalar(value) for name, value in values.items()}
    for name, value in plain.items():
        if not isinstance(value, bool | int | float | str):
            raise UsageError(
                f"hyper-parameter {name!r} is a {type(value).__name__}; a bool, a number or a string was wanted. Give "
                "a list as one string, and None as a word."
            )
        if not isinstance(value, str):
            _finite(f"hyper-parameter {name!r}", value)
    return plain


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {_named(name): _finite(f"metric {name!r}", value) for name, value in metrics.items()}


def _finite(what: str, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{what} is {type(value).__name__}: {error}; a number was wanted") from error
    if not math.isfinite(found):
        raise NonFiniteError(f"{what} is {found}; a finite number was wanted")
    return found
