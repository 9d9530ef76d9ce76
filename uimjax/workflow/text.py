"""The story of text, top to bottom: train -> audit -> trace -> mitigate -> verify, for two failures of one decoder.

One corpus carries both plants, a leaked secret and a triggered behaviour. One training with them and one without (the
clean twin, which is also the causal check) serve both; the seeds vary the edits.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from uimjax import corpora, steps, store, training
from uimjax.audit import base as likelihood
from uimjax.audit import behaviour, leak
from uimjax.config import TextConfig
from uimjax.corpora import Behaviour, PlantedText, Secret, TextCorpus
from uimjax.corpora.documents import line_at
from uimjax.errors import ShapeError, UsageError
from uimjax.interpret import methods, trace, trajectory
from uimjax.interpret.base import Scores, Span, training_sites
from uimjax.interpret.index import Index, task_digest
from uimjax.interpret.indexing import build_index
from uimjax.interpret.positions import token_scores
from uimjax.mitigate import proof
from uimjax.models import blocks, decoder
from uimjax.progress import Progress, quiet
from uimjax.references import call
from uimjax.report import summary, tables
from uimjax.report.markup import file_name
from uimjax.rows import count, example_spec, take
from uimjax.sinks import JsonLines, TensorBoard
from uimjax.sketch import Sketch
from uimjax.store.base import make_folder
from uimjax.taps import Sites
from uimjax.task import Measurement, Task
from uimjax.workflow import base, saying
from uimjax.workflow.base import STAGES, Failure

CASES = ("secret", "behaviour")
CLEARED = ("train", "twin", "tensorboard", "index", *CASES)  # folders that other choices make anew
BLIND = ("random", "loss", "grad_norm")  # baselines that do not look at the question


@dataclass(frozen=True)
class Loop:
    """The run: where its files are, and everything that follows from the config."""

    folder: Path
    config: TextConfig
    corpus: TextCorpus
    planted: PlantedText
    task: Task
    initial: Any
    recipe: steps.Recipe
    key: str
    read: dict[str, training.Fitted] = field(default_factory=dict, compare=False, repr=False)  # once each

    def fitted(self, which: str) -> training.Fitted:
        """The trained model ("train") or its clean twin ("twin"), from its checkpoint."""
        if which not in self.read:
            weights, rows = None if which == "train" else self.planted.kept, self.planted.train
            self.read[which] = training.fit(
                self.task, self.initial, rows, self.recipe, weights=weights, folder=self.folder / which
            )
        return self.read[which]

    def outcome(self, name: str, params: Any) -> proof.Outcome:
        probe, utility = self.planted.cases[name].probe, self.planted.utility
        loss = likelihood.held_out_loss(self.task, params, utility)
        if name == "behaviour":
            return proof.Outcome(behaviour.rate(self.task, params, probe), loss)
        also = {"extraction": float(leak.extracted(self.task, params, probe))}
        return proof.Outcome(leak.exposure(self.task, params, probe), loss, also)

    def failure(self, name: str) -> Failure:
        config = self.config
        seeds = tuple(config.seed + k for k in range(config.mitigate.seeds))
        choices = (config.trace, config.mitigate, config.train)
        at, data = self.folder / name, self.planted.train
        most = 1 if name == "secret" else saying.MOST  # the secrets that follow are other ones
        voice = saying.of_texts(self.task, self.planted.cases[name].probe, self.corpus.tokenizer, most)
        return Failure(at, self.task, data, *choices, seeds, lambda params: self.outcome(name, params), voice)

    def measurement(self, name: str) -> Measurement:
        return (leak if name == "secret" else behaviour).measurement(self.task)

    def met(self) -> list[np.ndarray] | None:
        """How often each row was met in the epochs up to each snapshot; None: all of them always."""
        return None


def run(
    config: TextConfig,
    folder: Path,
    until: str = "mitigate",
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The whole story, or up to the stage `until`; returns the summary as far as it goes, one part a failure.

    Raises:
        UnknownNameError, UsageError, DataError: before anything is computed. OutputError: cannot write there.
    """
    began = time.perf_counter()
    base.check_methods(config.trace, words=True)
    corpus = load_corpus(config)
    base.check_budget(config.mitigate, len(corpus.train))
    loop = prepare(config, corpus, folder)
    (folder / "text.json").unlink(missing_ok=True)  # written again at the end: a page never mixes two runs
    for stage in STAGES[: STAGES.index(until) + 1]:
        for name, done, finding in _WORK[stage](loop, progress):
            say(f"{name}: {finding}{'' if done else ' (unchanged, kept)'}")
    result = summary.text(folder, CASES, config, until, time.perf_counter() - began)
    if until == "mitigate":
        store.write_json(folder / "text.json", result)
    return result


