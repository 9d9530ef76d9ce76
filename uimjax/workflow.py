"""The story, top to bottom: train -> audit -> trace -> mitigate -> verify, on labelled images with a planted backdoor.

Every stage leaves readable files in the run's folder and is skipped while those files and their causes are unchanged.
The method and the size of the edit come from the config; the traced edit is on disk before the truth can be read.
"""

import dataclasses
import importlib
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

import uimjax
from uimjax import checkpoint, corpora, models, store, training
from uimjax.audit import backdoor, scorecard
from uimjax.config import LOCK, RunConfig, read_yaml
from uimjax.corpora.base import Corpus, checked
from uimjax.errors import MismatchError, UsageError
from uimjax.interpret import counterfactual, methods, trace
from uimjax.interpret.base import Scores
from uimjax.interpret.index import build_index, task_digest
from uimjax.mitigate import edit, oracle, proof
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.unlearning import Unlearning
from uimjax.progress import Progress, quiet
from uimjax.report import summary, tables
from uimjax.rows import example_spec
from uimjax.sinks import JsonLines, TensorBoard
from uimjax.sketch import Sketch
from uimjax.store.base import atomic, make_folder
from uimjax.taps import sites
from uimjax.task import SIGN, Task

STAGES = ("train", "audit", "trace", "mitigate")


@dataclass(frozen=True)
class Draw:
    """One draw of the plant: where its files are, and everything that follows from the config."""

    number: int
    folder: Path
    config: RunConfig
    planted: corpora.Planted
    task: Task
    initial: Any
    recipe: training.Recipe
    key: str

    @property
    def truth(self) -> Path:
        return self.folder / "truth.json"

    @property
    def decided(self) -> Path:
        return self.folder / "edit-traced.json"

    def fitted(self, which: str) -> training.Fitted:
        """The trained model ("train") or its clean twin ("twin"), from its checkpoint."""
        rows = self.planted.train if which == "train" else self.planted.twin
        return training.fit(self.task, self.initial, rows, self.recipe, folder=self.folder / which)

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
    check_names(config)
    corpus = load_corpus(config)
    check_fits(config, corpus)
    make_folder(folder)
    write_lock(folder, config, corpus)
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


def check_names(config: RunConfig) -> None:
    """Every method named in the config exists."""
    known = [*methods.PRESETS, *methods.BASELINES]
    for name in (config.trace.method, *config.trace.compare):
        if name not in known:
            methods.get(name)
        if name == "bm25":
            raise UsageError("bm25 compares words and this corpus is pictures; leave it out of trace.compare")


def check_fits(config: RunConfig, corpus: Corpus) -> None:
    """Plant, model and budget go with the corpus; refused here, before anything is written."""
    corpora.backdoor(corpus, plant_of(config), config.seed)
    models.build(model_of(config), corpus.train["image"].shape[1:], corpus.classes, config.seed)
    count = len(corpus.train["label"])
    if edit.budget_rows(config.mitigate.budget, count) >= count:
        raise UsageError(f"mitigate.budget {config.mitigate.budget} is every one of the {count} training rows")


def plant_of(config: RunConfig) -> corpora.Backdoor:
    return corpora.Backdoor(**config.plant.model_dump(exclude={"draws"}))


def model_of(config: RunConfig) -> Any:
    return resolve(config.model) if ":" in config.model else config.model


def load_corpus(config: RunConfig) -> Corpus:
    """The built-in digits, the reader's files, or what the reader's own function returns."""
    if config.train_file or config.test_file:
        if not (config.train_file and config.test_file):
            raise UsageError("train_file and test_file go together; one is missing")
        return checked(config.train_file, corpora.read_rows(config.train_file), corpora.read_rows(config.test_file))
    if ":" in config.corpus:
        return checked(config.corpus, *resolve(config.corpus)())
    if config.corpus != "digits":
        raise UsageError(
            f"unknown corpus {config.corpus!r}: digits, or pkg.module:function, or train_file and test_file"
        )
    return corpora.digits()


def resolve(reference: str) -> Any:
    """The object that `pkg.module:name` names; the working folder is searched too.

    Raises:
        UsageError: no such module or name.
    """
    module, _, name = reference.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{reference!r} cannot be imported: {error}. Write it as pkg.module:name.") from error


