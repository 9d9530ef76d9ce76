"""Which document did the model learn a sentence from? Tracing of memorised passages, beside words and representations.

Set-up: a Llama-like decoder (4 layers of 128, 1.0M parameters, byte-level BPE of 2,048) is trained from scratch, 40
epochs, on 105 documents of `lm_srcmix` (15 a source, cut to the passages' mean length) and the 130 fictional passages
of `fact_fictional_knowledge`, each once. The failures are the memorisation probes: the beginning of a sentence of a
passage, and the words that follow it there.

Claims: the model answers the probes (the share of completions that greedy decoding gives word for word, with the model
that never saw them beside it). Of those it answers, each method ranks all 235 documents (of rows, a document by its
best; words are compared by document), and finds the passage: recall@1, @10, the mean reciprocal rank with an interval
over passages. Then a method's first document for one answered probe each of `ASKED` passages is taken out, the model
is trained again, and log p of those completions falls, beside as many random documents.

Needs UIMJAX_DATA. Everything is kept in --folder: what was trained is not trained again. `--quick`: two epochs of a
tenth of the documents, to see that it runs; its figures mean nothing.

Run: UIMJAX_DATA=... python -m benchmarks.memorization --folder runs/memorization --json
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import uimjax as uj
from benchmarks import timing
from benchmarks.srcmix import LENGTH, Line, Study, facts, sources, study
from uimjax import training
from uimjax.answers.failures import Failures, read_failures
from uimjax.curvature import Kronecker, Source
from uimjax.interpret import lexical, trace
from uimjax.interpret.base import Method
from uimjax.progress import shown

PER = 15  # documents of a source
PROMPT = 280  # the last characters of a probe: a row has room for them and for the completion
RECIPE = uj.Recipe(
    epochs=40, batch_size=16, learning_rate=4e-3, warmup=0.05, clip=1.0, beta2=0.95, final=0.05, weight_decay=0.01
)
INDEXED = ("grad_dot", "grad_cos", "logra", "trackstar")  # asked of one sketched index
CURVATURE = Kronecker("ekfac", Source("fisher", samples=2))  # the default, sixteen, takes eight times as long
WHOLE = {  # of whole gradients
    "ekfac": Method("ekfac", curvature=CURVATURE, normalize="none"),
    "relatif": Method("relatif", curvature=CURVATURE, normalize="self"),
}
WORDS = ("bm25", "ngram")
FIXED = "relatif"  # what `uimjax trace` takes for a model of this size, fixed before any truth is read
REMOVED = (FIXED, "bm25", "rep_sim", "random")
ASKED = 40  # passages whose first document is taken out


def corpus(data: Path, folder: Path, quick: bool) -> tuple[Study, list[Line]]:
    """(the study, its passages)."""
    passages = facts(data)[: 13 if quick else None]
    length = round(float(np.mean([len(its["train_context"]) for its in passages])))
    documents = [line for each in sources(data, 4 if quick else PER, length).values() for line in each]
    documents += [{"id": f"passage-{k}", "source": "passages", "text": p["train_context"]}
                  for k, p in enumerate(passages)]  # fmt: skip
    order = np.random.default_rng(1).permutation(len(documents))
    return study(folder, [documents[k] for k in order], layers=4, width=128), passages


def trained(its: Study, recipe: uj.Recipe, name: str, without: set[int]) -> Any:
    """Parameters of a training without some documents; kept."""
    weights = ~np.isin(its.owner, list(without))
    started = time.perf_counter()
    found = training.fit(
        its.model.task, its.model.params, its.rows, recipe, weights=weights.astype(np.float32),
        folder=its.folder / name, save_every=5, progress=shown,
    )  # fmt: skip
    print(
        f"{name}: loss {found.loss[-1]:.1f} a row, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True
    )
    return found.params


def probes(its: Study, passages: list[Line], name: str, keep: Any = None) -> tuple[Failures, np.ndarray]:
    """(memorisation probes as failures, number of the passage's document), all or those to `keep`."""
    places = {line["id"]: number for number, line in enumerate(its.documents)}
    lines, owner = [], []
    for k, passage in enumerate(passages):
        for prompt, target in zip(passage["mem_input"], passage["mem_target"], strict=True):
            lines.append({"prompt": prompt[-PROMPT:], "bad": f" {target}"})
            owner.append(places[f"passage-{k}"])
    kept = range(len(lines)) if keep is None else keep
    path = its.folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(lines[k]) + "\n" for k in kept))
    return read_failures(path, its.model.task, need(its), LENGTH), np.asarray(owner)[list(kept)]


def need(its: Study) -> Any:
    assert its.model.tokenizer is not None
    return its.model.tokenizer


def answered(its: Study, params: Any, failures: Failures) -> np.ndarray:
    """`[Q]`: does greedy decoding give the completion, word for word?"""

    def right(row: Any) -> Any:
        assert its.model.task.outputs is not None
        given = its.model.task.outputs(params, row).argmax(-1)[:-1] == row["tokens"][1:]
        return (given | (row["counted"][1:] == 0)).all()

    return np.asarray(jax.jit(jax.vmap(right))(failures.rows["bad"]))


def log_p(params: Any, failures: Failures) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda row: failures.measurement.fun(params, row)))(failures.rows))


