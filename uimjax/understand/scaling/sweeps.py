"""Sweeps: many trainings over a grid of sizes, data, noise and seeds, as one table that scaling laws are fitted to.

`runs.parquet` and `runs.csv` have a row a run, which `uimjax.scaling.fit` reads as it is: all settings; N, the
parameters; D = steps x batch_size, the examples met in all (of token rows: the predicted tokens); U, the different ones
among them; C = 6 N D operations; noise; loss, held out, and train_loss, in nats an example (a predicted token);
error_rate, accuracy; seconds. `left_out.csv` lists the runs that diverged or failed, and why; `columns.json` says what
each column means.

*Guarantees*: a run's result depends neither on what ran beside it nor on the number of devices, up to rounding. A sweep
that was stopped and started again on the same devices gives the same table to the bit, but for the seconds of what was
repeated. What is finished stands in a journal under a digest of all that it follows from: it is not repeated, and one
with any other setting, or other data, is another run. (What your own function computes is not looked into: when you
change it, take another folder.) A sweep that other versions of uimjax or jax began is not gone on with. While runs wait
the tables of an earlier sweep in the folder are gone.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from uimjax import __version__, references
from uimjax.errors import DataError, UimError, UnknownNameError, UsageError
from uimjax.progress import Progress, quiet
from uimjax.sinks import Recorder
from uimjax.store.base import make_folder
from uimjax.understand.scaling import ledger, networks, together
from uimjax.understand.scaling.ledger import Entry, Row, Swept
from uimjax.understand.scaling.networks import Labelled, Problem, Tokens
from uimjax.understand.scaling.runs import TOLD, TRAINERS, Run, Settings, completed, crossed, named, plain

AT_ONCE = 32  # runs in one program
DIVERGED_AT = 3.0
_GIVEN = ("loss", "accuracy", "error_rate", "train_loss", "diverged")  # what one's own trainer may give of TOLD
_VERSIONS = {"uimjax": __version__, "jax": jax.__version__}
Recording = Callable[[str], Recorder | None]


def sweep(
    folder: str | Path,
    axes: Mapping[str, Any] | None = None,
    *,
    runs: Sequence[Mapping[str, Any]] | None = None,
    train: str = "mlp",
    data: Labelled | Tokens | None = None,
    at_once: int = AT_ONCE,
    devices: Sequence[Any] | None = None,
    diverged_at: float = DIVERGED_AT,
    process: int = 0,
    processes: int = 1,
    recorder: Recording | None = None,
    progress: Progress = quiet,
) -> Swept:
    """Train every run of a grid: `axes` `{name: values}`, all combinations, or `runs`, a list of settings.

    What is not named has its default (`runs.AXES`): `width`, `depth`, `data` (training examples that a run has),
    `epochs` over them or `steps`, `batch_size`, `seed`, `learning_rate`, `corruption` (share of the labels, or tokens,
    replaced by another), and the choices of a `Recipe`.

    `train`: "mlp", a perceptron of `depth` hidden layers of `width` on `Labelled` rows (default: the digits);
    "decoder", a causal transformer of `depth` layers on `Tokens`; or `pkg.module:fn`, your own `fn(settings) -> {name:
    number}` with the loss among them, of any axes. Where it knows them, it should give N, D, U and noise too.

    A run has diverged where its training loss is not finite, or above `diverged_at` times that of a uniform guess for a
    tenth of its steps (10 at least). At most `at_once` runs are in one program, over the `devices` (default: all local
    ones). With `processes`, process number `process` trains its share; all write to one folder, and the last to finish
    writes the tables. `recorder(run)` gives a sink for a run's settings and results, or None.

    Raises:
        UsageError, UnknownNameError: axes, values or choices that are none. ShapeError, NonFiniteError: of the data.
        NoRoomError: so many runs `at_once` do not fit. DataError: not a single run can be fitted. MismatchError: other
        versions began it. CorruptError: the journal was changed. OutputError: the folder cannot be written.

    >>> import tempfile
    >>> from uimjax.understand.scaling.sweeps import sweep
    >>> swept = sweep(tempfile.mkdtemp(), {"width": [4, 8], "data": [100, 200], "steps": [20]})
    >>> [(row["N"], row["D"], row["U"]) for row in swept.rows]
    [(330, 1280, 100), (330, 1280, 200), (682, 1280, 100), (682, 1280, 200)]
    """
    _check(at_once, diverged_at, process, processes, devices)
    learnt = problem_of(train, data)
    planned = plan(axes, runs, train, learnt, diverged_at)
    folder = make_folder(Path(folder))
    ledger.begun(folder, planned, _VERSIONS)
    if learnt is None:
        _own(folder, train, planned[process::processes], recorder, progress)
    else:
        _built_in(folder, learnt, planned, at_once, devices, diverged_at, process, processes, recorder, progress)
    return ledger.settled(folder, planned)


def _check(at_once: int, diverged_at: float, process: int, processes: int, devices: Sequence[Any] | None) -> None:
    if at_once < 1 or not diverged_at > 1:
        raise UsageError(f"at_once={at_once}, diverged_at={diverged_at}: 1 or more, and a number above 1, were wanted")
    if not 0 <= process < processes:
        raise UsageError(f"process {process} of {processes}: a number from 0 to {max(processes - 1, 0)} was wanted")
    if devices is not None and not len(devices):
        raise UsageError("devices=[] arrived; at least one was wanted")


def problem_of(train: str, data: Labelled | Tokens | None) -> Problem | None:
    """What a built-in trainer learns; None of the reader's own.

    Raises:
        UnknownNameError: no such trainer. UsageError: it cannot be imported, or data that do not belong to it.
    """
    if ":" not in train:
        if train not in TRAINERS:
            raise UnknownNameError("trainer (or write your own as pkg.module:fn)", train, TRAINERS)
        return networks.problem(train, data)
    if data is not None:
        raise UsageError(f"{train!r} reads its own data; leave data out")
    references.resolve(train)
    return None


def plan(
    axes: Mapping[str, Any] | None,
    runs: Sequence[Mapping[str, Any]] | None,
    train: str,
    learnt: Problem | None,
    diverged_at: float = DIVERGED_AT,
) -> list[Run]:
    """The runs of a sweep, checked. Raises UsageError, UnknownNameError."""
    said = crossed(axes, runs)
    if learnt is None:
        listed = [plain(settings) for settings in said]
        return named(listed, listed, train)
    listed = [completed(settings, train, learnt.rows) for settings in said]
    return named(listed, said, train, learnt.digest, float(diverged_at))


def expected(planned: Sequence[Run], learnt: Problem) -> list[Row]:
    """The table of the runs of a built-in trainer as far as it is known before they train: what is measured has some
    number in its place, one for each run, and N, which only tells sizes apart, too."""
    found = []
    for number, run in enumerate(planned, start=1):
        s = run.settings
        size, met = s["depth"] * s["width"] ** 2, s["steps"] * s["batch_size"]
        counted = {"N": size, "D": met * learnt.units, "U": networks.unique(s) * learnt.units}
        measured = dict.fromkeys(("loss", "error_rate", "accuracy", "train_loss", "seconds"), 1 / (1 + number))
        found.append(
            s | counted | measured | {"C": together.FLOPS * size * counted["D"], "noise": s["corruption"]}
            | {"repeats": met / networks.unique(s)}
        )  # fmt: skip
    return found


def _built_in(
    folder: Path, learnt: Problem, planned: list[Run], at_once: int, devices: Sequence[Any] | None, diverged_at: float,
    process: int, processes: int, recorder: Recording | None, progress: Progress,
) -> None:  # fmt: skip
    """Chunks belong to processes in turn. A chunk of which some runs are missing is trained whole, so that its program
    has the same shape and rounds alike."""
    done = ledger.read(folder)
    most = max(run.settings["data"] for run in planned)
    work = [(group.size, chunk) for group in together.groups(planned, at_once) for chunk in group.chunks]
    missing = lambda chunk: [run for run in chunk if not ledger.finished(done, run)]  # noqa: E731  # one line, twice
    mine = [its for its in work[process::processes] if missing(its[1])]
    for size, chunk in progress(mine, "training a sweep", unit="groups of runs"):
        settings = [run.settings for run in chunk]
        found = together.trained(learnt, settings, size, most, devices or jax.local_devices(), diverged_at)
        new = missing(chunk)
        entries = [_entry(run, its) for run, its in zip(chunk, found, strict=True) if run in new]
        _finish(folder, entries, recorder)


def _own(folder: Path, train: str, mine: list[Run], recorder: Recording | None, progress: Progress) -> None:
    done = ledger.read(folder)
    for run in progress([run for run in mine if not ledger.finished(done, run)], "training a sweep", unit="runs"):
        begun = time.perf_counter()
        try:
            found = told(references.call(train, dict(run.settings)), run.settings)
        except UimError as error:  # whatever the reader's function raises arrives as one
            entry = Entry(run.key, run.name, run.settings, {"seconds": time.perf_counter() - begun}, str(error))
        else:
            entry = _entry(run, found | {"seconds": time.perf_counter() - begun})
        _finish(folder, [entry], recorder)


def told(found: Any, settings: Settings) -> Row:
    """The results of the reader's own trainer, checked; C = 6 N D and the noise where they follow.

    Raises:
        DataError: no mapping, no loss, what is no number, or names that are taken.
    """
    if not isinstance(found, Mapping) or "loss" not in found:
        raise DataError(f"{type(found).__name__} came back; a mapping of names to numbers, with 'loss', was wanted")
    taken = [name for name in found if name in settings or (name in TOLD and name not in _GIVEN)]
    if taken:
        raise DataError(f"{taken[0]!r} came back, which is the name of a setting or of a column; choose another")
    plainly = {}
    for name, value in found.items():
        value = value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value
        if not isinstance(name, str) or not isinstance(value, bool | int | float):
            raise DataError(f"{name!r} is {value!r}; a number was wanted")
        plainly[name] = value
    bad = not math.isfinite(plainly["loss"]) or bool(plainly.get("diverged"))
    finite = {name: value for name, value in plainly.items() if math.isfinite(value) and not (bad and name == "loss")}
    known = settings | finite
    if "C" not in known and all(isinstance(known.get(name), int | float) for name in ("N", "D")):
        finite["C"] = together.FLOPS * known["N"] * known["D"]
    if "noise" not in known and "corruption" in settings:
        finite["noise"] = settings["corruption"]
    return finite | {"diverged": bad}


def _entry(run: Run, results: Row) -> Entry:
    return Entry(run.key, run.name, run.settings, results | _VERSIONS)


def _finish(folder: Path, entries: Sequence[Entry], recorder: Recording | None) -> None:
    """Recorded first: what is in the journal is not run again, and would never be recorded."""
    for entry in entries:
        sink = recorder(entry.run) if recorder is not None and entry.failed is None else None
        if sink is not None:
            record(sink, entry)
    ledger.append(folder, entries)


def record(sink: Recorder, entry: Entry) -> None:
    """A run's settings and what came of it, at its last step."""
    numbers = {name: float(v) for name, v in entry.results.items() if isinstance(v, bool | int | float)}
    sink.hparams({name: value for name, value in entry.settings.items() if value is not None}, numbers)
    step = entry.settings.get("steps")
    sink.write(step if isinstance(step, int) else 0, numbers)
    close = getattr(sink, "close", None)
    if close is not None:
        close()