def write_lock(folder: Path, config: RunConfig, corpus: Corpus) -> None:
    """The resolved config with digests: what `uimjax run FOLDER` replays.

    Raises:
        MismatchError: the folder holds a run of the same config on a corpus that has changed since.
    """
    digests = {"train": store.digest_tree(corpus.train), "test": store.digest_tree(corpus.test)}
    made_with = {"jax": jax.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    document = {"config": config.model_dump(mode="json"), "corpus": digests, "made_with": made_with}
    if (folder / LOCK).exists():
        held = read_yaml(folder / LOCK)
        if held.get("config") == document["config"] and held.get("corpus") != digests:
            raise MismatchError(f"the corpus is not the one that {folder} was run on; choose another folder with --out")
    with atomic(folder / LOCK) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False))


def prepare(config: RunConfig, corpus: Corpus, folder: Path, number: int) -> Draw:
    """Plant, model and recipe of one draw; nothing is trained. The truth goes to its sealed file."""
    make_folder(folder)
    seed = config.seed + number
    planted = corpora.backdoor(corpus, plant_of(config), seed)
    task, initial = models.build(model_of(config), planted.train["image"].shape[1:], corpus.classes, seed)
    recipe = training.Recipe(**config.train.model_dump(), seed=seed)
    rows = [store.digest_tree(part) for part in planted]
    program = task_digest(sites(task, initial, example_spec(planted.train)))
    versions = [jax.__version__, uimjax.__version__]
    key = store.stage_key(rows, store.digest_tree(initial), program, config.train.model_dump(), seed, versions)
    _keep_or_clear(folder, key)
    corpora.backdoor(corpus, plant_of(config), seed, folder / "truth.json")
    return Draw(number, folder, config, planted, task, initial, recipe, key)


# ---------------------------------------------------------------- train


def train(draw: Draw, progress: Progress = quiet) -> bool:
    """Train the model and its clean twin; a run that was stopped continues at its checkpoint."""

    def work() -> None:
        resume = checkpoint.latest(draw.folder / "train") or 0
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
        training.fit(draw.task, draw.initial, rows.twin, draw.recipe, folder=draw.folder / "twin", **common)
        tables.write_dynamics(draw.folder / "dynamics.parquet", main.example_loss, main.margin)
        store.write_json(draw.folder / "train.json", {"loss": [float(x) for x in main.loss]})

    return store.run_stage(draw.folder, "train", draw.key, ("train.json", "dynamics.parquet"), work)


