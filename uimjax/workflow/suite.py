"""All eight weaknesses of one decoder, seed by seed: train and twins -> audit -> trace -> mitigate -> verify.

Every plant sits in one corpus. A twin is trained without one plant at a time: it is the clean twin of that weakness and
the causal check at once. Each edit is measured by all eight probes, so that what a fix does to the other weaknesses is
seen. Every stage leaves files and is skipped while these and their causes are unchanged.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import corpora, steps, store, training
from uimjax import rows as row
from uimjax.audit import base as likelihood
from uimjax.audit import dynamics, scorecard, weaknesses
from uimjax.config import SuiteConfig, TextConfig, parse
from uimjax.corpora.documents import encode, fitting, lines_of
from uimjax.corpora.text_suite import WEAKNESSES, PlantedSuite, Sizes, left_out, plant_suite
from uimjax.errors import UsageError
from uimjax.interpret import trace as tracing
from uimjax.interpret.index import task_digest
from uimjax.interpret.positions import token_scores
from uimjax.mitigate import edit, oracle
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.synthetic import swapped
from uimjax.models import blocks, decoder
from uimjax.progress import Progress, quiet
from uimjax.report import suite as report
from uimjax.report import tables
from uimjax.store.base import make_folder
from uimjax.task import Measurement
from uimjax.workflow import base, text

CLEARED = ("train", "twins", "arms", "index", *WEAKNESSES)  # folders that other choices make anew
SWAPPED = ("bias", "generalization")  # whose questions set words against each other
SOME = 256  # documents whose tokens are scored together
ARMS = ("traced", "oracle", "random")


@dataclass(frozen=True, kw_only=True)
class Seeded(text.Loop):
    """One seed of the suite: its plants, its model, and everything that follows from the config."""

    suite: PlantedSuite
    choices: SuiteConfig

    def fitted(self, which: str) -> training.Fitted:
        """The trained model ("train"), or the one trained without the plant of a weakness."""
        if which not in self.read:
            name = "train" if which == "train" else f"twins/{which}"
            weights = self.suite.present if which == "train" else self.suite.without[which]
            kept = every(self) if which in ("train", "dynamics") else ()
            self.read[which] = self.fit(weights, self.folder / name, kept)
        return self.read[which]

    def fit(self, weights: np.ndarray, folder: Path, kept: tuple[int, ...], progress: Progress = quiet):
        return training.fit(
            self.task, self.initial, self.suite.train, self.recipe, weights=weights, folder=folder, snapshots=kept,
            save_every=4, progress=progress,
        )  # fmt: skip

    def measurement(self, name: str) -> Measurement:
        return weaknesses.get(name).measurement(self.task)

    def met(self) -> list[np.ndarray]:
        ends = text.snapshots(self.config)
        return [self.suite.present[start:end].mean(0) for start, end in zip((0, *ends), ends, strict=False)]

    def area(self, folder: Path) -> likelihood.Probed:
        moments = [training.snapshot(folder, self.initial, epochs) for epochs in every(self)]
        return dynamics.area(self.task, moments, self.suite.utility)

    def probe(self, name: str, params: Any, folder: Path) -> dict[str, Any]:
        """By one weakness's probe; `folder` is the training's, whose course is what `dynamics` measures."""
        fun = weaknesses.get(name).probe
        found = self.area(folder) if fun is None else fun(self.task, params, self.suite.cases[name].probe)
        return found._asdict()

    def outcome_of(self, params: Any, folder: Path) -> dict[str, Any]:
        """All eight probes and the loss on clean held-out text."""
        probes = {name: self.probe(name, params, folder) for name in WEAKNESSES}
        return {"probes": probes, "utility": likelihood.held_out_loss(self.task, params, self.suite.utility)}


def every(loop: text.Loop) -> tuple[int, ...]:
    return tuple(range(1, loop.recipe.epochs + 1))


def run(
    config: SuiteConfig, folder: Path, say: Callable[[str], None] = lambda _: None, progress: Progress = quiet,
) -> dict[str, Any]:  # fmt: skip
    """The whole suite; returns its document, which is in `suite.json` too.

    Raises:
        UnknownNameError, UsageError, DataError: before anything is computed. OutputError: cannot write there.
    """
    began = time.perf_counter()
    for name in WEAKNESSES:
        parse(type(config.mitigate), config.mitigate.model_dump() | getattr(config, name).settings, f"{name}.settings")
        base.check_methods(config.trace.model_copy(update={"method": getattr(config, name).trace}), words=True)
        if getattr(config, name).fix == "cda" and name not in SWAPPED:
            raise UsageError(f"{name}.fix: cda sets words of two groups in each other's place, which the questions of "
                             f"{' and '.join(SWAPPED)} alone have; take another fix")  # fmt: skip
    _refuse_idle(config)
    settings = text_of(config)
    corpus = text.load_corpus(settings)
    make_folder(folder)
    base.write_lock(folder, config, {"sources": corpora.digest_documents(corpus)})
    (folder / "suite.json").unlink(missing_ok=True)
    seeds = []
    for number in range(config.seeds):
        loop = prepare(config, corpus, folder / f"seed-{number}", config.seed + number)
        for name, stage in STAGES.items():
            for finding in stage(loop, progress):
                say(f"seed {number + 1} of {config.seeds}, {name}: {finding}")
        seeds.append(loop.folder)
    document = report.summarise(seeds, config, time.perf_counter() - began)
    store.write_json(folder / "suite.json", document)
    report.write_page(document, folder / "report.html")
    return document


def _refuse_idle(config: SuiteConfig) -> None:
    """What every weakness says for itself, or the suite's seeds do, is not taken from elsewhere and then ignored."""
    idle = {"mitigate": ("method", "compare", "budget", "seeds", "compare_seeds"), "trace": ("method",)}
    for part, names in idle.items():
        chosen = getattr(config, part)
        for name in names:
            if getattr(chosen, name) != type(chosen).model_fields[name].default:
                raise UsageError(f"{part}.{name} would change nothing: each weakness has its own trace, fix and share "
                                 "(bias.fix ...), and the suite its seeds")  # fmt: skip