def load_corpus(config: TextConfig) -> TextCorpus:
    """The built-in source files, the reader's folders, or what the reader's own function returns."""
    cut = (config.tokenizer, config.length, config.documents, config.held_out)

    def made(name: str, train: list[corpora.Source], test: list[corpora.Source]) -> TextCorpus:
        shared = {s.text for s in train if s.text.strip()} & {s.text for s in test}
        if shared:
            raise UsageError(f"{name}: {len(shared)} held-out file(s) are training files too; held-out text was wanted")
        return corpora.text_corpus(name, train, test, *cut)

    if config.train_folder or config.test_folder:
        base.check_one(config, "corpus", "train_folder")
        if not (config.train_folder and config.test_folder):
            raise UsageError("train_folder and test_folder go together; one is missing")
        return made(config.train_folder, *map(corpora.read_folder, (config.train_folder, config.test_folder)))
    if ":" in config.corpus:
        return made(config.corpus, *(corpora.check_sources(config.corpus, p) for p in base.parts_of(config.corpus)))
    if config.corpus != "stdlib":
        raise UsageError(f"unknown corpus {config.corpus!r}: stdlib, pkg.module:function, or train_folder, test_folder")
    return corpora.stdlib(*cut)


def plants_of(config: TextConfig) -> tuple[Secret, Behaviour]:
    return Secret(**config.secret.model_dump()), Behaviour(**config.behaviour.model_dump())


def model_of(config: TextConfig, corpus: TextCorpus) -> tuple[Task, Any]:
    """The decoder of the config, or the reader's own, as (task, parameters)."""
    if config.own_model:
        base.check_one(config, "model", "own_model")
        made = call(config.own_model, corpus.tokenizer.size, corpus.length, nnx.Rngs(config.seed))
        return decoder.build(made)
    shape = blocks.Shape(corpus.tokenizer.size, corpus.length, **config.model.model_dump())
    return decoder.build_decoder(shape, config.seed)


def checked_sites(task: Task, params: Any, rows: Any, corpus: TextCorpus) -> Sites:
    """The sites of the model's loss, once its logits have the right shape.

    Raises:
        ShapeError: tokens `[T]` do not go in, or something else than `[T, V]` comes out.
    """
    found = training_sites(task, params, rows, check=False)
    assert task.outputs is not None
    assert task.features is not None
    logits = jax.eval_shape(task.outputs, params, example_spec(rows))
    jax.eval_shape(task.features, params, example_spec(rows))
    wanted = (corpus.length, corpus.tokenizer.size)
    if logits.shape != wanted:
        raise ShapeError(f"the model gives logits {list(logits.shape)}; [T, V] = {list(wanted)} was wanted")
    return found


def drawn(config: TextConfig, corpus: TextCorpus, seal: Callable[[str], Path] | None = None) -> PlantedText:
    """The plants that the config asks for; only with `seal` is anything written."""
    whole = bool(config.own_model)  # the reader's model may know no shorter rows
    return corpora.plant_text(corpus, *plants_of(config), config.seed, whole, seal)


