"""What a plan says against what the job then takes: each in a process of its own, on five jobs.

Claim: wall time within 25%, memory of the process and bytes on disk within 15%. The plan does a few seconds of the
work; nothing in it is fitted to these jobs. The rows are random: what they hold changes no cost.

Run: python -m benchmarks.plan --json
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import networks, timing
from uimjax import machine, training
from uimjax.interpret import bank, indexing, trace
from uimjax.interpret.plan_index import plan_index, plan_trace
from uimjax.interpret.plan_training import plan_bank, plan_fit
from uimjax.sketch import Sketch
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task

SHARES = {"seconds": 0.25, "host": 0.15, "disk": 0.15}


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 784)).astype(np.float32), rng.integers(0, 10, count).astype(np.int32)


def texts(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 129)).astype(np.int32)


def mlp(*widths: int) -> tuple[Task, Any]:
    return Task(networks.mlp_loss), networks.mlp_params(jax.random.key(0), widths)


def gpt(layers: int, width: int) -> tuple[Task, Any]:
    return Task(functools.partial(networks.gpt_loss, heads=4)), networks.gpt_params(
        jax.random.key(0), layers, width, 256, 128
    )


def index_of_texts(folder: Path, less: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    its = (*gpt(4, 128), texts(2048 // less), folder)
    choices: dict[str, Any] = {"coding": "int8", "batch_size": 32, "shard_rows": 256}
    return lambda: plan_index(*its, **choices), lambda: indexing.build_index(*its, **choices)


def index_of_pictures(folder: Path, less: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    its = (*mlp(784, 512, 512, 10), pictures(60000 // less), folder)
    choices: dict[str, Any] = {"sketch": Sketch(24), "batch_size": 256, "shard_rows": 2048}
    return lambda: plan_index(*its, **choices), lambda: indexing.build_index(*its, **choices)


def trace_of_pictures(folder: Path, less: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    task, params = mlp(784, 512, 512, 10)
    rows = pictures(24000 // less)
    if not folder.exists():
        indexing.build_index(task, params, rows, folder, sketch=Sketch(64), batch_size=256, coding="bfloat16")
    asked = (folder, task, params, rows, Measurement("nll", networks.mlp_loss), jax.tree.map(lambda x: x[:64], rows))
    return lambda: plan_trace(*asked, each=True), lambda: trace.trace(*asked, each=True)


def bank_of_pictures(folder: Path, less: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    task, _ = mlp(784, 512, 512, 10)
    rows, kept = pictures(1000), bank.subsets(1000, 12 // less)
    recipe = Recipe(epochs=20, batch_size=64, learning_rate=0.01, optimizer="sgd")
    initial = lambda seed: networks.mlp_params(jax.random.key(seed), (784, 512, 512, 10))  # noqa: E731
    asked = (task, initial, rows, recipe, kept, Measurement("nll", networks.mlp_loss), pictures(100))
    return lambda: plan_bank(*asked, folder=folder), lambda: bank.train_bank(*asked, folder=folder)


def training_on_texts(folder: Path, less: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    its = (*gpt(4, 128), texts(768 // less), Recipe(epochs=4, batch_size=32))
    return lambda: plan_fit(*its, folder=folder, save_every=2), lambda: training.fit(*its, folder=folder, save_every=2)


JOBS = {
    job.__name__: job
    for job in (index_of_texts, index_of_pictures, trace_of_pictures, bank_of_pictures, training_on_texts)
}


def child(name: str, what: str, folder: Path, less: int) -> None:
    """One of both, in this process: one JSON object."""
    plan, job = JOBS[name](folder, less)
    if what == "plan":
        start = time.perf_counter()
        found = plan()
        took = time.perf_counter() - start
        made = {"seconds": found.total, "host": found.host_bytes, "disk": found.disk_bytes, "took": took}
        print(json.dumps(made | {"parts": found.seconds}))
        return
    before = _size(folder)
    machine.forget_peak()
    start = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(job()) or 0)
    took = time.perf_counter() - start
    print(json.dumps({"seconds": took, "host": machine.most_resident(), "disk": _size(folder) - before}))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_process(*args: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.plan", *args], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, less: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as at:
        folder = str(Path(at) / "out")
        if name == "trace_of_pictures":
            in_process("--child", name, "plan", folder, str(less))  # the index is made by the first that asks
        said, took = (in_process("--child", name, what, folder, str(less)) for what in ("plan", "job"))
    off = {what: round(said[what] / took[what] - 1, 3) if took[what] else 0.0 for what in SHARES}
    return {"said": said, "took": took, "off": off, "met": {what: abs(off[what]) <= SHARES[what] for what in SHARES}}


def main() -> None:
    if "--child" in sys.argv:
        name, what, folder, less = sys.argv[2:]
        return child(name, what, Path(folder), int(less))
    args = timing.arguments(__doc__ or "")
    result: dict[str, Any] = {name: compare(name, 6 if args.quick else 1) for name in JOBS}
    result["met"] = {what: all(result[name]["met"][what] for name in JOBS) for what in SHARES}
    return timing.report(result | timing.machine(), args.json)


if __name__ == "__main__":
    main()