def text_of(config: SuiteConfig) -> TextConfig:
    """What the suite shares with a story of text."""
    same = {name: getattr(config, name) for name in ("corpus", "tokenizer", "length", "documents", "held_out", "model")}
    return TextConfig(**same, seed=config.seed, train=config.train, trace=config.trace)  # type: ignore[arg-type]


def prepare(config: SuiteConfig, corpus: corpora.TextCorpus, folder: Path, seed: int) -> Seeded:
    """Plants, model and recipe of one seed; nothing is trained. The truths go to their sealed files."""
    settings = text_of(config).model_copy(update={"seed": seed})
    sizes = Sizes(**config.plants.model_dump())
    planted = plant_suite(corpus, sizes, config.train.epochs, seed)
    task, made = decoder.build_decoder(
        blocks.Shape(corpus.tokenizer.size, corpus.length, **config.model.model_dump()), seed
    )
    found = text.checked_sites(task, made, planted.train, corpus)
    base.check_ours(folder, CLEARED)
    make_folder(folder)
    initial = base.begun_from(folder, made)
    recipe = steps.Recipe(**config.train.model_dump(), seed=seed)
    rows = [store.digest_tree(part) for part in (planted.train, planted.utility, planted.retain, planted.without)]
    asked = [store.digest_tree((case.asked, case.probe)) for case in planted.cases.values()]
    made_of = (rows, asked, store.digest_tree(initial), task_digest(found), config.train.model_dump(), base.versions())
    key = store.stage_key(*made_of, config.trace.checkpoints, seed)
    base.keep_or_clear(folder, key, CLEARED, ())
    plant_suite(corpus, sizes, config.train.epochs, seed, lambda name: base.truth_of(make_folder(folder / name)))
    tables.write_documents(folder / "documents.parquet", planted.documents)
    shown = corpora.PlantedText(
        planted.documents, planted.train, planted.places, np.ones(0), planted.retain, planted.utility, planted.cases
    )
    return Seeded(folder, settings, corpus, shown, task, initial, recipe, key, suite=planted, choices=config)


