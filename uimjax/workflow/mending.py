"""Mend the model of a trace: its edit, the same for controls of equal size, what each did, and the new checkpoint.

Nothing was planted here, so the verdict rests on three arms: the traced documents, those that words alone name (BM25),
and random ones. The model that came in is not written to.
"""

import difflib
import functools
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import checkpoint, pretrained, steps, store
from uimjax import rows as row
from uimjax.answers.failures import Failures, read_failures
from uimjax.answers.story import measured
from uimjax.answers.subject import Subject, open_subject
from uimjax.config import LOCK, FailuresConfig, MendConfig, parse, read_yaml
from uimjax.corpora.prepared import Prepared, open_prepared
from uimjax.corpora.preparing import prepare
from uimjax.corpora.texts import Columns
from uimjax.errors import DataError, MissingFileError, OutputError, UnknownNameError, UsageError
from uimjax.interpret import lexical
from uimjax.mitigate import edit, forgetting, newton
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.private import Private, fine_tune
from uimjax.mitigate.relearning import Relearning, relearn
from uimjax.mitigate.synthetic import swapped
from uimjax.mitigate.unlearning import Unlearning, unlearn
from uimjax.progress import Progress, quiet
from uimjax.store.base import atomic, make_folder
from uimjax.task import Task
from uimjax.workflow import base

EDIT, DONE = "edit.json", "mended.json"
CLEARED = ("model", "steps", "retain")  # what a mitigation of other choices makes anew
TUNED = ("drop", "downweight", "private", "newton")  # beside the forget losses
LOOKED = 200  # clean rows whose loss is the cost
BACK = 0.5  # of what a mitigation moved, beyond which it is told that it comes back


class Case(NamedTuple):
    """What a trace's folder holds, opened again."""

    config: FailuresConfig
    subject: Subject
    corpus: Prepared
    failures: Failures
    documents: np.ndarray  # number of each row's document
    names: list[str]
    reworded: Failures | None = None


# ---------------------------------------------------------------- the edit


def write_edit(run: Path, top: int, failures: Sequence[int], out: Path, copies: bool = False) -> dict[str, Any]:
    """The `top` proponents of each failure of a trace, copies included, as a file that a person may change. `copies`:
    the copies alone, so that one of each stays (deduplication where it matters).

    Raises:
        MissingFileError: no answers there. UsageError: no such failure.
    """
    answers = store.read_json(run / "answers.json")
    _language(answers["config"], run)
    known = [its["question"] for its in answers["failures"]]
    for k in failures:
        if k not in known:
            raise UsageError(f"failure {k} is not among the {len(known)} of {run} (from 0)")
    names: dict[str, None] = {}
    for its in answers["failures"]:
        if not failures or its["question"] in failures:
            for found in its["proponents"][:top]:
                names |= dict.fromkeys(found["copies"] if copies else [found["id"], *found["copies"]])
    if copies and not names:
        raise DataError(f"{run}: no proponent has near copies (`--fold` of the trace says what one is); nothing to do")
    if not names:
        raise DataError(f"{run}: its failures have no proponents; trace again with --k above 0")
    why = f"{'copies of ' * copies}the {top} strongest proponents of each failure by {answers['method']}"
    document = {"why": why, "documents": [*names]}
    store.write_json(out, document)
    return document | {"edit": str(out)}


def _language(config: dict[str, Any], run: Path) -> None:
    if config.get("kind") != "failures":
        raise UsageError(f"{run} is a trace of a classifier; edits are of documents of language models so far")


def read_edit(path: Path, case: Case) -> Edit:
    """Rows of the documents that the file names.

    Raises:
        MissingFileError, DataError: no list of names. UnknownNameError: a document that the corpus has not.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; make it with `uimjax edit {path.parent}`")
    found = store.read_json(path)
    names = found.get("documents") if isinstance(found, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f'{path}: {{"documents": [names of documents]}} was wanted')
    place = {name: k for k, name in enumerate(case.names)}
    for name in names:
        if name not in place:
            near = difflib.get_close_matches(name, case.names, n=1)
            raise UnknownNameError("document of the edit", name, near or case.names[:5])
    rows = np.flatnonzero(np.isin(case.documents, [place[name] for name in names]))
    if len(rows) == len(case.documents):
        raise UsageError(f"{path} names all documents; nothing would be left")
    return Edit("traced", tuple(int(i) for i in rows), str(found.get("why", "")))


def ranked_edit(case: Case, size: int) -> Edit:
    """As many rows, by the best BM25 of any failure's words: what a search would have named."""
    texts = case.corpus.texts(range(len(case.documents)))
    scores = lexical.bm25(texts, [line["prompt"] + line["bad"] for line in case.failures.lines]).max(1)
    order = np.argsort(-scores, kind="stable")[:size]
    return Edit("ranked", tuple(int(i) for i in order), f"the {size} rows nearest by BM25")


