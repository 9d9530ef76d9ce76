"""The story of pictures, top to bottom: train -> audit -> trace -> mitigate -> verify, with a planted backdoor.

Every stage leaves readable files in the run's folder and is skipped while those files and their causes are unchanged.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import corpora, models, steps, store, training
from uimjax.audit import backdoor
from uimjax.config import RunConfig
from uimjax.corpora.base import Corpus, checked
from uimjax.errors import UsageError
from uimjax.interpret import counterfactual, methods, trace
from uimjax.interpret.base import Scores
from uimjax.interpret.index import task_digest
from uimjax.interpret.indexing import build_index
from uimjax.mitigate import proof
from uimjax.mitigate.edit import Edit
from uimjax.progress import Progress, quiet
from uimjax.references import resolve
from uimjax.report import summary, tables
from uimjax.rows import example_spec
from uimjax.sinks import JsonLines, TensorBoard
from uimjax.sketch import Sketch
from uimjax.store.base import make_folder
from uimjax.taps import sites
from uimjax.task import Task
from uimjax.workflow import base, saying
from uimjax.workflow.base import STAGES

CLEARED = ("train", "twin", "tensorboard", "index")  # folders of a draw that other choices make anew


@dataclass(frozen=True)
class Draw:
    """One draw of the plant: where its files are, and everything that follows from the config."""

    number: int
    folder: Path
    config: RunConfig
    planted: corpora.Planted
    task: Task
    initial: Any
    recipe: steps.Recipe
    key: str
    read: dict[str, training.Fitted] = field(default_factory=dict, compare=False, repr=False)  # once each

    @property
    def failure(self) -> base.Failure:
        seeds = tuple(1000 * self.number + k + self.config.seed for k in range(self.config.mitigate.seeds))
        choices = (self.config.trace, self.config.mitigate, self.config.train)
        return base.Failure(self.folder, self.task, self.planted.train, *choices, seeds, self.outcome, self.voice)

    def fitted(self, which: str) -> training.Fitted:
        """The trained model ("train") or its clean twin ("twin"), from its checkpoint."""
        if which not in self.read:
            rows = self.planted.train if which == "train" else self.planted.twin
            self.read[which] = training.fit(self.task, self.initial, rows, self.recipe, folder=self.folder / which)
        return self.read[which]

    @property
    def voice(self) -> saying.Voice:
        return saying.of_pictures(self.task, self.planted.probe)

    def outcome(self, params: Any) -> proof.Outcome:
        probe = backdoor.attack_success(self.task, params, self.planted.probe, self.config.plant.target)
        return proof.Outcome(probe, backdoor.accuracy(self.task, params, self.planted.utility))


def run(
    config: RunConfig,
    folder: Path,
    until: str = "mitigate",
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The whole story, or up to the stage `until`; returns the summary as far as it goes.

    Raises:
        UnknownNameError, UsageError: before anything is computed. OutputError: the folder cannot be written.
    """
    began = time.perf_counter()
    base.check_methods(config.trace, words=False)
    corpus = load_corpus(config)
    check_fits(config, corpus)
    make_folder(folder)
    (folder / "vision.json").unlink(missing_ok=True)  # written again at the end: a page never mixes two runs
    base.write_lock(folder, config, digests_of(corpus))
    draws = []
    for number in range(config.plant.draws):
        draw = prepare(config, corpus, folder / f"draw-{number}", number)
        name = f"draw {number + 1} of {config.plant.draws}"
        for stage in STAGES[: STAGES.index(until) + 1]:
            done = _WORK[stage](draw, progress)
            say(f"{name}: {_finding(stage, draw)}{'' if done else ' (unchanged, kept)'}")
        draws.append(draw)
    result = summary.vision([d.folder for d in draws], config, until, time.perf_counter() - began)
    if until == "mitigate":
        store.write_json(folder / "vision.json", result)
    return result


def check_fits(config: RunConfig, corpus: Corpus) -> None:
    """Plant, model and budget go with the corpus; refused here, before anything is written."""
    drawn(config, corpus, 0)
    base.check_budget(config.mitigate, len(corpus.train["label"]))


def plant_of(config: RunConfig) -> corpora.Backdoor:
    return corpora.Backdoor(**config.plant.model_dump(exclude={"draws"}))


def model_of(config: RunConfig) -> Any:
    return resolve(config.model) if ":" in config.model else config.model


