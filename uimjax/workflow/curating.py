"""Curation of the reader's own corpus: rows that stay, sources by weight, tokens that do not count; then fine-tuning.

    dedup     documents that nearly repeat another one go (MinHash, extra `text`)
    semdedup  rows whose features repeat another row's go (Abbas et al. 2023, arXiv 2303.09540)
    dsir      rows whose n-grams are like the target's stay (Xie et al. 2023, arXiv 2302.03169)
    less      rows that lower the target's loss stay, by the metric of Adam in a warm-up (Xia et al. 2024, 2402.04333)
    doremi    sources weigh more where the model lags behind one that was tuned before (Xie et al. 2023, 2305.10429)
    abl       rows that a training from the start learns before all others are forgotten (Li et al. 2021, 2110.11571)
    if_guide  the tokens that caused the failures count against themselves (Coalson et al. 2025)

Each is held against the same tuning on as many rows, or tokens, drawn blindly; `dsir` and `less` against the rows that
are nearest to the target by BM25 too, and what can be drawn in no other way (sources) against the corpus as it is.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.answers import engines, story
from uimjax.config import MendConfig
from uimjax.corpora import duplicates
from uimjax.corpora.preparing import prepare
from uimjax.corpora.texts import Columns
from uimjax.errors import DataError, UsageError
from uimjax.interpret import lexical, methods, trajectory
from uimjax.mitigate import curation, edit, isolation
from uimjax.mitigate.edit import Edit
from uimjax.models.own import language_model
from uimjax.pretrained.loading import initial
from uimjax.progress import Progress, quiet
from uimjax.references import call
from uimjax.sketch import Sketch
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task
from uimjax.training import fit
from uimjax.workflow.acting import Arm, Plan, recipe, unlearning
from uimjax.workflow.edits import Case

CHOSEN = "curated"  # the arm that the others are held against
TOGETHER = 256  # rows whose tokens are scored between two marks of progress
ASKED = 200  # texts of a target that rows are ranked by words against
WARM = 4  # epochs and checkpoints of the warm-up that `less` reads
LEVEL = 0.5  # of the loss at the start, that isolation holds
FEWEST = 2  # rows that stay
OF_A_SOURCE = 64  # rows of each source whose loss is looked at


def plan_curation(case: Case, config: MendConfig, out: Path, progress: Progress = quiet) -> Plan:
    """Raises: as the method's own functions; DataError: it finds nothing to do."""
    return CURATIONS[config.method](case, config, out, progress)


def check(config: MendConfig) -> None:
    """Raises UsageError: a target is wanted, or an extra. Before anything is opened."""
    if config.method in ("dsir", "less") and not (config.curate.target or config.retain):
        raise UsageError(f"{config.method} chooses rows like a target: --curate.target FILES, documents that the model "
                         "should do well on")  # fmt: skip
    if config.method == "dedup":
        duplicates.check_installed()


def halved(config: MendConfig) -> bool:
    """Does a target that is not named take half of the clean rows, so that the cost is told by the other half?"""
    return config.method in ("dsir", "less") and not config.curate.target


def _target(case: Case, config: MendConfig, work: Path) -> tuple[Any, list[str]]:
    """(rows, their texts)."""
    files = config.curate.target or config.retain
    columns = Columns(case.config.text_column)  # the text is all that is looked at
    held = prepare(files, case.subject.tokenizer, work / "target", length=case.config.length, columns=columns)
    ids = np.arange(held.manifest["rows"])[:: 2 if halved(config) else 1]
    return row.take(held.rows, ids), held.texts(ids.tolist())


# ---------------------------------------------------------------- rows that go


def _leaving(case: Case, config: MendConfig, gone: np.ndarray, why: str, ranked: np.ndarray | None = None) -> Plan:
    """Tune on all rows but `gone`; `ranked`: rows that a search would let go instead."""
    count = len(case.documents)
    if not len(gone):
        raise DataError(f"{config.method} finds no row that should go ({why}); nothing to do")
    if count - len(gone) < FEWEST:
        raise DataError(f"{config.method} would leave {count - len(gone)} of {count} rows; change its settings")
    made = Edit(CHOSEN, tuple(int(i) for i in gone), why)
    arms = [Arm(CHOSEN, functools.partial(_tuned, case, config, made))]
    if config.controls and ranked is not None:
        arms.append(Arm("ranked", functools.partial(_tuned, case, config, Edit("ranked", tuple(ranked), "by BM25"))))
    if config.controls:
        arms.append(
            Arm("random", lambda seed, at: _tuned(case, config, edit.random_edit(count, len(gone), seed), seed, at))
        )
    return Plan(arms, made.rows, why, culprits=False, clean=None if ranked is None else np.arange(count))


