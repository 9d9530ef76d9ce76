"""From a classifier, labelled examples and its mistakes to answers: for each mistake the examples it comes from.

The answer is plain data (numbers, texts, lists). Scores: see `uimjax.task`.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from uimjax import rows as row
from uimjax.answers import engines, story
from uimjax.answers.mistakes import Mistakes, Model
from uimjax.answers.story import Choices
from uimjax.corpora.labelled import Labelled
from uimjax.interpret import base
from uimjax.interpret.hits import Trace
from uimjax.interpret.methods import AUTO, score
from uimjax.interpret.representation import rep_sim
from uimjax.progress import Progress, quiet
from uimjax.task import Task

ASKED = "asked.npy"  # pictures of the mistakes
MANY = 4  # examples asked for, for each that is wanted: some are the same


def answer(
    model: Model, examples: Labelled, asked: Mistakes, folder: Path, choices: Choices, convex: bool = False,
    progress: Progress = quiet,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is known of the mistakes; indexes and sums of curvature are kept under `folder`. `convex`: the
    parameters are at the minimum of a convex loss.

    Raises: as `build_index`, `trace` and `score`.
    """
    rows, failures, table, (task, params) = examples.rows, asked.failures, examples.table(), model[:2]
    followed = base.training_sites(task, params, row.take(rows, np.arange(1)), check=False)
    size, questions = sum(leaf.size for leaf in followed.used), len(failures.lines)
    if choices.method == AUTO and convex:
        method, why = engines.HEAD, "a head alone is convex, so that influence is the effect of leaving an example out"
    else:
        method, why = engines.choose(choices.method, size, len(table), questions, False)
    if method == engines.HEAD:
        how = {"each": True, "batch_size": choices.batch_size, "mesh": choices.mesh}
        ready = engines.of_scores(score(task, params, rows, failures.measurement, failures.rows, method, **how))
    else:
        ready = story.engine(task, params, rows, failures, folder, choices, method, None, progress)
    groups = {name: story.by_group(ready, table[name].combine_chunks()) for name in ("label", "source")}
    alike = None
    if choices.shown and task.features is not None and len(table) * questions <= engines.WHOLE_SCORES:
        alike = _likeness(task, params, rows, failures.rows, choices.batch_size)
    found = _Answer(model, examples, table, table["same"].to_numpy(), alike, choices)
    if "image" in rows:
        np.save(folder / ASKED, failures.rows["image"])  # for the page
    trace, values = found.strongest(ready), story.measured(params, failures, choices.batch_size)
    each = []
    for k in progress(range(questions), "looking at examples", unit="mistakes"):
        label, said = (int(failures.rows[name][k]) for name in ("label", "predicted"))
        sides = {f"{side}s": found.side(trace, k, side) for side in ("proponent", "opponent")}
        each.append({
            "question": k, "kind": model.encoder.kind, "lines": [failures.lines[k]], "value": float(values[k]),
            "p_predicted": float(asked.p[k, said]), "p_label": None if label < 0 else float(asked.p[k, label]), **sides,
            "classes": groups["label"].get(k, []), "sources": groups["source"].get(k, []),
            "by_likeness": found.by_likeness(k, sides["proponents"]),
        })  # fmt: skip
    return {
        "method": ready.method, "why": why, "unit": ready.unit, "measure": failures.measurement.name,
        "reading": failures.measurement.reading, "parameters": size, "inputs": examples.manifest["inputs"],
        "examples": {name: examples.manifest[name] for name in ("rows", "notes")} | {"classes": list(model.classes)},
        "failures": each,
    }  # fmt: skip


def _likeness(task: Task, params: Any, rows: Any, asked: Any, batch_size: int) -> np.ndarray:
    """Cosine of the representations of every example and question, `[N, Q]`."""
    queries = {name: x for name, x in asked.items() if name in rows}
    return rep_sim(task, params, rows, queries | {"label": np.maximum(asked["label"], 0)}, batch_size)


class _Answer(NamedTuple):
    """What is looked up while the answers are put together."""

    model: Model
    examples: Labelled
    table: Any
    same: np.ndarray
    alike: np.ndarray | None
    choices: Choices

    def strongest(self, ready: Any) -> Trace:
        """Enough of them that `k` are left when those that are the same are folded."""
        same, wanted = self.same, self.choices.k
        many = min(len(same), MANY * wanted)
        while True:
            trace = ready.strongest(many)
            ends = [*trace.proponents, *trace.opponents]
            if many == len(same) or all(len(np.unique(same[ids[ids >= 0]])) >= wanted for ids in ends):
                return trace
            many = min(len(same), 4 * many)

    def side(self, trace: Trace, question: int, side: str) -> list[dict[str, Any]]:
        """The first `k` that are the same as none before, each with the names of those that are."""
        same = self.same
        ids, scores = (getattr(trace, f"{side}{end}")[question] for end in ("s", "_scores"))
        kept: dict[int, dict[str, Any]] = {}
        for number, strength in zip(ids, scores, strict=True):
            first = int(same[number])
            if number >= 0 and first in kept:
                kept[first]["copies"].append(self.table["id"][int(number)].as_py())
            elif number >= 0 and len(kept) < self.choices.k:
                kept[first] = self.example(int(number), question) | {"score": float(strength), "copies": []}
        return list(kept.values())

    def example(self, number: int, question: int) -> dict[str, Any]:
        line = {name: self.table[name][number].as_py() for name in ("id", "source", "label", "value")}
        made = {"row": number, **line, **self.seen(number)}
        if self.alike is None:
            return made
        cosine = self.alike[number, question]
        rank = 1 + int((self.alike[:, question] > cosine).sum())
        return made | {"alike": float(cosine), "alike_rank": rank}

    def seen(self, number: int) -> dict[str, Any]:
        """What the model says of a training example: a label that it finds unlikely may be wrong."""
        its = jax.tree.map(lambda x: np.asarray(x[number]), self.examples.rows)
        p = np.asarray(_given(self.model.task.outputs)(self.model.params, its), np.float64)
        return {"said": self.model.classes[int(p.argmax())], "p_label": float(p[int(its["label"])])}

    def by_likeness(self, question: int, proponents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The examples whose representations are nearest, with their place by score."""
        if self.alike is None:
            return []
        place = {its["row"]: rank for rank, its in enumerate(proponents, start=1)}
        made = []
        for number in np.argsort(-self.alike[:, question], kind="stable")[: self.choices.shown]:
            line = {name: self.table[name][int(number)].as_py() for name in ("id", "source", "label")}
            cosine = float(self.alike[number, question])
            made.append({"row": int(number), **line, "alike": cosine, "place": place.get(int(number))})
        return made


@functools.lru_cache(maxsize=16)
def _given(outputs: Any) -> Any:
    """Compiled: the probabilities of one row's classes."""
    return jax.jit(lambda params, its: jax.nn.softmax(outputs(params, its)))