def load_corpus(config: RunConfig) -> Corpus:
    """The built-in digits, the reader's files, or what the reader's own function returns."""
    if config.train_file or config.test_file:
        base.check_one(config, "corpus", "train_file")
        if not (config.train_file and config.test_file):
            raise UsageError("train_file and test_file go together; one is missing")
        return checked(config.train_file, corpora.read_rows(config.train_file), corpora.read_rows(config.test_file))
    if ":" in config.corpus:
        return checked(config.corpus, *base.parts_of(config.corpus))
    if config.corpus != "digits":
        raise UsageError(
            f"unknown corpus {config.corpus!r}: digits, or pkg.module:function, or train_file and test_file"
        )
    return corpora.digits()


def digests_of(corpus: Corpus) -> dict[str, str]:
    """As the lock keeps them."""
    return {"train": store.digest_tree(corpus.train), "test": store.digest_tree(corpus.test)}


def drawn(config: RunConfig, corpus: Corpus, number: int) -> tuple[corpora.Planted, Task, Any]:
    """(rows, task, parameters) of one draw, all from the config and the corpus; nothing is written."""
    seed = config.seed + number
    planted = corpora.backdoor(corpus, plant_of(config), seed)
    return planted, *models.build(model_of(config), planted.train["image"].shape[1:], corpus.classes, seed)


def prepare(config: RunConfig, corpus: Corpus, folder: Path, number: int) -> Draw:
    """Plant, model and recipe of one draw; nothing is trained. The truth goes to its sealed file."""
    base.check_ours(folder, CLEARED)
    make_folder(folder)
    seed = config.seed + number
    planted, task, made = drawn(config, corpus, number)
    initial = base.begun_from(folder, made)
    recipe = steps.Recipe(**config.train.model_dump(), seed=seed)
    rows = [store.digest_tree(part) for part in planted]
    program = task_digest(sites(task, initial, example_spec(planted.train)))
    choices = (config.train.model_dump(), seed, base.versions())
    key = store.stage_key(rows, store.digest_tree(initial), program, *choices)
    edits = ("edit-traced.json", "edit-oracle.json", "scorecard.json")
    base.keep_or_clear(folder, key, CLEARED, ("metrics.jsonl", *edits))
    corpora.backdoor(corpus, plant_of(config), seed, base.truth_of(folder))
    return Draw(number, folder, config, planted, task, initial, recipe, key)


# ---------------------------------------------------------------- train


def train(draw: Draw, progress: Progress = quiet) -> bool:
    """Train the model and its clean twin; a run that was stopped continues at its checkpoint."""

    def work() -> None:
        resume = training.resumes_at(draw.folder / "train")
        sinks = [JsonLines(draw.folder / "metrics.jsonl", resume), TensorBoard(draw.folder / "tensorboard")]
        rows = draw.planted
        common = {"save_every": 20, "progress": progress}
        main = training.fit(
            draw.task,
            draw.initial,
            rows.train,
            draw.recipe,
            folder=draw.folder / "train",
            sinks=sinks,
            **common,
        )
        twin = training.fit(draw.task, draw.initial, rows.twin, draw.recipe, folder=draw.folder / "twin", **common)
        draw.read.update(train=main, twin=twin)
        tables.write_dynamics(draw.folder / "dynamics.parquet", main.example_loss, main.margin)
        store.write_json(draw.folder / "train.json", {"loss": [float(x) for x in main.loss]})

    return store.run_stage(draw.folder, "train", draw.key, ("train.json", "dynamics.parquet"), work)


# ---------------------------------------------------------------- audit


def audit(draw: Draw, progress: Progress = quiet) -> bool:
    """The failure, measured: attack success and accuracy, of the model and of its clean twin."""
    del progress

    def work() -> None:
        before, twin = (draw.outcome(draw.fitted(which).params)._asdict() for which in ("train", "twin"))
        store.write_json(draw.folder / "audit.json", {"before": before, "clean_twin": twin})

    return store.run_stage(draw.folder, "audit", draw.key, ("audit.json",), work)


# ---------------------------------------------------------------- trace