# ---------------------------------------------------------------- who finds the passage?


def by_document(its: Study, rows: np.ndarray) -> np.ndarray:
    """`[N, Q]` of rows to `[documents, Q]`, by the best row."""
    best = np.full((len(its.documents), rows.shape[1]), -np.inf)
    np.maximum.at(best, its.owner, rows)
    return best


def scores(its: Study, params: Any, failures: Failures) -> dict[str, np.ndarray]:
    """Of every method `[documents, Q]`."""
    task, asked = its.model.task, (failures.measurement, failures.rows)
    texts = [line["text"] for line in its.documents], [line["prompt"] + line["bad"] for line in failures.lines]
    found = {"bm25": lexical.bm25(*texts), "ngram": lexical.ngram(*texts)}
    rng = np.random.default_rng(2)
    found["random"] = rng.normal(size=found["bm25"].shape)
    index = uj.build_index(task, params, its.rows, its.folder / "index", progress=shown)
    question = trace.question(index, task, params, its.rows, *asked, each=True)
    for name in INDEXED:
        found[name] = by_document(its, trace.score_all(trace.by(question, name)).values)
    plain = jax.tree.map(lambda x: np.asarray(x), failures.rows["bad"])
    similar = uj.score(task, params, its.rows, failures.measurement, plain, "rep_sim", each=True)
    found["rep_sim"] = by_document(its, similar.values)
    for name, method in WHOLE.items():
        folder = its.folder / "curvature"
        made = uj.score(task, params, its.rows, *asked, method, each=True, batch_size=64, folder=folder)
        found[name] = by_document(its, made.values)
    return found


def ranks(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """`[Q]`, from 1; documents with the same score share the mean of their ranks."""
    own = values[owner, np.arange(len(owner))]
    return 1 + (values > own).sum(0) + ((values == own).sum(0) - 1) / 2


def table(found: dict[str, np.ndarray], owner: np.ndarray) -> dict[str, Any]:
    """Recall and mean reciprocal rank, with the 95% interval of the latter over passages drawn again."""
    rng, groups = np.random.default_rng(3), [np.flatnonzero(owner == k) for k in np.unique(owner)]
    draws = [np.concatenate([groups[k] for k in rng.integers(len(groups), size=len(groups))]) for _ in range(1000)]
    out = {}
    for name, values in found.items():
        rank = ranks(values, owner)
        interval = np.quantile([(1 / rank[draw]).mean() for draw in draws], [0.025, 0.975])
        out[name] = {
            "recall_1": float((rank <= 1).mean()), "recall_10": float((rank <= 10).mean()),
            "mrr": float((1 / rank).mean()), "mrr_95": [round(float(x), 4) for x in interval],
        }  # fmt: skip
    return dict(sorted(out.items(), key=lambda item: -item[1]["mrr"]))


# ---------------------------------------------------------------- do the found documents matter?


def removal(its: Study, recipe: uj.Recipe, params: Any, failures: Failures, owner: np.ndarray, found: Any):
    """Change of log p of one completion a passage when its first documents are taken out, by each method."""
    rng = np.random.default_rng(4)
    firsts = [int(np.flatnonzero(owner == k)[0]) for k in rng.permutation(np.unique(owner))[:ASKED]]
    before, out = log_p(params, failures)[firsts], {}
    named = {name: {int(found[name][:, q].argmax()) for q in firsts} for name in REMOVED}
    named["random"] = set(map(int, rng.choice(len(its.documents), len(named[FIXED]), replace=False)))
    for name, documents in named.items():
        again = trained(its, recipe, f"without-{name}", documents)
        change = log_p(again, failures)[firsts] - before
        interval = np.quantile(change[rng.integers(len(change), size=(1000, len(change)))].mean(1), [0.025, 0.975])
        out[name] = {
            "documents": len(documents), "true_among_them": len(documents & {int(owner[q]) for q in firsts}),
            "change_of_log_p": float(change.mean()), "change_95": [round(float(x), 2) for x in interval],
            "still_answered": float(answered(its, again, failures)[firsts].mean()),
        }  # fmt: skip
    return out


def main() -> None:
    args = timing.arguments(__doc__ or "", folder="runs/memorization")
    data, folder = Path(os.environ["UIMJAX_DATA"]), Path(args.folder)
    recipe = dataclasses.replace(RECIPE, epochs=2) if args.quick else RECIPE
    its, passages = corpus(data, folder / "quick" if args.quick else folder, args.quick)
    params = trained(its, recipe, "trained", set())
    every, owner = probes(its, passages, "probes")
    right, never = answered(its, params, every), answered(its, its.model.params, every)
    keep = np.flatnonzero(right) if right.any() else np.arange(10)
    failures, owner = probes(its, passages, "answered", keep)
    found = scores(its, params, failures)
    listed = table(found, owner)
    result = {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "tokens": its.corpus.manifest["tokens"], "rows": its.corpus.manifest["rows"], "epochs": recipe.epochs,
        "documents": len(its.documents), "probes": len(right), "answered": float(right.mean()),
        "answered_untrained": float(never.mean()), "methods": listed,
        "removal": removal(its, recipe, params, failures, owner, found), **timing.machine(),
    }  # fmt: skip
    return timing.report(result, args.json)


if __name__ == "__main__":
    main()
