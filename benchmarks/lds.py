"""The ladder of methods judged by retraining: LDS with its interval, cost and memory of each, on real data.

Claims, on two CPU cores: EK-FAC at the default damping reaches an LDS of at least 0.52 on Fashion-MNIST (`fashion`: 50
random halves x 2 seeds, 100 queries); smoothed metagradients on the first 20 queries 0.65 with 10 masks and 0.70 with
30 (`--slow`); the whole ladder and the banks take at most 15 minutes; no method fails. `gpt`: a decoder on
tinyshakespeare, 40 halves x 2 seeds. Retraining is "rebatched": the kept rows alone are shuffled and cut into batches.

    UIMJAX_DATA=... python -m benchmarks.lds --json [--only fashion gpt] [--slow] [--quick]
"""

import argparse
import dataclasses
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import lds_sets
from benchmarks.lds_sets import Judged
from benchmarks.timing import Peak, machine, report
from uimjax import rows as row
from uimjax import steps, training
from uimjax.errors import UimError
from uimjax.interpret import bank, judge, metagradient, methods
from uimjax.interpret.trajectory import Checkpoint

SKIPPED = ("retain_cos",)  # asks for held-out rows to keep, and answers another question
CHECKPOINTS = 6
MASKS, QUICK_MASKS, SLOW_QUERIES = 30, 2, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="small networks, few models: does it run at all")
    parser.add_argument("--slow", action="store_true", help="smoothed metagradients as well (about 30 minutes)")
    parser.add_argument("--only", nargs="+", choices=lds_sets.SETS, default=list(lds_sets.SETS))
    parser.add_argument("--methods", nargs="+", help="these methods alone")
    parser.add_argument("--bank", type=Path, help="keep the retrained models' measurements in this folder")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"machine": machine()}
    for name in chosen.only:
        made = lds_sets.SETS[name](chosen.quick)
        with tempfile.TemporaryDirectory() as scratch:
            masks = (QUICK_MASKS if chosen.quick else MASKS) if chosen.slow else 0
            result[name] = judged(made, chosen.methods, masks, chosen.bank or Path(scratch), Path(scratch))
    report(result, chosen.json)


def judged(made: Judged, only: list[str] | None, masks: int, kept: Path, scratch: Path) -> dict[str, Any]:
    start = time.perf_counter()
    subsets = bank.subsets(row.count(made.data), made.subsets)
    truth = bank.train_bank(
        made.task, made.initial, made.data, made.recipe, subsets, made.measurement, made.queries, folder=kept / "bank"
    )
    banked = time.perf_counter() - start
    print(f"{truth.values[..., 0].size} models after {banked:.0f} s", file=sys.stderr, flush=True)
    agreement, ceiling = judge.noise_ceiling(truth)
    run = trained(made, scratch)
    table = {}
    for name in only or [*methods.PRESETS, *methods.BASELINES]:
        if name in SKIPPED or (name in ("bm25", "ngram") and made.texts is None):
            continue
        table[name] = one(name, made, run, truth)
    result = {
        "rows": row.count(made.data), "queries": row.count(made.queries), "models": truth.values[..., 0].size,
        "protocol": truth.protocol, "agreement": round(agreement, 3), "ceiling": round(ceiling, 3),
        "bank_s": round(banked, 1), "methods": table, "total_s": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    return result | ({"smoothed": smoothed(made, truth, masks)} if masks else {})


def trained(made: Judged, scratch: Path) -> list[Checkpoint]:
    """A training on all rows, as seed 0's models are trained, with checkpoints along the way."""
    recipe, params = made.recipe, made.initial(0)
    epochs = sorted({*training.spread(recipe.epochs, min(CHECKPOINTS, recipe.epochs) - 1), recipe.epochs})
    count = row.count(made.data)
    # the same order of rows as a bank's model: the key of the seed
    training.fit(made.task, params, made.data, recipe, folder=scratch / "train", snapshots=epochs)
    per, peak = recipe.steps_per_epoch(count), recipe.learning_rate
    momentum = 1 - recipe.momentum if recipe.optimizer == "sgd" else 1.0
    run = []
    for before, epoch in zip([0, *epochs], epochs, strict=False):
        rate = peak * steps.rate(recipe, (before + epoch) / 2) / momentum
        state = training.snapshot(scratch / "train", params, epoch)
        moments = second_moments(made, state) if recipe.optimizer == "adamw" else None
        run.append(Checkpoint(state, rate, per * (epoch - before), moments))
    return run


def second_moments(made: Judged, params: Any) -> Any:
    """Mean squared batch gradients at a checkpoint, which is what Adam's moments average."""

    def squared(params: Any, rows: Any) -> Any:
        gradient = jax.grad(lambda p: jax.vmap(lambda r: jnp.sum(made.task.loss(p, r)))(rows).mean())(params)
        return jax.tree.map(jnp.square, gradient)

    program = jax.jit(squared)
    found = [program(params, b.rows) for b in row.batches(made.data, made.recipe.batch_size) if b.mask.all()]
    return jax.tree.map(lambda *x: sum(x) / len(x), *found)


def one(name: str, made: Judged, run: list[Checkpoint], truth: bank.Bank) -> dict[str, Any]:
    start, peak = time.perf_counter(), Peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            if name == "less" and run[-1].optimizer is None:
                run = [c._replace(optimizer=second_moments(made, c.params)) for c in run]
            found = methods.score(
                made.task, run, made.data, made.measurement, made.queries, name, each=True, texts=made.texts
            )
    except UimError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    taken, its = time.perf_counter() - start, judge.lds(found.values, truth)
    print(f"{name:16} {taken:6.1f} s  {its}", file=sys.stderr, flush=True)
    return {
        "lds": round(its.value, 3), "low": round(its.low, 3), "high": round(its.high, 3), "seconds": round(taken, 1),
        "peak_mib": round(peak.mib()), "how": found.method,
    }  # fmt: skip


def smoothed(made: Judged, truth: bank.Bank, masks: int) -> dict[str, Any]:
    """The cost curve of smoothed metagradients on the first queries: masks other than the bank's, seeds other."""
    few = row.take(made.queries, np.arange(min(SLOW_QUERIES, row.count(made.queries))))
    count = row.count(few)
    some = truth._replace(values=truth.values[:, :, :count])
    recipe = dataclasses.replace(made.recipe, seed=1000)
    start, curve = time.perf_counter(), {}
    for found in metagradient.smoothed(
        made.task, made.initial, made.data, recipe, made.measurement, few, masks=masks, seed=99
    ):
        if found.masks in (1, 2, 5, 10, 20, 30):
            its = judge.lds(found.values, some)
            print(f"{found.masks:3} masks {time.perf_counter() - start:6.0f} s  {its}", file=sys.stderr, flush=True)
            curve[found.masks] = {
                "lds": round(its.value, 3), "low": round(its.low, 3), "high": round(its.high, 3),
                "seconds": round(time.perf_counter() - start, 1), "error": float(found.error.mean()),
            }  # fmt: skip
    return {"queries": count, "ceiling": round(judge.noise_ceiling(some)[1], 3), "masks": curve}


if __name__ == "__main__":
    main()
