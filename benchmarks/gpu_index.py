"""An index of a decoder's gradients on one accelerator: built, asked, and planned before by its published figures.

Claims: a decoder of 160M and one of 1B parameters (random weights, bfloat16) go from rows to an index and to an answer
on one GPU; the answer is that of the stored rows in float64; what `plan_index` says with the chip's name, without
computing a gradient, is within a factor of two of what building takes; what it says after timing a few batches, within
a quarter. Each of the three is a process of its own. `--quick` takes a tiny network that runs anywhere, against a
chip's figures that then mean nothing.

Run: python -m benchmarks.gpu_index --json [--only gpt_160m] > gpu_index-<card>.json
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import timing
from benchmarks.gpu_suite import decoder
from uimjax import store
from uimjax.interpret import indexing, trace
from uimjax.interpret.plan_index import plan_index
from uimjax.machine import CHIPS
from uimjax.task import Measurement, Task

QUERIES, K = 32, 20


class Job(NamedTuple):
    """A network, how many rows of it, and the choices of its index."""

    task: Task
    params: Any
    rows: np.ndarray
    choices: dict[str, Any]
    shape: str


def job(layers: int, width: int, heads: int, vocabulary: int, length: int, batch: int, count: int) -> Job:
    run = decoder(layers, width, heads, vocabulary, length, batch)
    rows = np.random.default_rng(1).integers(vocabulary, size=(count, length + 1)).astype(np.int32)
    choices = {"batch_size": batch, "shard_rows": min(count // 4, 1024), "coding": "int8"}
    return Job(run.task, run.params, rows, choices, f"{run.shape}, {count} rows")


def timed(call: Callable[[], Any], what: str) -> tuple[float, Any]:
    start = time.perf_counter()
    out = call()
    taken = time.perf_counter() - start
    print(f"{what}: {taken:.1f} s", file=sys.stderr, flush=True)
    return taken, out


def planned(its: Job, folder: Path, chip: str | None) -> dict[str, Any]:
    """What a plan says, with its parts; `took`: the seconds of planning."""
    call = lambda: plan_index(its.task, its.params, its.rows, folder, chip=chip, **its.choices)  # noqa: E731
    took, plan = timed(call, f"a plan of {chip or 'this machine'}")
    parts = {name: round(value, 2) for name, value in plan.seconds.items()}
    device = round(plan.device_bytes / 2**20)
    return {"seconds": round(plan.total, 2), "took": round(took, 2), "device_mib": device, "parts": parts}


def built(its: Job, folder: Path) -> dict[str, Any]:
    """Seconds that building took, compiling included; tokens a second of a shard once all is compiled; an answer."""
    asked = (its.task, its.params, its.rows, folder)
    seconds, _ = timed(lambda: indexing.build_index(*asked, **its.choices), "building")
    stats = jax.devices()[0].memory_stats() or {}
    maker = indexing.made(*asked, sketch=None, target_recall=None, mesh=None, **its.choices)
    some = np.arange(its.choices["shard_rows"])
    gradients_s, made = timed(lambda: maker.gradients(its.rows, some), "gradients of a shard, compiling included")
    gradients_s, made = timed(lambda: maker.gradients(its.rows, some), "gradients of a shard")
    coding_s, _ = timed(lambda: maker.coded(0, *made), "coding of a shard")
    tokens = len(some) * (its.rows.shape[1] - 1)
    return {
        "shape": its.shape,
        "parameters": sum(x.size for x in jax.tree.leaves(its.params)),
        "width": maker.described["width"],
        "seconds": round(seconds, 2),
        "peak_device_mib": round(stats.get("peak_bytes_in_use", 0) / 2**20),
        "gradient_tokens_per_s": round(tokens / gradients_s),
        "tokens_per_s": round(tokens / (gradients_s + coding_s)),
        "trace": ask(its, folder),
    }


def ask(its: Job, folder: Path) -> dict[str, Any]:
    """Seconds of a question, the first with what it compiles; its answer against the stored rows in float64."""
    queries = its.rows[:: len(its.rows) // QUERIES][:QUERIES]
    measurement = Measurement("nll", its.task.loss)
    asked = (folder, its.task, its.params, its.rows[:2], measurement, queries)
    cold, _ = timed(lambda: trace.trace(*asked, k=K, each=True), "trace, cold")
    warm, found = timed(lambda: trace.trace(*asked, k=K, each=True), "trace, warm")
    question = trace.ask(*asked, "grad_cos", True)
    pass_s, _ = timed(lambda: trace.top(question, K), "the pass over the index")
    index = question.held
    whole = np.concatenate([np.asarray(store.unpack(index.coding, index.shapes, s.vectors)) for s in index.shards()])
    scores = np.asarray(question.directions, np.float64) @ whole.T.astype(np.float64)
    best = -np.sort(-scores, axis=1)[:, :K]
    np.testing.assert_allclose(found.proponent_scores, best, rtol=2e-3, atol=2e-4)
    own = np.arange(len(queries)) * (len(its.rows) // QUERIES)  # learning a row lowers its nll: an opponent
    return {
        "cold_s": round(cold, 2), "warm_s": round(warm, 2), "pass_s": round(pass_s, 3),
        "itself_first": float((found.opponents[:, 0] == own).mean()),
    }  # fmt: skip


JOBS = {
    "gpt_160m": lambda: job(12, 768, 12, 50304, 512, 32, 8192),
    "decoder_1b": lambda: job(18, 2048, 16, 50304, 1024, 8, 1024),
    "tiny": lambda: job(2, 32, 2, 64, 16, 4, 64),
}
STEPS: dict[str, Callable[[Job, Path, str], dict[str, Any]]] = {
    "of_chip": planned,
    "measured": lambda its, folder, _: planned(its, folder, None),
    "built": lambda its, folder, _: built(its, folder),
}


def child(name: str, step: str) -> None:
    """One step in this process: one JSON object."""
    kind = jax.devices()[0].device_kind.lower()
    chip = next((name for name in CHIPS if name.split("-")[0] in kind), "h200")
    with tempfile.TemporaryDirectory() as at:
        print(json.dumps(STEPS[step](JOBS[name](), Path(at) / "index", chip)))


def in_process(name: str, step: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu_index", "--child", name, step]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if "--child" in sys.argv:
        return child(*sys.argv[2:])
    args = timing.arguments(__doc__ or "", only=["gpt_160m", "decoder_1b"])
    result: dict[str, Any] = {}
    for name in ["tiny"] if args.quick else args.only or ["gpt_160m", "decoder_1b"]:
        result[name] = its = {step: in_process(name, step) for step in STEPS}
        for step, most in (("of_chip", 2.0), ("measured", 1.25)):
            over = its[step]["seconds"] / its["built"]["seconds"]
            its[step] |= {"over_taken": round(over, 2), "met": 1 / most <= over <= most}
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return timing.report(result | {"commit": done.stdout.strip(), **timing.machine()}, args.json)


if __name__ == "__main__":
    main()
