"""Attribution judged on one's own task: models trained again on random halves of the rows, and without a few of them,
against what each method had predicted.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax import rows as row
from uimjax.errors import UimError, UsageError
from uimjax.interpret import judge, methods
from uimjax.interpret.bank import Bank, Protocol, subsets, train_bank
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.counterfactual import Effects, effects
from uimjax.interpret.judge import Calibration, Lds
from uimjax.interpret.trajectory import Checkpoint, record
from uimjax.progress import Progress, quiet
from uimjax.steps import Recipe
from uimjax.task import NATS, Measurement, Task

LARGEST = 0.1  # share of the rows that the largest removal takes


class Asked(NamedTuple):
    """What is judged: how a model comes from rows, and the question asked of it."""

    task: Task
    initial: Callable[[int], Any]
    data: Any
    recipe: Recipe
    measurement: Measurement
    queries: Any
    texts: tuple[Sequence[str], Sequence[str]] | None = None


class Judgement(NamedTuple):
    """Of one method: its `lds`, of scores in nats also the `calibration` of removals, the `seconds` it took, what it
    says of itself; or the `error` that it ended in."""

    method: str
    seconds: float
    lds: Lds | None = None
    calibration: Calibration | None = None
    said: str = ""
    error: str = ""


class Checked(NamedTuple):
    """`judgements` in the order asked for; `agreement` between seeds and the `ceiling` of the LDS that follows."""

    judgements: tuple[Judgement, ...]
    bank: Bank
    agreement: float
    ceiling: float


def check(
    asked: Asked,
    names: Sequence[str],
    *,
    halves: int = 20,
    seeds: tuple[int, ...] = (0, 1),
    protocol: Protocol = "rebatched",
    removals: int = 0,
    checkpoints: int = 6,
    damping: float | None = None,
    batch_size: int = 256,
    folder: Path | None = None,
    progress: Progress = quiet,
) -> Checked:
    """Judge methods by training `halves` x `len(seeds)` models again, and by `removals` of 1 to a tenth of the rows.

    The scores are those of one model on all rows, of the first seed, with `checkpoints` of its training for methods
    that read several. `damping`, times the mean eigenvalue, replaces what methods would choose.
    With `folder` everything trained is kept there, and met again.

    Raises:
        UnknownNameError: a method that nobody knows. As `train_bank`, `effects`. A method that refuses this task does
        not: its error stands in its judgement.
    """
    if removals == 1:
        raise UsageError("a slope takes 2 removals or more; 0 leaves them out")
    known = [methods.get(name) for name in names if name not in (*methods.BASELINES, methods.AUTO)]
    if damping is not None and methods.AUTO not in names and all(methods.with_damping(m, damping) is m for m in known):
        raise UsageError(f"damping={damping} was given, and none of {', '.join(names)} has any: leave it out")
    bank = train_bank(
        *asked[:2], asked.data, asked.recipe, subsets(row.count(asked.data), halves), asked.measurement, asked.queries,
        seeds=seeds, protocol=protocol, folder=None if folder is None else folder / "bank", progress=progress,
    )  # fmt: skip
    sets = removed(row.count(asked.data), removals)
    truth = None if not sets else effects(
        *asked[:2], asked.data, asked.recipe, sets, asked.measurement, asked.queries, seeds=seeds,
        folder=None if folder is None else folder / "removals", progress=progress,
    )  # fmt: skip
    run = record(
        asked.task, asked.initial(seeds[0]), asked.data, asked.recipe, checkpoints, seed=seeds[0],
        folder=None if folder is None else folder / "training",
    )  # fmt: skip
    found = [judged(name, asked, run, bank, (sets, truth) if truth else None, batch_size, damping)
             for name in progress(list(names), "scoring", unit="methods")]  # fmt: skip
    return Checked(tuple(found), bank, *judge.noise_ceiling(bank))


def removed(count: int, number: int, seed: int = 0) -> list[np.ndarray]:
    """Sets of row ids, drawn blindly, from one row to a tenth of them, evenly on a log scale."""
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(1, max(1, LARGEST * count), number) if number else []
    return [rng.permutation(count)[: round(size)] for size in sizes]


def judged(
    name: str,
    asked: Asked,
    run: list[Checkpoint],
    bank: Bank,
    removals: tuple[list[np.ndarray], Effects] | None = None,
    batch_size: int = 256,
    damping: float | None = None,
) -> Judgement:
    """One method's scores of the run, judged."""
    start, texts = time.perf_counter(), asked.texts if name in methods.LEXICAL else None
    try:
        method, why = (name, "") if damping is None else _damped(name, asked, run, damping)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found = methods.score(
                asked.task, run, asked.data, asked.measurement, asked.queries, method, each=True, texts=texts,
                batch_size=batch_size,
            )  # fmt: skip
        taken = time.perf_counter() - start
        known = removals is not None and found.unit == NATS and found.values.any()
        related = calibrated(found, *removals) if removals is not None and known else None
        return Judgement(name, taken, judge.lds(found.values, bank), related, found.method + why)
    except (UimError, RuntimeWarning) as error:
        return Judgement(name, time.perf_counter() - start, error=f"{type(error).__name__}: {error}")


def _damped(name: str, asked: Asked, run: list[Checkpoint], damping: float) -> tuple[str | Method, str]:
    """(the method with that damping, what "auto" has to say)."""
    if name in methods.BASELINES:
        return name, ""
    its, why = methods.auto(asked.task, run, asked.data) if name == methods.AUTO else (name, "")
    its = methods.get(its) if isinstance(its, str) else its
    found = methods.with_damping(its, damping)
    if name == methods.AUTO and found is its:
        raise UsageError(f"auto took {its.name} ({why}), and it has no damping to set to {damping:g}")
    return found, why and f" (auto: {why})"


def calibrated(scores: Scores, sets: Sequence[np.ndarray], truth: Effects) -> Calibration:
    """Predicted against measured changes of f, `- sum_{i in set} score_iq / n`, all sets and queries together."""
    predicted = np.stack([-scores.values[ids].sum(0) / len(scores.values) for ids in sets])
    return judge.calibration(predicted, truth.change)