def _keep_or_clear(folder: Path, key: str) -> None:
    """What was made of the same choices is continued, the rest removed: an old edit must not unseal a new truth."""
    mark = folder / "made-of.json"
    if not mark.exists() or store.read_json(mark) != key:
        for name in ("train", "twin", "tensorboard", "index"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("metrics.jsonl", "edit-traced.json", "edit-oracle.json", "scorecard.json"):
            (folder / name).unlink(missing_ok=True)
        store.write_json(mark, key)


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
        without_twin = dataclasses.replace(draw, planted=draw.planted._replace(twin={}))
        scores = score_rows(without_twin, params, progress)
        tables.write_scores(draw.folder / "scores.parquet", {name: s.values[:, 0] for name, s in scores.items()})
        chosen = scores[config.trace.method]
        order = np.argsort(-chosen.values[:, 0], kind="stable")
        listed = {"proponents": order[: config.trace.top], "opponents": order[::-1][: config.trace.top]}
        found = {
            side: [{"row": int(i), "score": float(chosen.values[i, 0])} for i in ids] for side, ids in listed.items()
        }
        store.write_json(
            draw.folder / "trace.json", {"method": chosen.method, "sign": SIGN, "unit": chosen.unit, **found}
        )
        size = edit.budget_rows(config.mitigate.budget, len(order))
        edit.write_edit(draw.decided, edit.traced_edit(chosen.values[:, 0], size, chosen.method))

    key = store.stage_key(draw.key, config.trace.model_dump(), config.mitigate.budget)
    return store.run_stage(draw.folder, "trace", key, ("scores.parquet", "trace.json", "edit-traced.json"), work)


def score_rows(draw: Draw, params: Any, progress: Progress) -> dict[str, Scores]:
    """Scores of the chosen method and of those beside it: gradient methods from one index, baselines in memory."""
    rows, choice = draw.planted, draw.config.trace
    measurement = backdoor.measurement(draw.task, draw.config.plant.target)
    sketch = Sketch(choice.sketch_rank, seed=draw.config.seed)
    folder = draw.folder / "index"

    def build():
        return build_index(draw.task, params, rows.train, folder, sketch=sketch, batch_size=256, progress=progress)

    try:
        built = build()  # a build that was stopped is continued
    except MismatchError:
        shutil.rmtree(folder)
        built = build()
    scores = {}
    for name in dict.fromkeys((choice.method, *choice.compare)):
        if name in methods.PRESETS:
            asked = trace.ask(built, draw.task, params, rows.train, measurement, rows.asked, name, retain=rows.retain)
            scores[name] = trace.score_all(asked)
        else:
            scores[name] = methods.score(
                draw.task,
                params,
                rows.train,
                measurement,
                rows.asked,
                name,
                seed=draw.config.seed + draw.number,
            )
    return scores


# ---------------------------------------------------------------- mitigate and verify


def mitigate(draw: Draw, progress: Progress = quiet) -> bool:
    """Carry out the traced, the oracle and the random edit, and hold them against each other and the clean twin."""
    choice = draw.config.mitigate

    def work() -> None:
        params, count = draw.fitted("train").params, len(draw.planted.train["label"])
        traced = edit.read_edit(draw.decided)
        planted = oracle.oracle_edit(draw.truth, draw.decided)
        blind = [edit.random_edit(count, len(traced.rows), s) for s in _seeds(draw)]
        edit.write_edit(draw.folder / "edit-oracle.json", planted)
        fixes = {name: fix(draw.config, name) for name in dict.fromkeys((choice.method, *choice.compare))}
        outcomes: dict[str, dict[str, list[Any]]] = {}
        jobs = [(name, k) for name in fixes for k in range(choice.seeds)]
        for name, k in progress(jobs, "mitigating", unit="edits"):
            for made in (traced, planted, blind[k]):
                after = edit.apply_edit(draw.task, params, draw.planted.train, made, fixes[name], _seeds(draw)[k])
                outcomes.setdefault(name, {}).setdefault(made.arm, []).append(draw.outcome(after)._asdict())
        store.write_json(draw.folder / "outcomes.json", outcomes)
        store.write_json(draw.folder / "causal.json", causal_check(draw, planted))
        _write_scorecard(draw)

    key = store.stage_key(draw.key, draw.config.trace.model_dump(), choice.model_dump())
    files = ("outcomes.json", "causal.json", "scorecard.json", "edit-oracle.json")
    return store.run_stage(draw.folder, "mitigate", key, files, work)


def _seeds(draw: Draw) -> list[int]:
    return [1000 * draw.number + k + draw.config.seed for k in range(draw.config.mitigate.seeds)]


def fix(config: RunConfig, name: str) -> Unlearning | training.Recipe:
    """A mitigation by name, its strength from the config."""
    choice = config.mitigate
    if name == "drop":
        settings: dict[str, Any] = config.train.model_dump() | {"epochs": choice.drop_epochs}
        return training.Recipe(**settings)
    return Unlearning(
        loss=name,  # type: ignore[arg-type]  # the config admits these names alone
        gamma=choice.gamma,
        steps=choice.steps,
        heal_steps=choice.heal_steps,
        learning_rate=choice.learning_rate,
    )


def causal_check(draw: Draw, planted: Edit) -> dict[str, Any]:
    """Did the planted rows cause it? Train again from the start without them."""
    ids = np.asarray(planted.rows)
    again = counterfactual.retrain_without(draw.task, draw.initial, draw.planted.train, ids, draw.recipe)
    return draw.outcome(again.params)._asdict()


def _write_scorecard(draw: Draw) -> None:
    scores = tables.read_scores(draw.folder / "scores.parquet")
    base_rate, found = scorecard.scorecard(draw.truth, draw.decided, scores)
    document = {"base_rate": base_rate, "methods": {name: f._asdict() for name, f in found.items()}}
    store.write_json(draw.folder / "scorecard.json", document)


_WORK = {"train": train, "audit": audit, "trace": trace_rows, "mitigate": mitigate}


def _finding(stage: str, draw: Draw) -> str:
    """One line a person reads while the rest runs."""
    folder, config = draw.folder, draw.config
    if stage == "train":
        return f"trained, mean loss {store.read_json(folder / 'train.json')['loss'][-1]:.3f} nats"
    if stage == "audit":
        found = store.read_json(folder / "audit.json")
        return (
            f"{found['before']['probe']:.0%} of triggered images are read as class {config.plant.target} "
            f"(clean twin: {found['clean_twin']['probe']:.0%})"
        )
    if stage == "trace":
        first = store.read_json(folder / "trace.json")["proponents"][:5]
        return f"strongest proponents by {config.trace.method}: rows {', '.join(str(p['row']) for p in first)}"
    arms = store.read_json(folder / "outcomes.json")[config.mitigate.method]
    after = {arm: float(np.mean([o["probe"] for o in outcomes])) for arm, outcomes in arms.items()}
    return (
        f"after {config.mitigate.method}: {after['traced']:.0%} with the traced rows, {after['random']:.0%} with "
        f"random ones, {after['oracle']:.0%} with the planted ones"
    )
