"""Attribution end to end against other libraries: the same weights, rows, damping and machine, in one run.

Full EK-FAC of the empirical Fisher matrix, from covariances to the scores of all pairs, float32. To reach, against
kronfluence at full rank: W1 (an MLP, 10,000 rows x 500 queries) in 1/20 of its time by few terms (`fast`), W2 (a
decoder, 1,000 x 64, the matrices in its blocks) in 1/2, each at 1/3 of its peak memory. Exact scores (`dense`) and the
whole of W2 (`everything`) stand beside them, and simpler methods of W1 against their fastest peers (`ladder`: 3x).

Before a ratio of those counts: both sides' losses agree; our exact scores correlate with kronfluence's at `AGREE` over
all pairs (its sign is the other one); the fast scores with our exact ones at `NEAR`, and of each query's 20 strongest
rows they name `SHARED` on average. In the ladder both sides draw sketches or choose a Fisher matrix of their own, so
the correlation is given, and asked for only where the formula is the same. `met`: end to end, cold over cold.

Every call runs in a process of its own, with freed buffers kept, peers' too. `cold_s` runs from the start of the
interpreter to the scores (theirs to the end of the process, about a second more), `warm_s` is the median of later
calls, `compile_s` the first call less that; processor seconds stand beside, as other work on the machine disturbs them
less.

Run: UIMJAX_DATA=/path/to/data python -m benchmarks.attribution_speed --json [--quick] [--peers /path/to/python]
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import uimjax as uj
from benchmarks import attribution_workloads as workloads
from benchmarks import peers, timing
from benchmarks.attribution_workloads import EVERYTHING, PEER_COVERS, Workload
from uimjax import rows as row
from uimjax.curvature import projected
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.source import Source
from uimjax.interpret import base, methods
from uimjax.interpret.base import Method

DAMPING = 0.1  # of the mean eigenvalue, over the parameters that kronfluence covers
TERMS = 16
AGREE, NEAR, SHARED, TOP = 0.9999, 0.999, 0.95, 20
LADDER_ROWS, LADDER_QUERIES = 1000, 100  # for peers that would take hours on all of W1
WARM = 2  # calls that follow the first


class Choice(NamedTuple):
    """What one of our processes runs."""

    method: Method
    covers: dict[str, Any]
    batch_size: int


def ekfac(terms: int = 0) -> Method:
    chosen = Kronecker("ekfac", Source("empirical"), damping=DAMPING, terms=terms)
    return Method("ekfac", curvature=chosen, normalize="none")


def choices(name: str) -> dict[str, Choice]:
    if name == "w2":
        return {"dense": Choice(ekfac(), PEER_COVERS[name], 32), "everything": Choice(ekfac(), EVERYTHING, 32)}
    last, kernel = {"include": ("2/*",)}, projected(DAMPING, Source("margin"))
    trak = dataclasses.replace(methods.get("trak"), curvature=kernel)
    return {
        "dense": Choice(ekfac(), EVERYTHING, 250),
        "fast": Choice(ekfac(TERMS), EVERYTHING, 250),
        "grad_dot_last": Choice(Method("grad_dot", normalize="none"), last, 1000),
        "grad_dot": Choice(Method("grad_dot", normalize="none"), EVERYTHING, 250),
        "logra": Choice(Method("logra", uj.Sketch(16), projected(DAMPING), normalize="none"), EVERYTHING, 1000),
        "trak": Choice(trak, EVERYTHING, 250),
    }


# our choice, the peer, whether on few rows alone, whether the scores are the same but for their sign
LADDER = (
    ("grad_dot_last", "captum_tracin", False, True),
    ("logra", "dattri_logra", False, False),
    ("grad_dot", "dattri_tracin", True, True),
    ("fast", "dattri_ekfac", True, False),
    ("trak", "trak", True, False),
)


# ---------------------------------------------------------------- one process each


def worker(folder: Path, name: str, choice: str, began: float) -> dict[str, Any]:
    """Score `1 + WARM` times; the scores are left in the folder."""
    its, its_choice = workloads.read(name, folder), choices(name)[choice]
    task, walls, processor = workloads.task(name, its_choice.covers), [], []

    def score() -> Any:
        start, used = time.perf_counter(), time.process_time()
        found = uj.score(
            task, its.params, its.data, workloads.MEASUREMENT[name], its.queries, its_choice.method,
            each=True, batch_size=its_choice.batch_size,
        )  # fmt: skip
        walls.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        return found

    found, cold = score(), time.time() - began
    np.save(folder / f"ours_{choice}.npy", found.values)
    for _ in range(WARM):
        score()
    warm = statistics.median(walls[1:])
    result = {
        "cold_s": round(cold, 2),
        "warm_s": round(warm, 2),
        "compile_s": round(walls[0] - warm, 2),
        "processor_s": round(statistics.median(processor[1:]), 2),
        "peak_mib": round(timing.most_resident(), 1),
    }
    if measured := found.how.get("terms"):
        result["before_rerank"] = {"correlation": round(measured.correlation, 6), "error": round(measured.error, 4)}
    return result


def ours(folder: Path, name: str, choice: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.attribution_speed", "--worker", str(folder), name, choice]
    done = subprocess.run([*command, str(time.time())], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} {choice} failed: {peers.last_line(done.stderr)}")
    return json.loads(peers.last_line(done.stdout))


def theirs(python: str, folder: Path, name: str, peer: str) -> dict[str, Any]:
    script = Path(__file__).with_name("attribution_peers.py").absolute()
    environment = os.environ | peers.KEEP_BUFFERS | {"PYTHONPATH": str(script.parent.parent)}
    command, start = [python, str(script), str(folder), name, peer], time.perf_counter()
    # In that folder, as some peers write where they stand.
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if done.returncode:
        return {"error": f"exit status {done.returncode}: {peers.last_line(done.stderr)}"}
    return json.loads(peers.last_line(done.stdout)) | {"cold_s": round(time.perf_counter() - start, 2)}


# ---------------------------------------------------------------- what both sides share


def prepare(name: str, made: Workload, folder: Path) -> None:
    """Write the workload, and the number that stands for `DAMPING` times the mean eigenvalue: EK-FAC's trace is the
    mean square of the gradients' norms."""
    workloads.write(made, folder)
    task, squares = workloads.task(name, PEER_COVERS[name]), 0.0
    found = base.training_sites(task, made.params, made.data)
    for batch in row.batches(made.data, 50):
        norms = np.asarray(uj.gradient_norms(task, made.params, batch.rows), np.float64)
        squares += float(np.square(norms[batch.mask]).sum())
    mean = squares / row.count(made.data) / sum(leaf.size for leaf in found.used)
    (folder / "damping.json").write_text(json.dumps(DAMPING * mean))