# ---------------------------------------------------------------- train and audit


def train(loop: Seeded, progress: Progress):
    """Train the model, then a twin without each plant."""
    for which in progress(["train", *WEAKNESSES], "training the model and its twins", unit="models"):
        loop.fitted(which)
    yield f"the model and {len(WEAKNESSES)} twins, mean loss {loop.fitted('train').loss[-1]:.1f} nats a document"


def audit(loop: Seeded, progress: Progress):
    """All probes of the model, and of each twin."""

    def work() -> None:
        models = ["train", *WEAKNESSES]
        folders = [loop.folder / ("train" if name == "train" else f"twins/{name}") for name in models]
        document = {"before": loop.outcome_of(loop.fitted("train").params, folders[0]), "twins": {}}
        for name, folder in zip(models[1:], folders[1:], strict=True):
            params = loop.fitted(name).params
            utility = likelihood.held_out_loss(loop.task, params, loop.suite.utility)
            document["twins"][name] = {"probe": loop.probe(name, params, folder), "utility": utility}
        store.write_json(loop.folder / "audit.json", document)

    done = store.run_stage(loop.folder, "audit", loop.key, ("audit.json",), work)
    del progress
    found = store.read_json(loop.folder / "audit.json")
    for name in WEAKNESSES:
        its, twin = found["before"]["probes"][name]["value"], found["twins"][name]["probe"]["value"]
        unit = weaknesses.get(name).unit
        yield f"{name} {its:.2f} {unit}, {twin:.2f} without its plant{'' if done else ' (unchanged, kept)'}"


# ---------------------------------------------------------------- trace


def size_of(loop: Seeded, name: str) -> int:
    """Rows that an edit may touch: said by the config before any score is seen."""
    share = getattr(loop.choices, name).share
    return loop.choices.plants.positives if share is None else edit.budget_rows(share, len(loop.suite.documents))


def trace(loop: Seeded, progress: Progress):
    """Score every document by every method for every weakness; write the edits that the chosen methods ask for."""
    shared = text.Shared(
        functools.cache(lambda: text.moments(loop, progress)),
        functools.cache(lambda method: text.baseline(loop, method, WEAKNESSES[0])),
    )
    for name in WEAKNESSES:
        method, chosen = getattr(loop.choices, name).trace, getattr(loop.choices, name).chosen

        def work(name: str = name, method: str = method, chosen: str = chosen) -> None:
            choice = loop.config.trace.model_copy(update={"method": method})
            asked = dataclasses.replace(loop, config=loop.config.model_copy(update={"trace": choice}))
            scores, _, _ = text.score_documents(asked, name, shared)
            columns = {key: its.values[:, 0] for key, its in scores.items()}
            if getattr(loop.choices, name).tokens:
                columns = {chosen: by_strongest_token(asked, name, method, shared.moments())} | columns
            if name == "dynamics":  # data comes in shards, whose means are steadier than any document's score
                columns = {key: dynamics.of_shards(values, loop.suite.shards) for key, values in columns.items()}
            tables.write_scores(loop.folder / name / "scores.parquet", columns, len(loop.suite.documents))
            told = scores[method].method + (", of the strongest token" if chosen != method else "")
            traced = edit.traced_edit(columns[chosen], size_of(loop, name), told)
            edit.write_edit(loop.folder / name / "edit-traced.json", traced)

        key = store.stage_key(loop.key, loop.choices.trace.model_dump(), chosen, size_of(loop, name))
        done = store.run_stage(loop.folder / name, "trace", key, ("scores.parquet", "edit-traced.json"), work)
        yield f"{name} by {chosen}{'' if done else ' (unchanged, kept)'}"


# ---------------------------------------------------------------- mitigate


