"""Ten times the training rows: ten times the time, the same memory.

Claim: scoring 6,000 and 60,000 rows of MNIST with the MLP of W1 and 50 queries, the seconds a further row costs agree
within 10% between the first and the second half of the way, and the peak less the rows and the scores themselves grows
by at most 5%. Each run is a process of its own, compiled programs warm; the median time and the least peak of three.

    UIMJAX_DATA=... python -m benchmarks.tenfold --json [--quick]
"""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

import uimjax as uj
from benchmarks import attribution_workloads as workloads
from benchmarks.timing import Peak, arguments, machine, most_resident, report
from uimjax import rows as row
from uimjax.curvature import Kronecker, Source
from uimjax.interpret.base import Method

ROWS, QUERIES, REPEATS = (6_000, 33_000, 60_000), 50, 3
METHODS = {
    "grad_dot": Method("grad_dot", normalize="none"),
    "kfac": Method("kfac", curvature=Kronecker("kfac", damping=0.1), normalize="none"),
    "ekfac, 16 terms": Method("ekfac", curvature=Kronecker(damping=0.1, terms=16), normalize="none"),
    "ekfac, empirical": Method("ekfac", curvature=Kronecker(source=Source("empirical"), damping=0.1), normalize="none"),
    "datainf": "datainf",
}


def worker(name: str, count: int) -> dict[str, float]:
    made = workloads.network("w1")
    data, queries = workloads.rows("w1", count, QUERIES)
    task = workloads.task("w1")

    def score(some: Any) -> Any:
        measurement = workloads.MEASUREMENT["w1"]
        return uj.score(task, made, some, measurement, queries, METHODS[name], each=True, batch_size=500)

    score(row.take(data, np.arange(1000)))  # compiles
    times, peaks = [], []
    for _ in range(REPEATS):
        Peak()  # hands back what was freed, and starts anew
        start = time.perf_counter()
        found = score(data)
        times.append(time.perf_counter() - start)
        peaks.append(most_resident() - (found.values.nbytes + sum(x.nbytes for x in data)) / 2**20)
        assert np.isfinite(found.values).all()
        del found
    return {"seconds": statistics.median(times), "peak_mib": min(peaks)}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(sys.argv[2], int(sys.argv[3]))))
        return
    args = arguments(__doc__ or "", only=tuple(METHODS))
    counts = [n // 6 for n in ROWS] if args.quick else ROWS
    result: dict[str, Any] = {"machine": machine(), "rows": list(counts), "queries": QUERIES}
    for name in args.only or METHODS:
        runs = []
        for count in counts:
            command = [sys.executable, "-m", "benchmarks.tenfold", "--worker", name, str(count)]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        first, second = ((runs[k + 1]["seconds"] - runs[k]["seconds"]) / (counts[k + 1] - counts[k]) for k in (0, 1))
        result[name] = {
            "seconds": [round(its["seconds"], 2) for its in runs],
            "peak_mib": [round(its["peak_mib"], 1) for its in runs],
            "slope_ratio": round(second / first, 3),
            "memory_ratio": round(runs[-1]["peak_mib"] / runs[0]["peak_mib"], 3),
        }
        its = result[name]
        its["met"] = {"time": abs(its["slope_ratio"] - 1) <= 0.1, "memory": its["memory_ratio"] <= 1.05}
        print(name, result[name], file=sys.stderr, flush=True)
    report(result, args.json)


if __name__ == "__main__":
    main()