def few(made: Workload, count: int, asked: int) -> Workload:
    return Workload(made.params, *(row.take(x, np.arange(n)) for x, n in ((made.data, count), (made.queries, asked))))


def same_losses(found: dict[str, Any], losses: np.ndarray) -> None:
    """A network that was rebuilt wrongly would make every number void, so this stops the benchmark."""
    its = found.pop("losses")
    np.testing.assert_allclose(its, losses[: len(its)], rtol=1e-3, atol=1e-5)


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel().astype(np.float64), other.ravel().astype(np.float64))[0, 1])


def shared(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Of each query's `TOP` strongest rows, the share that both name."""
    first, second = (np.argsort(-x, 0)[:TOP].T for x in (one, other))
    return [len(set(a) & set(b)) / TOP for a, b in zip(first.tolist(), second.tolist(), strict=True)]


def wanted(value: float, least: float, what: str) -> float:
    if not value >= least:
        raise AssertionError(f"{what}: {value:.6f}, and at least {least} was wanted; no ratio counts")
    return round(value, 6)


def over(found: dict[str, Any], our: dict[str, Any]) -> dict[str, float]:
    """Theirs over ours."""
    return {
        "time": round(found["seconds"] / our["warm_s"], 2),
        "time_cold": round(found["cold_s"] / our["cold_s"], 2),
        "processor": round(found["processor_s"] / our["processor_s"], 2),
        "peak_memory": round(found["peak_mib"] / our["peak_mib"], 2),
    }


# ---------------------------------------------------------------- the runs


def end_to_end(name: str, made: Workload, losses: np.ndarray, python: str | None) -> dict[str, Any]:
    """EK-FAC of one workload: ours, checked, and kronfluence's."""
    result: dict[str, Any] = {"shape": f"{row.count(made.data)} x {row.count(made.queries)}"}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(name, made, folder)
        result["damping"] = json.loads((folder / "damping.json").read_text())
        names = ("dense", "fast") if name == "w1" else ("dense", "everything")
        result |= {choice: ours(folder, name, choice) for choice in names}
        exact = np.load(folder / "ours_dense.npy")
        if name == "w1":
            near, both = np.load(folder / "ours_fast.npy"), "fast and exact scores"
            overlap = shared(near, exact)
            result["fast"] |= {
                "correlation_with_dense": wanted(pearson(near, exact), NEAR, both),
                "top_shared": wanted(float(np.mean(overlap)), SHARED, both),
                "top_shared_least": min(overlap),
            }
        if python is None:
            return result
        found = theirs(python, folder, name, "kronfluence")
        result["kronfluence"] = found
        if "error" in found:
            return result
        same_losses(found, losses)
        result["correlation"] = wanted(pearson(-exact, np.load(folder / "kronfluence.npy")), AGREE, "kronfluence")
        ratios = {choice: over(found, result[choice]) for choice in names}
        best, least = ratios["fast" if name == "w1" else "dense"], {"w1": 20, "w2": 2}[name]
        result["kronfluence_over_ours"] = ratios
        result["met"] = {"time": best["time_cold"] >= least, "memory": best["peak_memory"] >= 3}
    return result


def ladder(made: Workload, losses: np.ndarray, python: str, quick: bool) -> dict[str, Any]:
    """{our method: its figures, the peer's, theirs over ours}."""
    size = (LADDER_ROWS // 5, LADDER_QUERIES // 5) if quick else (LADDER_ROWS, LADDER_QUERIES)
    result: dict[str, Any] = {}
    for choice, peer, small, same in LADDER:
        with tempfile.TemporaryDirectory() as place:
            folder, taken = Path(place), few(made, *size) if small else made
            prepare("w1", taken, folder)
            our, found = ours(folder, "w1", choice), theirs(python, folder, "w1", peer)
            its = {"shape": f"{row.count(taken.data)} x {row.count(taken.queries)}", "ours": our, peer: found}
            if "error" not in found:
                same_losses(found, losses)
                related = pearson(-np.load(folder / f"ours_{choice}.npy"), np.load(folder / f"{peer}.npy"))
                its["correlation"] = wanted(related, AGREE, peer) if same else round(related, 4)
                its["theirs_over_ours"] = over(found, our)
        result[f"{choice}, {peer}"] = its
    return result


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        folder, name, choice, began = sys.argv[2:]
        print(json.dumps(worker(Path(folder), name, choice, float(began))))
        return
    args = timing.arguments(__doc__ or "", only=("w1", "w2", "ladder"), peers=True)
    python = peers.find(args.peers) if args.peers else None
    names = args.only or ["w1", "w2", *(["ladder"] if python else [])]
    made = {name: workloads.make(name, args.quick) for name in workloads.FILES if name in names}
    result: dict[str, Any] = {name: end_to_end(name, *made[name], python) for name in names if name != "ladder"}
    if "ladder" in names:
        if python is None:
            sys.exit("the ladder compares with peers: give --peers PYTHON")
        result["ladder"] = ladder(*made.get("w1") or workloads.make("w1", args.quick), python, args.quick)
    timing.report(result | {"terms": TERMS, **timing.machine()}, args.json)


if __name__ == "__main__":
    main()