def mitigate(loop: Seeded, progress: Progress):
    """Carry out the traced, the oracle's and a random edit of each weakness; measure all eight probes after each."""
    for name in progress(WEAKNESSES, "mitigating", unit="weaknesses"):
        plan = getattr(loop.choices, name)

        def work(name: str = name) -> None:
            folder = loop.folder / name
            traced = edit.read_edit(folder / "edit-traced.json")
            planted = oracle.oracle_edit(base.truth_of(folder), folder / "edit-traced.json")
            blind = edit.random_edit(len(loop.suite.documents), len(traced.rows), loop.recipe.seed)
            outcomes = {made.arm: _after(loop, name, made) for made in (traced, planted, blind)}
            store.write_json(folder / "outcomes.json", outcomes)
            scores = tables.read_scores(folder / "scores.parquet")
            rate, found = scorecard.scorecard(base.truth_of(folder), folder / "edit-traced.json", scores)
            document = {"base_rate": rate, "methods": {method: f._asdict() for method, f in found.items()}}
            store.write_json(folder / "scorecard.json", document)

        key = store.stage_key(
            loop.key, loop.choices.trace.model_dump(), loop.choices.mitigate.model_dump(), plan.model_dump(),
            size_of(loop, name),
        )  # fmt: skip
        done = store.run_stage(loop.folder / name, "mitigate", key, ("outcomes.json", "scorecard.json"), work)
        found = store.read_json(loop.folder / name / "outcomes.json")
        values = ", ".join(f"{arm} {found[arm]['probes'][name]['value']:.2f}" for arm in ARMS)
        yield f"{name} after {plan.fix}: {values}{'' if done else ' (unchanged, kept)'}"


def _after(loop: Seeded, name: str, made: Edit) -> dict[str, Any]:
    """All eight probes after one edit."""
    plan, folder = getattr(loop.choices, name), loop.folder / "train"
    if plan.fix == "retrain":
        weights, folder = (
            left_out(loop.suite.present, loop.suite.displaced, made.rows),
            loop.folder / "arms" / f"{name}-{made.arm}",
        )
        return loop.outcome_of(loop.fit(weights, folder, every(loop)).params, folder)
    choice = parse(type(loop.choices.mitigate), loop.choices.mitigate.model_dump() | plan.settings, f"{name}.settings")
    how = base.fix(choice, loop.choices.train, plan.fix)
    others = counterfactuals(loop, name, made) if plan.fix == "cda" else None
    before, rows = loop.fitted("train").params, loop.suite.train
    params = edit.apply_edit(loop.task, before, rows, made, how, loop.recipe.seed, others)
    return loop.outcome_of(jax.tree.map(np.asarray, params), folder)


def counterfactuals(loop: Seeded, name: str, made: Edit) -> Any:
    """The edit's documents with the words that the questions set against each other in each other's place, as rows."""
    chosen = [loop.suite.documents[k] for k in made.rows]
    texts = swapped([document.text for document in chosen], loop.suite.cases[name].swaps)
    changed = []
    for document, lines in zip(chosen, map(lines_of, texts), strict=True):
        kept = lines[: fitting(lines, loop.corpus.tokenizer, loop.corpus.length)]  # another word may take more tokens
        changed.append(document._replace(text="".join(kept)))
    return encode(changed, loop.corpus.tokenizer, loop.corpus.length)[0]


def by_strongest_token(loop: Seeded, name: str, method: str, moments: list[text.Moment]) -> np.ndarray:
    """`[N]`: the score of each document's strongest token. A plant may be one word of a document: in the sum over its
    tokens it is lost among what the others say (token scores: IF-Guide, 2025)."""
    total, rows, case = 0.0, loop.suite.train, loop.suite.cases[name]
    for moment, epochs, met in zip(moments, text.snapshots(loop.config), loop.met(), strict=True):
        asked = tracing.question(moment.held, loop.task, moment.params, rows, loop.measurement(name), case.asked)
        by, many = tracing.by(asked, method, moment.span), row.count(rows)
        parts = [token_scores(by, loop.task, moment.params, row.take(rows, np.arange(k, min(k + SOME, many))))
                 for k in range(0, many, SOME)]  # fmt: skip
        total = total + steps.rate(loop.recipe, epochs) * met[:, None] * np.concatenate(parts)
    return np.max(total, 1)


STAGES = {"train": train, "audit": audit, "trace": trace, "mitigate": mitigate}
