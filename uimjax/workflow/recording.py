"""What a study leaves for TensorBoard, and the same as JSON lines: curves, histograms, texts, settings and results.

Under `tensorboard/` and `jsonl/` lie the same runs: `seed-S`, a training's loss and margin by epoch; `scores`, how
those of the first seed are spread over wrong and right labels, and its most suspicious examples in words; `sweep/RUN`,
the settings of a run of the sweep and what came of it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uimjax.sinks import JsonLines, Several, TensorBoard
from uimjax.steps import Recipe
from uimjax.training import Fitted
from uimjax.understand.dynamics import Table, suspicious
from uimjax.understand.scaling import Swept, ledger
from uimjax.understand.scaling.sweeps import record

BOARD, LINES = "tensorboard", "jsonl"
SPREAD = ("aum", "el2n", "grand")
RANKED, MOST = "aum", 20  # the examples in words


@dataclass(frozen=True)
class Records:
    """Those of a study's folder. A run is opened only where it is written as a whole: twice, and it stands once."""

    folder: Path

    def open(self, name: str) -> Several:
        """What a stopped run left under that name goes."""
        board, lines = (self.folder / kind / name for kind in (BOARD, LINES))
        for old in (board, lines):
            if old.exists():
                shutil.rmtree(old)
        return Several(JsonLines(lines / "metrics.jsonl"), TensorBoard(board))

    def has(self, name: str) -> bool:
        return all((self.folder / kind / name).exists() for kind in (BOARD, LINES))


def curves(sink: Several, made: Fitted, recipe: Recipe) -> None:
    """Those of a training that was finished before anybody asked for records: the lines that `training.fit` writes."""
    many = {"steps_per_epoch": recipe.steps_per_epoch(made.margin.shape[1])}
    for epoch, (loss, margin) in enumerate(zip(made.loss, made.margin.mean(1), strict=True)):
        sink.write(epoch, {"loss": float(loss), "margin": float(margin)} | many)


def scores(records: Records, table: Table, given: np.ndarray, true: np.ndarray) -> None:
    """Histograms `NAME/wrong` and `NAME/right` of scores, and a text for each of the `MOST` suspicious examples, all at
    the table's step. `given`, `true` labels `[N]`."""
    sink, step, wrong = records.open("scores"), table.metadata["step"], given != true
    for name in SPREAD:
        for word, mask in (("wrong", wrong), ("right", ~wrong)):
            sink.histogram(step, f"{name}/{word}", table.scores[name].values[mask])
    found = suspicious(table, RANKED, min(MOST, len(given)))
    for place, (at, value) in enumerate(zip(found.ids, found.values, strict=True), start=1):
        verdict = "wrong" if wrong[at] else "right"
        sink.text(step, f"suspicious/{place:02d}", f"example {at}: given {given[at]}, true {true[at]} ({verdict}), "
                  f"{RANKED} {value:.4f}")  # fmt: skip
    sink.close()


def sweep_of(name: str) -> str:
    return f"sweep/{name}"


def swept_before(records: Records, folder: Path, swept: Swept) -> None:
    """The runs of the table that an earlier sweep finished without records."""
    names = {row["run"] for row in swept.rows}
    for entry in ledger.read(folder).values():
        if entry.run in names and entry.failed is None and not records.has(sweep_of(entry.run)):
            record(records.open(sweep_of(entry.run)), entry)


def recorder(records: Records | None) -> Any:
    """As `scaling.sweep` takes it."""
    return None if records is None else lambda name: records.open(sweep_of(name))