def _tuned(case: Case, config: MendConfig, made: Edit, seed: int, at: Path) -> Any:
    rows = jax.tree.map(np.asarray, case.corpus.rows)
    return edit.apply_edit(case.subject.task, case.subject.params, rows, made, recipe(config), seed, folder=at)


def _dedup(case: Case, config: MendConfig, out: Path, progress: Progress) -> Plan:
    del out
    near = 0.8 if config.curate.near is None else config.curate.near
    first = duplicates.groups(case.corpus, near, progress)
    again = np.flatnonzero(first != np.arange(len(first)))
    gone = np.flatnonzero(np.isin(case.documents, again))
    return _leaving(case, config, gone, f"{len(again)} documents repeat another one, at {near:g} of its runs of words")


def _semdedup(case: Case, config: MendConfig, out: Path, progress: Progress) -> Plan:
    del out, progress
    near = 0.95 if config.curate.near is None else config.curate.near
    gone = curation.semantic_duplicates(_features(case), 1 - near, seed=config.seed)
    return _leaving(
        case, config, gone, f"{len(gone)} rows repeat another one, at a cosine of {near:g} of their features"
    )


def _features(case: Case) -> np.ndarray:
    task, params = case.subject.task, case.subject.params
    if task.features is None:
        raise UsageError("semdedup compares features, and the task has none; give it some, or take dedup")
    program = jax.jit(jax.vmap(task.features, (None, 0)))
    parts = [np.asarray(program(params, b.rows), np.float32)[: int(b.mask.sum())]
             for b in row.batches(case.corpus.rows, case.config.batch_size)]  # fmt: skip
    return np.concatenate(parts)


# ---------------------------------------------------------------- rows that stay


def _dsir(case: Case, config: MendConfig, out: Path, progress: Progress) -> Plan:
    del progress
    texts, wanted = case.corpus.texts(range(len(case.documents))), _target(case, config, out)[1]
    many = _kept(case, 0.5 if config.curate.keep is None else config.curate.keep)
    stay = curation.dsir(texts, wanted, many, seed=config.seed).rows
    return _staying(case, config, stay, texts, wanted, f"the {many} rows most like the target by n-grams stay (DSIR)")


def _less(case: Case, config: MendConfig, out: Path, progress: Progress) -> Plan:
    """Influence on the target's loss, positive where a row raises it; the most negative rows stay."""
    del progress
    target, wanted = _target(case, config, out)
    task, rows = case.subject.task, jax.tree.map(np.asarray, case.corpus.rows)
    some = row.take(rows, _sample(len(case.documents), config.curate.warmup, config))
    warm = Recipe(WARM, config.retain_size, config.learning_rate, clip=1.0, warmup=0.03, seed=config.seed)
    run = trajectory.record(task, case.subject.params, some, warm, WARM, folder=out / "warmup")
    asked = Measurement("loss on the target", functools.partial(_mean_loss, task))
    found = methods.score(task, run, rows, asked, target, "less", batch_size=case.config.batch_size)
    many = _kept(case, 0.05 if config.curate.keep is None else config.curate.keep)
    stay = np.sort(np.argsort(found.values[:, 0], kind="stable")[:many])
    texts = case.corpus.texts(range(len(rows["tokens"])))
    return _staying(case, config, stay, texts, wanted, f"the {many} rows that lower the target's loss most stay (LESS)")


def _sample(count: int, share: float, config: MendConfig) -> np.ndarray:
    many = min(count, max(round(share * count), 4 * config.retain_size))
    return np.sort(np.random.default_rng([config.seed, 17]).choice(count, many, replace=False))


def _mean_loss(task: Task, params: Any, example: Any) -> Any:
    return jnp.sum(task.loss(params, example)) / jnp.maximum(jnp.sum(example["counted"][1:]), 1)


def _kept(case: Case, share: float) -> int:
    return min(max(FEWEST, round(share * len(case.documents))), len(case.documents) - 1)


def _staying(
    case: Case, config: MendConfig, stay: np.ndarray, texts: list[str], wanted: list[str], why: str
) -> Plan:  # fmt: skip
    every = np.arange(len(case.documents))
    wanted = [wanted[k] for k in np.unique(np.linspace(0, len(wanted) - 1, ASKED).round().astype(int))]
    near = np.argsort(-lexical.bm25(texts, wanted).mean(1), kind="stable")[: len(stay)] if config.controls else stay
    return _leaving(case, config, np.setdiff1d(every, stay), why, np.setdiff1d(every, near))