# ---------------------------------------------------------------- what is done


def open_case(run: Path, out: Path, reworded: str = "") -> Case:
    """`reworded`: a file of the failures in other words.

    Raises as `open_subject`, `open_prepared`, `read_failures`; MissingFileError: no finished trace there.
    """
    if not (run / LOCK).is_file():
        raise MissingFileError(f"{run} holds no finished trace; `uimjax trace --model ... --out {run}` makes one")
    values = read_yaml(run / LOCK).get("config", {})
    _language(values, run)
    config = parse(FailuresConfig, values, str(run / LOCK))
    if out.resolve() in (run.resolve(), Path(config.model).resolve()):
        raise OutputError(f"{out} holds what came in; choose another folder with --out")
    subject = open_subject(config)
    corpus = open_prepared(run / "corpus")
    read = lambda path: read_failures(path, subject.task, subject.tokenizer, config.length, config.measure)  # noqa: E731
    documents, names = corpus.metadata()["document"].to_numpy(), corpus.names()["id"].to_pylist()
    others = read(reworded) if reworded else None
    return Case(config, subject, corpus, read(config.queries), documents, names, others)


def plan(config: MendConfig) -> str | Unlearning | Private | steps.Recipe:
    """What the method's name stands for, with the config's choices. Raises UnknownNameError, UsageError."""
    if config.method not in (*forgetting.LOSSES, *TUNED):
        raise UnknownNameError("method", config.method, [*forgetting.LOSSES, *TUNED])
    if config.method == "dpo":
        raise UsageError("dpo wants another answer for every row to forget, which documents have not; take npo")
    if (config.method == "cda") != bool(config.swap):
        raise UsageError(f"method {config.method} and swap {list(config.swap)}: cda sets words of two groups in each "
                         "other's place, --swap he=she, and no other method does")  # fmt: skip
    pairs_of(config)
    if config.method == "newton":
        return config.method
    if config.method == "private":
        return Private(
            config.epsilon, clip=config.clip, steps=config.steps, batch_size=config.retain_size,
            together=config.retain_size, learning_rate=config.learning_rate,
        )  # fmt: skip
    if config.method in ("drop", "downweight"):
        return steps.Recipe(config.epochs, config.retain_size, config.learning_rate, clip=1.0, warmup=0.1)
    kept = forgetting.get(config.method).alpha > 0
    return Unlearning(
        config.method, gamma=config.gamma, steps=config.steps, heal_steps=config.heal_steps if kept else 0,
        learning_rate=config.learning_rate, batch_size=config.batch_size, retain_size=config.retain_size,
        most=config.most, lora=config.lora, include=config.include, retain="row" if config.method == "cda" else None,
    )  # fmt: skip


def pairs_of(config: MendConfig) -> list[tuple[str, str]]:
    """The words that change places. Raises UsageError: not a=b."""
    found = [tuple(its.split("=")) for its in config.swap]
    for its, pair in zip(config.swap, found, strict=True):
        if len(pair) != 2 or not all(word.strip() for word in pair):
            raise UsageError(f"--swap {its}: two words were wanted, he=she")
    return found  # type: ignore[return-value]  # of two words each


def mend(config: MendConfig, out: Path, progress: Progress = quiet) -> dict[str, Any]:
    """The whole: each arm with every seed, measured; the traced arm's first parameters saved under `out/model`.

    Raises: as `open_case`, `read_edit`, `plan`, `unlearn`, `fit` and `newton.remove`. OutputError: `out` is not ours.
    """
    how, run = plan(config), Path(config.run)
    case = open_case(run, out, config.reworded)
    traced = read_edit(Path(config.edit) if config.edit else run / EDIT, case)
    base.check_ours(out, CLEARED)
    make_folder(out)
    made_of = store.digest_tree(case.subject.params), traced.rows, config.model_dump(exclude={"run", "edit"})
    base.keep_or_clear(out, store.stage_key(*made_of, base.versions()), CLEARED, (DONE,))
    clean = _clean(config, case, out, traced)
    arms = [traced]
    if config.controls:
        blind = edit.random_edit(len(case.documents), len(traced.rows), config.seed)
        arms += [ranked_edit(case, len(traced.rows)), blind]
    rows = jax.tree.map(np.asarray, case.corpus.rows)
    before = _measured(case, case.subject.params, clean)
    jobs = [(made, seed) for made in arms for seed in range(config.seeds)]
    found: dict[str, list[dict[str, Any]]] = {}
    saved, again = "", {}
    for made, seed in progress(jobs, "mitigating", unit="edits"):
        if made.arm == "random":  # another draw for each seed
            made = edit.random_edit(len(case.documents), len(traced.rows), config.seed + seed)
        at = out / "steps" / f"{made.arm}-{seed}"
        params = _carried_out(case, rows, made, how, config, config.seed + seed, at)
        found.setdefault(made.arm, []).append(_measured(case, params, clean))
        if made.arm == "traced" and seed == 0:
            saved, again = _save(case, params, out), _relearned(case, rows, params, traced, config)
    document = {
        "method": config.method, "edit": {"rows": len(traced.rows), "why": traced.why}, "model": saved,
        "before": before, "after": found, "relearned": again, **_verdict(before, found),
    }  # fmt: skip
    document["says"] += remarks(before, found["traced"], again)
    if isinstance(how, Private):  # of each release; whoever gives out several adds them up
        document["privacy"] = store.read_json(out / "steps" / "traced-0.privacy.json")
    store.write_json(out / DONE, document | {"config": config.model_dump(mode="json")})
    return document