def prepare(config: TextConfig, corpus: TextCorpus, folder: Path) -> Loop:
    """Plants, model and recipe; nothing is trained. The truths go to their sealed files."""
    planted = drawn(config, corpus)
    task, made = model_of(config, corpus)
    found = checked_sites(task, made, planted.train, corpus)
    base.check_ours(folder, CLEARED)
    make_folder(folder)
    parts = {"train": planted.train, "utility": planted.utility, "retain": planted.retain}
    digests = {name: store.digest_tree(rows) for name, rows in parts.items()}
    digests |= {"sources": corpora.digest_documents(corpus), "tokenizer": corpus.tokenizer.digest}
    base.write_lock(folder, config, digests)
    initial = base.begun_from(folder, made)
    recipe = steps.Recipe(**config.train.model_dump(), seed=config.seed)
    asked = [store.digest_tree((case.asked, case.probe)) for case in planted.cases.values()]
    kept = store.digest_array(planted.kept)
    made_of = (digests, asked, kept, store.digest_tree(initial), task_digest(found))
    choices = (config.train.model_dump(), config.trace.checkpoints, config.seed)
    key = store.stage_key(*made_of, *choices, base.versions())
    base.keep_or_clear(folder, key, CLEARED, ("metrics.jsonl",))
    seal = lambda name: base.truth_of(make_folder(folder / name))  # noqa: E731  # one line, used once
    drawn(config, corpus, seal)
    corpus.tokenizer.save(folder / "tokenizer.json")
    tables.write_documents(folder / "documents.parquet", planted.documents)
    return Loop(folder, config, corpus, planted, task, initial, recipe, key)


# ---------------------------------------------------------------- train


def snapshots(config: TextConfig) -> tuple[int, ...]:
    return training.spread(config.train.epochs, config.trace.checkpoints)


def train(loop: Loop, progress: Progress = quiet):
    """Train the model and its clean twin; a run that was stopped continues at its checkpoint."""
    folder = loop.folder

    def work() -> None:
        resume = training.resumes_at(folder / "train", snapshots(loop.config))
        sinks = [JsonLines(folder / "metrics.jsonl", resume), TensorBoard(folder / "tensorboard")]
        common = {"save_every": 4, "progress": progress}
        fit = lambda **more: training.fit(  # noqa: E731  # the two runs differ in what follows alone
            loop.task, loop.initial, loop.planted.train, loop.recipe, **common, **more
        )
        main = fit(folder=folder / "train", snapshots=snapshots(loop.config), sinks=sinks)
        loop.read.update(train=main, twin=fit(folder=folder / "twin", weights=loop.planted.kept))
        tables.write_dynamics(folder / "dynamics.parquet", main.example_loss, main.margin)
        tokens = float(loop.planted.train["counted"][:, 1:].sum()) / len(loop.planted.documents)
        store.write_json(folder / "train.json", {"loss": [float(x) / tokens for x in main.loss]})

    kept = [f"train/snapshots/digests-{epochs}.json" for epochs in snapshots(loop.config)]
    done = store.run_stage(folder, "train", loop.key, ("train.json", "dynamics.parquet", *kept), work)
    last = store.read_json(folder / "train.json")["loss"][-1]
    yield "text", done, f"trained, {last:.3f} nats a token"


# ---------------------------------------------------------------- audit


def audit(loop: Loop, progress: Progress = quiet):
    """The failures, measured: exposure and rate, and the loss on clean text, of the model and of its clean twin."""
    del progress
    for name in CASES:

        def work(name: str = name) -> None:
            found = [loop.outcome(name, loop.fitted(which).params)._asdict() for which in ("train", "twin")]
            store.write_json(loop.folder / name / "audit.json", {"before": found[0], "clean_twin": found[1]})

        done = store.run_stage(loop.folder / name, "audit", loop.key, ("audit.json",), work)
        found = store.read_json(loop.folder / name / "audit.json")
        before, twin = found["before"]["probe"], found["clean_twin"]["probe"]
        yield name, done, summary.PROBES[name].says(before, twin)