# ---------------------------------------------------------------- sources by weight


def _doremi(case: Case, config: MendConfig, out: Path, progress: Progress) -> Plan:
    """`curation.mixture` of the excess losses by source, round by round: tuned on as it is, the model shows what can be
    learned of each source; another copy of it, tuned by the weights so far, what still lacks."""
    sources = case.corpus.metadata()["source"].to_pylist()
    names, owner = np.unique(sources, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"doremi weighs sources, and all rows are from {names[0]}; name the column of the documents "
                        "that says where they are from, when you trace: --source_column")  # fmt: skip
    rows, task, how = jax.tree.map(np.asarray, case.corpus.rows), case.subject.task, recipe(config)
    share = np.bincount(owner) / len(owner)
    tuned_once = dataclasses.replace(how, seed=config.seed)
    reference = fit(task, case.subject.params, rows, tuned_once, folder=out / "reference", save_every=1).params
    few = np.concatenate([_spread(np.flatnonzero(owner == k)) for k in range(len(names))])
    goal = _token_loss(case, reference, row.take(rows, few))
    now, each, total = case.subject.params, np.full(len(names), 1 / len(names)), np.zeros(len(names))
    for number in progress(range(config.curate.rounds), "weighing sources", unit="rounds"):
        if number:
            many = config.steps * config.retain_size // config.curate.rounds
            drawn, some = _draw(owner, each, many, config.seed + number), dataclasses.replace(
                how, epochs=1, schedule="constant", warmup=0.0, seed=config.seed + number
            )  # fmt: skip
            now = fit(task, now, row.take(rows, drawn), some, folder=out / f"round-{number}", save_every=1).params
        lag = np.maximum(_token_loss(case, now, row.take(rows, few)) - goal, 0)
        each = curation.moved(
            each, np.array([lag[owner[few] == k].mean() for k in range(len(names))]), config.curate.eta
        )
        total += each
    weights = total / config.curate.rounds
    by_row = (weights / share)[owner]

    def tuned(by_row: np.ndarray, seed: int, at: Path) -> Any:
        chosen = dataclasses.replace(how, seed=seed)
        return fit(task, case.subject.params, rows, chosen, weights=by_row, folder=at, save_every=1).params

    arms = [Arm(CHOSEN, functools.partial(tuned, by_row.astype(np.float32)))]
    if config.controls:
        arms.append(Arm("as it is", functools.partial(tuned, np.ones(len(owner), np.float32))))
    told = ", ".join(f"{name} {w:.3f} (of {s:.3f})" for name, w, s in zip(names, weights, share, strict=True))
    return Plan(arms, (), f"sources by weight (DoReMi): {told}", culprits=False)


def _spread(ids: np.ndarray) -> np.ndarray:
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(OF_A_SOURCE, len(ids))).round().astype(int))]


def _draw(owner: np.ndarray, weights: np.ndarray, many: int, seed: int) -> np.ndarray:
    """Row ids, sources by weight and rows of a source alike."""
    p = (weights / np.bincount(owner))[owner]
    return np.random.default_rng([seed, 19]).choice(len(owner), max(many, 1), p=p / p.sum())


def _token_loss(case: Case, params: Any, rows: Any) -> np.ndarray:
    """`[N]` nats a token."""
    program = jax.jit(jax.vmap(functools.partial(_mean_loss, case.subject.task), (None, 0)))
    found = [program(params, b.rows)[: int(b.mask.sum())] for b in row.batches(rows, case.config.batch_size)]
    return np.concatenate([np.asarray(x, np.float64) for x in found])


# ---------------------------------------------------------------- what is learned first


def _abl(case: Case, config: MendConfig, out: Path, progress: Progress) -> Plan:
    """Isolate by a training of a fresh model of the same shape, held at a loss; the finished one forgets these rows."""
    del out
    begin, task, its = _fresh(case, config), case.subject.task, config.curate
    rows, count = jax.tree.map(np.asarray, case.corpus.rows), len(case.documents)
    sample = row.spread(rows, ASKED)
    each = _token_loss(case, begin, sample) * np.maximum(np.asarray(sample["counted"])[:, 1:].sum(1), 1)
    level = its.level or LEVEL * float(each.mean())
    how = Recipe(its.early, config.retain_size, its.rate, clip=1.0, schedule="constant", seed=config.seed)
    found = isolation.isolate(task, begin, rows, how, its.isolate, level, progress=progress).rows
    made = Edit(CHOSEN, tuple(int(i) for i in found), f"the {len(found)} rows that are learned first (ABL)")
    choice = unlearning(config, "grad_diff")

    def forgotten(one: Edit, seed: int, at: Path) -> Any:
        return edit.apply_edit(task, case.subject.params, rows, one, choice, seed, folder=at)

    arms = [Arm(CHOSEN, functools.partial(forgotten, made))]
    if config.controls:
        arms.append(Arm("random", lambda seed, at: forgotten(edit.random_edit(count, len(found), seed), seed, at)))
    return Plan(arms, made.rows, made.why)