def _clean(config: MendConfig, case: Case, out: Path, traced: Edit) -> Any:
    """Rows whose loss tells the cost: held-out ones, or without any some of the corpus that are not edited."""
    files = config.retain or case.config.retain
    if files:
        columns = Columns(case.config.text_column, case.config.id_column, case.config.source_column)
        held = prepare(files, case.subject.tokenizer, out / "retain", length=case.config.length, columns=columns)
        return row.spread(held.rows, LOOKED)
    rest = np.setdiff1d(np.arange(len(case.documents)), traced.rows)
    return row.take(case.corpus.rows, rest[np.linspace(0, len(rest) - 1, min(LOOKED, len(rest))).round().astype(int)])


def _carried_out(
    case: Case, rows: Any, made: Edit, how: str | Unlearning | Private | steps.Recipe, config: MendConfig, seed: int,
    at: Path,
) -> Any:  # fmt: skip
    task, params = case.subject.task, case.subject.params
    if isinstance(how, str):
        return newton.remove(task, params, rows, made.rows, share=config.share, batch_size=config.batch_size).params
    if isinstance(how, Unlearning):
        hidden = _hidden(task) if "hidden" in how.needs else None
        others = counterfactuals(case, made, pairs_of(config)) if config.method == "cda" else None
        return unlearn(task, params, rows, made.rows, how, seed, others=others, hidden=hidden, folder=at).params
    if isinstance(how, Private):
        rest = row.take(rows, np.setdiff1d(np.arange(len(case.documents)), made.rows))
        made_of = fine_tune(task, params, rest, how, _secret(at.parent / f"{at.name}.seed"), folder=at)
        spent = {"epsilon": made_of.epsilon, "delta": made_of.delta, "noise": made_of.noise}
        store.write_json(at.parent / f"{at.name}.privacy.json", spent)
        return made_of.params
    weight = config.weight if config.method == "downweight" else 0.0
    return edit.apply_edit(task, params, rows, made, how, seed, weight=weight)


def _secret(path: Path) -> int:
    """Drawn once and kept for a run that is continued: privacy holds against whoever does not know it, and everybody
    knows 0."""
    if not path.exists():
        make_folder(path.parent)
        with atomic(path) as temporary:
            temporary.write_text(str(secrets.randbits(128)))
    return int(path.read_text())