# ---------------------------------------------------------------- trace


class Moment(NamedTuple):
    """One moment of the training: its parameters, their index, and what the rows to retain explain there."""

    params: Any
    held: Index
    span: Span


class Shared(NamedTuple):
    """What both failures need and neither changes: the moments, and baselines that do not look at the question."""

    moments: Callable[[], list[Moment]]
    baseline: Callable[[str], Scores]


def trace_documents(loop: Loop, progress: Progress = quiet):
    """Score every document by every method and the tokens of the strongest; write the edit that the method asks for."""
    unplanted = loop.corpus._replace(train=())  # neither the twin's rows nor the documents before they were planted
    without_twin = dataclasses.replace(loop, corpus=unplanted, planted=loop.planted._replace(kept=np.ones(0)), read={})
    shared = Shared(
        functools.cache(lambda: moments(without_twin, progress)),
        functools.cache(lambda method: baseline(without_twin, method, CASES[0])),
    )
    for name in CASES:

        def work(name: str = name) -> None:
            scores, nulls, shares = score_documents(without_twin, name, shared)
            document = base.write_trace(loop.failure(name), scores, nulls)
            document["sensitive"] = list(loop.planted.cases[name].sensitive)
            store.write_json(loop.folder / name / "trace.json", _with_tokens(loop, document, shares))

        key = store.stage_key(loop.key, loop.config.trace.model_dump(), loop.config.mitigate.budget)
        done = store.run_stage(loop.folder / name, "trace", key, base.TRACED, work)
        first = store.read_json(loop.folder / name / "trace.json")["proponents"][:3]
        secrets = [secret for case in loop.planted.cases.values() for secret in case.sensitive]
        places = ", ".join(f"{file_name(p['path'], secrets)}:{p['at'][0]}:{p['at'][1]}" for p in first)
        yield name, done, f"strongest proponents by {loop.config.trace.method}: {places}"


def moments(loop: Loop, progress: Progress) -> list[Moment]:
    """An index at each moment of the training: built once, asked by both failures."""
    found, rows = [], loop.planted.train
    retain = take(loop.planted.retain, np.arange(min(loop.config.trace.retain, count(loop.planted.retain))))
    for epochs in snapshots(loop.config):
        params = training.snapshot(loop.folder / "train", loop.initial, epochs)
        folder = loop.folder / "index" / f"epoch-{epochs}"
        sketch = Sketch(loop.config.trace.sketch_rank, seed=loop.config.seed)
        build = lambda p=params, f=folder, s=sketch: build_index(  # noqa: E731  # called twice at most
            loop.task, p, rows, f, sketch=s, batch_size=64, shard_rows=512, progress=progress
        )
        held = base.rebuilt(folder, build)
        found.append(Moment(params, held, trace.retained(held, loop.task, params, rows, retain)))
    return found


