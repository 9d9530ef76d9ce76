"""Which source did a skill come from? Influence by source against trainings that leave a source out.

Set-up: a Llama-like decoder (4 layers of 128, 1.0M parameters) is trained from scratch, 3 epochs, on 280 documents of
`lm_srcmix` (40 a source, 2,441 characters each), and again without each of the seven sources, all of that with three
seeds. The measurement is the loss on 10 held-out documents of a source.

Claims: a method's total of a source (of one model, and the mean of three), for the loss on another, ranks the 49 true
changes (mean over seeds) as they are:
Spearman with an interval (sources and targets drawn again), of all pairs and of those between two different sources;
beside it the same for words (BM25, n-grams) and for one seed's changes against the others' (the ceiling).

Needs UIMJAX_DATA. Everything is kept in --folder. `--quick`: a tenth of it, one seed; its figures mean nothing.

Run: UIMJAX_DATA=... python -m benchmarks.sources --folder runs/sources --json
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import spearmanr

import uimjax as uj
from benchmarks import timing
from benchmarks.srcmix import LENGTH, Study, sources, study
from uimjax import training
from uimjax.corpora.preparing import prepare
from uimjax.corpora.texts import Columns
from uimjax.curvature import Kronecker, Source
from uimjax.interpret import lexical, trace
from uimjax.interpret.base import Method
from uimjax.progress import shown

PER, HELD, CHARACTERS = 40, 10, 2441
RECIPE = uj.Recipe(epochs=3, batch_size=16, learning_rate=4e-3, warmup=0.05, clip=1.0, beta2=0.95, final=0.05)
INDEXED = ("grad_dot", "grad_cos", "logra", "trackstar")
WHOLE = {"ekfac": Method("ekfac", curvature=Kronecker("ekfac", Source("fisher", samples=2)), normalize="none")}


class Setting(NamedTuple):
    """`source` `[N]` of each training row, `target` `[M]` of each held-out row, by number of `names`."""

    its: Study
    names: list[str]
    source: np.ndarray
    held: Any
    target: np.ndarray
    texts: dict[str, list[str]]  # held-out documents of each source


def setting(data: Path, folder: Path, quick: bool) -> Setting:
    per, held = (4, 2) if quick else (PER, HELD)
    every = sources(data, per + held, CHARACTERS)
    names = list(every)
    documents = [line for each in every.values() for line in each[:per]]
    order = np.random.default_rng(1).permutation(len(documents))
    its = study(folder, [documents[k] for k in order], layers=4, width=128)
    path = folder / "held.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for each in every.values() for line in each[per:]))
    assert its.model.tokenizer is not None
    out = prepare([path], its.model.tokenizer, folder / "held", length=LENGTH, columns=Columns(id="id"))
    numbers = lambda corpus: np.array([names.index(s) for s in corpus.metadata()["source"].to_pylist()])  # noqa: E731  # twice
    texts = {name: [line["text"] for line in each[per:]] for name, each in every.items()}
    return Setting(its, names, numbers(its.corpus), out.rows, numbers(out), texts)


def losses(at: Setting, params: Any) -> np.ndarray:
    """`[T]`: nats a token on the held-out documents of each source."""
    its = at.its.model.task
    each = jax.jit(jax.vmap(lambda row: its.loss(params, row).sum()))(jax.tree.map(np.asarray, at.held))
    counted = np.asarray(at.held["counted"])[:, 1:].sum(1)
    return np.array([each[at.target == t].sum() / counted[at.target == t].sum() for t in range(len(at.names))])


def trained(at: Setting, recipe: uj.Recipe, without: int | None) -> Any:
    name = f"seed{recipe.seed}-" + ("all" if without is None else f"without-{at.names[without]}")
    model = uj.initial(at.its.folder / "start", recipe.seed)
    weights = np.ones(len(at.source), np.float32) if without is None else (at.source != without).astype(np.float32)
    found = training.fit(
        at.its.model.task, model.params, at.its.rows, recipe, weights=weights, folder=at.its.folder / name,
        progress=shown,
    )  # fmt: skip
    print(f"{name}: {found.loss[-1]:.1f} nats a row", file=sys.stderr, flush=True)
    return found.params


def truth(at: Setting, recipe: uj.Recipe, seeds: int) -> tuple[np.ndarray, list[Any]]:
    """(change of the loss on target t without source s `[seeds, S, T]`, the models of all sources)."""
    changes, models = [], []
    for seed in range(seeds):
        its = dataclasses.replace(recipe, seed=seed)
        whole = trained(at, its, None)
        models.append(whole)
        before = losses(at, whole)
        changes.append([losses(at, trained(at, its, s)) - before for s in range(len(at.names))])
    return np.array(changes), models


# ---------------------------------------------------------------- predictions


def added(at: Setting, scores: np.ndarray) -> np.ndarray:
    """`[N, T]` of rows to `[S, T]`, minus the totals: what leaving a source out is predicted to do."""
    return -np.stack([scores[at.source == s].sum(0) for s in range(len(at.names))])


def predicted(at: Setting, params: Any, folder: Path, whole: bool) -> dict[str, np.ndarray]:
    """Of every method `[S, T]`; `whole`: of whole gradients too, which take longest."""
    task = at.its.model.task
    measurement = uj.Measurement("loss", lambda p, rows: jax.vmap(lambda row: task.loss(p, row).sum())(rows).sum())
    most = int(np.bincount(at.target).max())

    def together(x: np.ndarray) -> np.ndarray:  # the rows of a target are one question; those that are missing are 0
        parts = [np.asarray(x)[at.target == t] for t in range(len(at.names))]
        return np.stack([np.pad(part, [(0, most - len(part)), (0, 0)]) for part in parts])

    queries = jax.tree.map(together, at.held)
    index = uj.build_index(task, params, at.its.rows, folder, progress=shown)
    question = trace.question(index, task, params, at.its.rows, measurement, queries, each=True)
    out = {name: trace.score_all(trace.by(question, name)).values for name in INDEXED}
    for name, method in WHOLE.items() if whole else ():
        kept = folder.with_name(f"{folder.name}-curvature")
        its = (task, params, at.its.rows, measurement, queries, method)
        out[name] = uj.score(*its, each=True, batch_size=64, folder=kept).values
    return {name: added(at, values) for name, values in out.items()}


def words(at: Setting) -> dict[str, np.ndarray]:
    """Mean likeness of a source's documents to the held-out documents of another, `[S, T]`."""
    documents = [line["text"] for line in at.its.documents]
    source = np.array([at.names.index(line["source"]) for line in at.its.documents])
    queries = [text for name in at.names for text in at.texts[name]]
    target = np.repeat(np.arange(len(at.names)), [len(at.texts[name]) for name in at.names])
    out = {}
    for name, found in {"bm25": lexical.bm25(documents, queries), "ngram": lexical.ngram(documents, queries)}.items():
        pairs = [
            [found[source == s][:, target == t].mean() for t in range(len(at.names))] for s in range(len(at.names))
        ]
        out[name] = np.array(pairs)
    return out