def trace_rows(draw: Draw, progress: Progress = quiet) -> bool:
    """Score every training row by every method, and write the edit that the chosen one asks for."""
    config = draw.config

    def work() -> None:
        params = draw.fitted("train").params
        without_twin = dataclasses.replace(draw, planted=draw.planted._replace(twin={}), read={})
        scores, nulls = score_rows(without_twin, params, progress)
        document = base.write_trace(draw.failure, scores, nulls)
        store.write_json(draw.folder / "trace.json", _with_pictures(draw, document))

    key = store.stage_key(draw.key, config.trace.model_dump(), config.mitigate.budget)
    return store.run_stage(draw.folder, "trace", key, base.TRACED, work)


def _with_pictures(draw: Draw, document: dict[str, Any]) -> dict[str, Any]:
    """Label and picture of each hit, as it was trained on; bytes `[H, W, C]`."""
    rows = draw.planted.train
    for hit in (*document["proponents"], *document["opponents"]):
        picture = np.clip(np.round(255 * rows["image"][hit["row"]]), 0, 255).astype(np.uint8)
        hit |= {"label": int(rows["label"][hit["row"]]), "image": picture.tolist()}
    return document


def score_rows(draw: Draw, params: Any, progress: Progress) -> tuple[dict[str, Scores], list[Scores]]:
    """Scores by method, gradient methods from one index, baselines in memory; and the chosen one's for clean pairs."""
    rows, choice = draw.planted, draw.config.trace
    measurement = backdoor.measurement(draw.task, draw.config.plant.target)
    sketch = Sketch(choice.sketch_rank, seed=draw.config.seed)
    folder = draw.folder / "index"

    def build():
        return build_index(draw.task, params, rows.train, folder, sketch=sketch, batch_size=256, progress=progress)

    built = base.rebuilt(folder, build)

    span = trace.retained(built, draw.task, params, rows.train, rows.retain)

    def question(queries: Any) -> trace.Question:
        return trace.question(built, draw.task, params, rows.train, measurement, queries)

    def scored(asked: trace.Question, name: str) -> Scores:
        return trace.score_all(trace.by(asked, name, span))

    def baseline(name: str) -> Scores:
        seed = draw.config.seed + draw.number
        return methods.score(draw.task, params, rows.train, measurement, rows.asked, name, seed=seed)

    names = dict.fromkeys((choice.method, *choice.compare))
    asked = question(rows.asked)
    scores = {name: scored(asked, name) if name in methods.PRESETS else baseline(name) for name in names}
    if choice.method not in methods.PRESETS:
        return scores, []
    clean = rows.asked[1]  # another clean image in place of the triggered one: nothing failed there
    shifted = [jax.tree.map(lambda x: np.roll(x, k, 0), clean) for k in (1, 2, 3)]  # noqa: B023
    nulls = [scored(question((other, clean)), choice.method) for other in shifted]
    return scores, nulls


# ---------------------------------------------------------------- mitigate and verify


def mitigate(draw: Draw, progress: Progress = quiet) -> bool:
    """Carry out the traced, the oracle and the random edit, and hold them against each other and the clean twin."""

    def causal(planted: Edit) -> proof.Outcome:
        """Did the planted rows cause it? Train again from the start without them."""
        ids = np.asarray(planted.rows)
        again = counterfactual.retrain_without(draw.task, draw.initial, draw.planted.train, ids, draw.recipe)
        return draw.outcome(again.params)

    key = store.stage_key(draw.key, draw.config.trace.model_dump(), draw.config.mitigate.model_dump())
    work = lambda: base.carry_out(draw.failure, draw.fitted("train").params, causal, progress)  # noqa: E731  # deferred
    return store.run_stage(draw.folder, "mitigate", key, base.MITIGATED, work)


_WORK = {"train": train, "audit": audit, "trace": trace_rows, "mitigate": mitigate}


def _finding(stage: str, draw: Draw) -> str:
    """One line a person reads while the rest runs."""
    folder, config = draw.folder, draw.config
    if stage == "train":
        return f"trained, mean loss {store.read_json(folder / 'train.json')['loss'][-1]:.3f} nats"
    if stage == "audit":
        found = store.read_json(folder / "audit.json")
        return summary.PROBES["vision"].says(found["before"]["probe"], found["clean_twin"]["probe"])
    if stage == "trace":
        first = store.read_json(folder / "trace.json")["proponents"][:5]
        return f"strongest proponents by {config.trace.method}: rows {', '.join(str(p['row']) for p in first)}"
    arms = store.read_json(folder / "outcomes.json")[config.mitigate.method]
    return summary.arms_line("vision", config.mitigate.method, arms)