def _fresh(case: Case, config: MendConfig) -> Any:
    """Parameters of the model's shape that have learned nothing.

    Raises:
        UsageError: it is a Linen module, or its function returns parameters that were trained.
    """
    subject = case.subject
    if subject.folder is not None:
        held = initial(subject.folder.folder, config.seed, scanned=case.config.scanned, remat=case.config.remat).params
    elif not case.config.checkpoint:
        raise UsageError("abl trains from the start, and what the model's function returns was trained; have it return "
                         "a fresh module, and name its parameters by the trace's --checkpoint")  # fmt: skip
    else:
        held = language_model(call(case.config.model))[1]
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(held)):
        raise UsageError("abl trains from the start, and a Linen module has no parameters of its own")
    return held


# ---------------------------------------------------------------- tokens


def _if_guide(case: Case, config: MendConfig, out: Path, progress: Progress) -> Plan:
    del out
    rows, its = jax.tree.map(np.asarray, case.corpus.rows), config.curate
    scores = _token_scores(case, rows, progress)
    marked = curation.culprit_tokens(scores, rows["counted"] > 0, its.quantile, its.window, its.most)

    def tuned(at: np.ndarray, seed: int, folder: Path) -> Any:
        counted = np.where(at, -its.penalty, rows["counted"].astype(np.float32)).astype(np.float32)
        how = dataclasses.replace(recipe(config), seed=seed)
        changed = rows | {"counted": counted}
        return fit(case.subject.task, case.subject.params, changed, how, folder=folder, save_every=1).params

    def blind(seed: int, folder: Path) -> Any:
        rng, places = np.random.default_rng([seed, 23]), np.argwhere(rows["counted"] > 0)
        drawn = np.zeros_like(marked)
        drawn[tuple(places[rng.choice(len(places), int(marked.sum()), replace=False)].T)] = True
        return tuned(drawn, seed, folder)

    arms = [Arm(CHOSEN, functools.partial(tuned, marked))] + [Arm("random", blind)] * config.controls
    touched = tuple(int(i) for i in np.flatnonzero(marked.any(1)))
    told = f"{int(marked.sum())} tokens of {len(touched)} rows, of {int((rows['counted'] > 0).sum())} in all (IF-Guide)"
    return Plan(arms, touched, told, culprits=False)


def _token_scores(case: Case, rows: Any, progress: Progress) -> np.ndarray:
    """`[N, T]`: each token's part in its row's score, summed over the failures, by the method of the trace."""
    config = case.config
    size = sum(x.size for x in jax.tree.leaves(case.subject.params))
    questions = 1 if case.failures.together else len(case.failures.lines)
    method, _ = engines.choose(config.method, size, len(rows["tokens"]), questions, False, rows["tokens"].size)
    if method == "retain_cos":
        method = "grad_cos"
    held = {f.name for f in dataclasses.fields(story.Choices)} - {"sketch", "mesh", "null"}
    choices = story.Choices(
        **config.model_dump(include=held), null=0, sketch=Sketch(config.sketch_rank, seed=config.seed)
    )
    its = (case.subject.task, case.subject.params, rows, case.failures, case.run, choices, method, None, quiet)
    ready = story.engine(*its)
    if ready.document_tokens is None:
        raise UsageError(f"{ready.method} gives scores of whole rows alone; trace again with another method")
    parts = [np.arange(k, min(k + TOGETHER, len(rows["tokens"]))) for k in range(0, len(rows["tokens"]), TOGETHER)]
    found = []
    for ids in progress(parts, "scoring tokens", unit=f"x {TOGETHER} rows"):
        found.append(sum(ready.document_tokens(q, row.take(rows, ids)) for q in range(questions)))
    return np.concatenate(found)


CURATIONS: dict[str, Callable[[Case, MendConfig, Path, Progress], Plan]] = {
    "dedup": _dedup, "semdedup": _semdedup, "dsir": _dsir, "less": _less, "doremi": _doremi, "abl": _abl,
    "if_guide": _if_guide,
}  # fmt: skip