# ---------------------------------------------------------------- judgement


def agreement(found: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Spearman of all pairs and of those of different sources, and of each target's sources, the mean."""
    apart, rng, count = ~np.eye(len(true), dtype=bool), np.random.default_rng(0), len(true)

    def rank(a: np.ndarray, b: np.ndarray) -> float:
        found: Any = spearmanr(a, b)
        return float(found.statistic)

    draws = []
    for _ in range(1000):
        s, t = rng.integers(count, size=(2, count))
        keep = apart[np.ix_(s, t)]
        if len(np.unique(true[np.ix_(s, t)][keep])) > 2:
            draws.append(rank(found[np.ix_(s, t)][keep], true[np.ix_(s, t)][keep]))
    columns = [rank(found[:, t], true[:, t]) for t in range(count)]
    return {
        "all_pairs": rank(found.ravel(), true.ravel()), "different_sources": rank(found[apart], true[apart]),
        "different_95": [round(float(x), 3) for x in np.quantile(draws, [0.025, 0.975])],
        "of_each_target": float(np.mean(columns)),
    }  # fmt: skip


def ceiling(changes: np.ndarray) -> dict[str, Any]:
    """One seed's changes as a prediction of the others' mean; the mean over seeds."""
    if len(changes) < 2:
        return {}
    each = [agreement(changes[k], np.delete(changes, k, 0).mean(0)) for k in range(len(changes))]
    return {key: float(np.mean([x[key] for x in each])) for key in each[0] if key != "different_95"}


def main() -> None:
    args = timing.arguments(__doc__ or "", folder="runs/sources")
    folder = Path(args.folder) / ("quick" if args.quick else "")
    at = setting(Path(os.environ["UIMJAX_DATA"]), folder, args.quick)
    seeds = 1 if args.quick else 3
    changes, models = truth(at, RECIPE, seeds)
    true = changes.mean(0)
    each = [predicted(at, params, folder / f"index-{seed}", not seed) for seed, params in enumerate(models)]
    means = {f"{name}, mean of {seeds} models": np.mean([one[name] for one in each], 0) for name in INDEXED}
    found = each[0] | (means if seeds > 1 else {}) | words(at)
    listed = {name: agreement(values, true) for name, values in found.items()}
    result = {
        "tokens": at.its.corpus.manifest["tokens"], "sources": at.names, "seeds": seeds,
        "change": np.round(true, 3).tolist(), "seed_spread": float(changes.std(0).mean()),
        "methods": dict(sorted(listed.items(), key=lambda item: -item[1]["different_sources"])),
        "ceiling": ceiling(changes), **timing.machine(),
    }  # fmt: skip
    return timing.report(result, args.json)


if __name__ == "__main__":
    main()