def score_documents(
    loop: Loop, name: str, shared: Shared, tokens: bool = True
) -> tuple[dict[str, Scores], list[Scores], dict[int, np.ndarray]]:
    """Scores by method; the chosen one's for questions without a failure; each token's share at both of its ends."""
    choice, rows = loop.config.trace, loop.planted.train
    case, measurement = loop.planted.cases[name], loop.measurement(name)
    built = shared.moments()
    rates = [steps.rate(loop.recipe, epochs) for epochs in snapshots(loop.config)]

    def questions(queries: Any) -> list[trace.Question]:
        return [trace.question(m.held, loop.task, m.params, rows, measurement, queries) for m in built]

    def ready(asked: list[trace.Question], method: str) -> list[trace.Asked]:
        return [trace.by(question, method, m.span) for question, m in zip(asked, built, strict=True)]

    def summed(each: list[trace.Asked]) -> Scores:
        return trajectory.over_checkpoints([trace.score_all(a) for a in each], rates, loop.met())

    asked = questions(case.asked)

    def by(method: str) -> Scores:
        if method in methods.PRESETS:
            return summed(ready(asked, method))
        return shared.baseline(method) if method in BLIND else baseline(loop, method, name)

    scores = {method: by(method) for method in dict.fromkeys((choice.method, *choice.compare))}
    if choice.method not in methods.PRESETS or not tokens:  # a baseline knows no tokens and no null
        return scores, [], {}
    nulls = [summed(ready(questions(null), choice.method)) for null in case.null]
    order = np.argsort(-scores[choice.method].values[:, 0], kind="stable")
    ends = np.unique(np.concatenate([order[: choice.top], order[-choice.top :]]))
    chosen = zip(ready(asked, choice.method), built, strict=True)
    parts = [token_scores(a, loop.task, m.params, take(rows, ends)) for a, m in chosen]
    shares = np.tensordot(np.asarray(rates) / sum(rates), np.stack(parts), 1)
    return scores, nulls, dict(zip(ends.tolist(), shares, strict=True))


def baseline(loop: Loop, method: str, name: str) -> Scores:
    case, rows = loop.planted.cases[name], loop.planted.train
    words = method in methods.LEXICAL  # only these look at texts, which pictures have not
    texts = ([d.text for d in loop.planted.documents], list(case.texts)) if words else None
    queries = case.asked[0] if isinstance(case.asked, tuple) else case.asked
    more = {"seed": loop.config.seed, "texts": texts}
    params, measurement = loop.fitted("train").params, loop.measurement(name)
    return methods.score(loop.task, params, rows, measurement, queries, method, **more)


def _with_tokens(loop: Loop, document: dict[str, Any], shares: dict[int, np.ndarray]) -> dict[str, Any]:
    """Path, line, text, the tokens' shares as `[start, stop, share]` in characters of the text, and `at`: line and
    column in the file, both from 1, of the token that decided."""
    for side, sign in (("proponents", 1.0), ("opponents", -1.0)):
        for hit in document[side]:
            k = hit["row"]
            if k not in shares:  # a baseline knows no tokens
                shares = shares | {k: np.zeros(loop.planted.train["tokens"].shape[1])}
            source, counted = loop.planted.documents[k], loop.planted.train["counted"][k] > 0
            spans = zip(loop.planted.places.start[k], loop.planted.places.stop[k], shares[k], strict=True)
            hit |= {"path": source.path, "line": source.line, "column": source.column, "text": source.text}
            hit["tokens"] = [[int(a), int(b), float(s)] for (a, b, s), c in zip(spans, counted, strict=True) if c]
            line, column = line_at(source, max(hit["tokens"], key=lambda token: sign * token[2])[0])
            hit["at"] = [line, column + 1]
    return document


# ---------------------------------------------------------------- mitigate and verify


def mitigate(loop: Loop, progress: Progress = quiet):
    """Carry out the traced, the oracle and the random edit, and hold them against each other and the clean twin."""
    for name in CASES:

        def work(name: str = name) -> None:
            twin = loop.fitted("twin").params  # trained from the same start without the planted rows: the causal check
            params = loop.fitted("train").params
            base.carry_out(loop.failure(name), params, lambda _: loop.outcome(name, twin), progress)

        key = store.stage_key(loop.key, loop.config.trace.model_dump(), loop.config.mitigate.model_dump())
        done = store.run_stage(loop.folder / name, "mitigate", key, base.MITIGATED, work)
        arms = store.read_json(loop.folder / name / "outcomes.json")[loop.config.mitigate.method]
        yield name, done, summary.arms_line(name, loop.config.mitigate.method, arms)


_WORK = {"train": train, "audit": audit, "trace": trace_documents, "mitigate": mitigate}
