"""The ladder of methods judged by retraining: LDS with its interval, cost and memory of each, on real data.

To reach, on two CPU cores (`met` says what was): EK-FAC at the default damping an LDS of at least 0.52 on Fashion-MNIST
(`fashion`: 50 random halves x 2 seeds, 100 queries), of the first of four trained models; smoothed metagradients on the
first 20 queries 0.65 with 10 masks and 0.70 with 30 (`--slow`); the whole ladder and the banks at most 15 minutes; no
method fails. `gpt`: a decoder on tinyshakespeare, 40 halves x 2 seeds. Retraining is "rebatched": the kept rows alone
are shuffled and cut into batches.

    UIMJAX_DATA=... python -m benchmarks.lds --json [--only fashion gpt] [--slow] [--quick]
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import lds_sets
from benchmarks.lds_sets import Judged
from benchmarks.timing import Peak, machine, report
from uimjax import rows as row
from uimjax.interpret import bank, check, judge, metagradient, methods
from uimjax.interpret.trajectory import Checkpoint, record

CHECKPOINTS = 6
MODELS, BY_MODEL = 4, ("kfac", "ekfac")  # what the chance of one training does to the score
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
    result: dict[str, Any] = {"machine": machine(), "quick": chosen.quick}
    for name in chosen.only:
        made = lds_sets.SETS[name](chosen.quick)
        with tempfile.TemporaryDirectory() as scratch:
            masks = (QUICK_MASKS if chosen.quick else MASKS) if chosen.slow else 0
            result[name] = judged(made, chosen.methods, masks, chosen.bank or Path(scratch), Path(scratch))
    report(result, chosen.json)


def judged(made: Judged, only: list[str] | None, masks: int, kept: Path, scratch: Path) -> dict[str, Any]:
    start, held = time.perf_counter(), (kept / "bank").exists()
    subsets = bank.subsets(row.count(made.data), made.subsets)
    truth = bank.train_bank(
        made.task, made.initial, made.data, made.recipe, subsets, made.measurement, made.queries, folder=kept / "bank"
    )
    banked = time.perf_counter() - start
    say(f"{truth.values[..., 0].size} models after {banked:.0f} s")
    agreement, ceiling = judge.noise_ceiling(truth)
    asked = check.Asked(*(getattr(made, name) for name in check.Asked._fields))
    runs = [record(made.task, made.initial(0), made.data, made.recipe, CHECKPOINTS, seed=0, folder=scratch / "train")]
    table = {name: one(name, asked, runs[0], truth) for name in only or names(made)}
    result: dict[str, Any] = {
        "parameters": sum(x.size for x in jax.tree.leaves(made.initial(0))),
        "rows": row.count(made.data), "queries": row.count(made.queries), "models": truth.values[..., 0].size,
        "protocol": truth.protocol, "agreement": round(agreement, 3), "ceiling": round(ceiling, 3),
        "bank_s": round(banked, 1), "methods": table, "total_s": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    for seed in range(1, MODELS):
        runs.append(record(made.task, made.initial(seed), made.data, made.recipe, 1, seed=seed))
    for name in BY_MODEL if only is None else ():
        found = [check.judged(name, asked, run[-1:], truth) for run in runs]
        result[f"{name}_by_model"] = [round(its.lds.value, 3) for its in found if its.lds]
        say(f"{name} of {MODELS} models: {result[f'{name}_by_model']}")
    met = {"all_scored": not any("error" in its for its in table.values())}
    if not held:
        met["quarter_of_an_hour"] = result["total_s"] <= 900
    if masks:
        result["smoothed"] = smoothed(made, truth, masks)
    if made.measurement is lds_sets.NLL:  # of `fashion`
        reached = {"ekfac": (table.get("ekfac", {}).get("lds"), 0.52)}
        curve = result.get("smoothed", {}).get("masks", {})
        reached |= {f"smoothed_{k}": (curve.get(k, {}).get("lds"), least) for k, least in ((10, 0.65), (30, 0.7))}
        met |= {what: value >= least for what, (value, least) in reached.items() if value is not None}
    return result | {"bank_was_held": held, "met": met}


def names(made: Judged) -> list[str]:
    unfit = {"retain_cos"}  # asks for rows to retain, and answers another question
    unfit |= {"bm25", "ngram"} if made.texts is None else set()
    assert made.task.outputs is not None
    logits = jax.eval_shape(made.task.outputs, made.initial(0), row.example_spec(made.data))
    unfit |= {"representer"} if logits.ndim > 1 else set()  # fits a softmax over the classes of rows, not of positions
    return [name for name in (*methods.PRESETS, *methods.BASELINES) if name not in unfit]


def one(name: str, asked: check.Asked, run: list[Checkpoint], truth: bank.Bank) -> dict[str, Any]:
    peak = Peak()
    found = check.judged(name, asked, run, truth)
    say(f"{name:16} {found.seconds:6.1f} s  {found.lds or found.error}")
    if found.lds is None:
        return {"error": found.error}
    return {
        "lds": round(found.lds.value, 3), "low": round(found.lds.low, 3), "high": round(found.lds.high, 3),
        "seconds": round(found.seconds, 1), "peak_mib": round(peak.mib()), "how": found.said,
    }  # fmt: skip


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
            say(f"{found.masks:3} masks {time.perf_counter() - start:6.0f} s  {its}")
            curve[found.masks] = {
                "lds": round(its.value, 3), "low": round(its.low, 3), "high": round(its.high, 3),
                "seconds": round(time.perf_counter() - start, 1),
                "metasmoothness": round(float(found.smoothness.mean()), 3) if found.masks > 1 else None,
                "standard_error": round(float(found.error.mean()), 2) if found.masks > 1 else None,
            }  # fmt: skip
    return {"queries": count, "ceiling": round(judge.noise_ceiling(some)[1], 3), "masks": curve}


if __name__ == "__main__":
    main()