def counterfactuals(case: Case, made: Edit, pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """The edit's rows with the words in each other's place, cut where they become too long.

    Raises:
        UsageError: no row of a traced edit holds any of the words.
    """
    texts = case.corpus.texts(made.rows)
    changed = swapped(texts, pairs)
    if made.arm == "traced" and changed == texts:
        words = " and ".join(f"{a}={b}" for a, b in pairs)
        raise UsageError(
            f"none of the {len(texts)} rows of the edit holds a word of {words}: nothing would change places"
        )
    like = row.take(case.corpus.rows, np.asarray(made.rows))
    found = {name: np.zeros_like(values) for name, values in like.items()}
    starts = case.corpus.metadata()["start"].take(list(made.rows)).to_pylist()
    for k, (text, start) in enumerate(zip(changed, starts, strict=True)):
        ids = case.subject.tokenizer.encode(text, add_special_tokens=start == 0).ids[: case.config.length]
        found["tokens"][k, : len(ids)], found["counted"][k, : len(ids)] = ids, 1
    return found


@functools.lru_cache(maxsize=4)
def _hidden(task: Task):
    """`[T, D]` of the last layer: a task's features are means over the tokens that count, here of one token each. The
    model is run once all the same, since only the mean depends on which."""

    def hidden(params: Any, example: Any) -> Any:
        alone = jnp.eye(len(example["tokens"]))
        return jax.vmap(lambda counted: task.features(params, example | {"counted": counted}))(alone)  # type: ignore[misc]

    return hidden


def _measured(case: Case, params: Any, clean: Any) -> dict[str, Any]:
    values = measured(params, case.failures, case.config.batch_size)
    others = case.reworded
    more = {} if others is None else {"reworded": measured(params, others, case.config.batch_size).tolist()}
    program = _losses(case.subject.task)
    parts = [program(params, b.rows)[: int(b.mask.sum())] for b in row.batches(clean, case.config.batch_size)]
    total = float(np.concatenate([np.asarray(part, np.float64) for part in parts]).sum())
    tokens = float(np.asarray(clean["counted"])[:, 1:].sum())
    return {"failures": values.tolist(), "clean_loss": total / max(tokens, 1)} | more


def _relearned(case: Case, rows: Any, params: Any, traced: Edit, config: MendConfig) -> dict[str, Any]:
    """The failures once the mended model has had a few steps on half of the edit's rows, and on as many others."""
    if not config.relearn:
        return {}
    how = Relearning(config.relearn, config.batch_size, config.learning_rate)
    rest = np.setdiff1d(np.arange(len(case.documents)), traced.rows)
    half = traced.rows[::2]
    others = np.random.default_rng([config.seed, 13]).choice(rest, min(len(half), len(rest)), replace=False)
    found = {}
    for name, ids in (("edited", half), ("others", others)):
        after = relearn(case.subject.task, params, rows, ids, how, config.seed)
        found[name] = measured(after, case.failures, case.config.batch_size).tolist()
    return {"steps": config.relearn, "failures": found}


def remarks(before: dict[str, Any], traced: Sequence[dict[str, Any]], again: dict[str, Any]) -> str:
    """What the verdict leaves open: whether the failure comes back by training on other rows, and in other words."""
    start, end = float(np.mean(before["failures"])), float(np.mean(traced[0]["failures"]))
    told = ""
    if again and end < start:
        back = {name: (float(np.mean(values)) - end) / (start - end) for name, values in again["failures"].items()}
        if back["others"] > BACK:
            told += (f"; hidden, not removed: {back['others']:.0%} of it comes back after {again['steps']} steps on "
                     "rows that have nothing to do with it")  # fmt: skip
        elif back["edited"] > BACK:
            told += f"; {again['steps']} steps on half of the edited rows bring {back['edited']:.0%} of it back"
    if "reworded" in before:
        moved = float(np.mean([np.mean(one["reworded"]) for one in traced]) - np.mean(before["reworded"]))
        asked = float(np.mean([np.mean(one["failures"]) for one in traced])) - start
        short = asked < 0 and moved > BACK * asked
        told += f"; in other words {'only ' if short else ''}by {moved:+.2f}"
    return told


@functools.lru_cache(maxsize=4)
def _losses(task: Task):
    return jax.jit(lambda params, rows: jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(rows))


def _verdict(before: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Change of the mean measurement by each arm, per seed; what may be said of it."""
    start = float(np.mean(before["failures"]))
    change = {arm: [float(np.mean(one["failures"])) - start for one in each] for arm, each in found.items()}
    cost = float(np.mean([one["clean_loss"] for one in found["traced"]])) / before["clean_loss"] - 1
    return {"change": change, "cost": cost, "says": _says(change, cost)}


def _says(change: dict[str, list[float]], cost: float) -> str:
    traced, others = change["traced"], {arm: values for arm, values in change.items() if arm != "traced"}
    if not others or min(map(len, change.values())) < 3:
        return f"the failures moved by {np.mean(traced):+.2f}; no verdict without controls and three seeds"
    if np.mean(traced) >= 0:
        return f"not fixed: the failures moved by {np.mean(traced):+.2f}"
    for arm, values in others.items():
        if max(traced) >= min(values):
            return f"no verdict: the {arm} rows move the failures by {np.mean(values):+.2f} too"
    if cost > 0.02:
        return f"not fixed: the loss on clean text rises by {cost:.1%}"
    return f"mended: the failures moved by {np.mean(traced):+.2f}, the loss on clean text by {cost:+.1%}"


def _save(case: Case, params: Any, out: Path) -> str:
    """As the model came: a checkpoint folder, or for a module of the reader's own an Orbax checkpoint."""
    at = out / "model"
    if case.subject.folder is None:
        checkpoint.save(at, 0, params)
    elif not (at / "config.json").exists():  # which is written last: a run that was stopped later has it
        shutil.rmtree(at, ignore_errors=True)
        pretrained.save(case.subject.folder, at, params)
    return str(at)
