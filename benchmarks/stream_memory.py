"""Peak memory does not grow with the number of examples.

Claim: a stream of ten times the examples through losses, exact norms and rank-16 sketches takes at most 3% more memory
at its peak. Each length runs twice, in processes of their own; compared is the smaller of their largest resident sets,
which vary by 2% with nothing changed.
Run: python -m benchmarks.stream_memory --json
"""

import json
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import networks, timing
from uimjax.onepass import collect
from uimjax.task import Task

BATCH = 32
WANTED = ("loss", "norm", "sketch")


def stream(network: str, examples: int) -> dict[str, float]:
    """Peak MiB of this process after a stream of `examples`, drawn batch by batch, and a checksum of what came out."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    if network == "gpt":
        task, params = Task(networks.gpt_loss), networks.gpt_params(key, 4, 128, 256, 64)
    else:
        task, params = Task(networks.mlp_loss), networks.mlp_params(key)
    total = 0.0
    for _ in range(examples // BATCH):
        if network == "gpt":
            batch: Any = rng.integers(256, size=(BATCH, 65)).astype(np.int32)
        else:
            batch = rng.normal(size=(BATCH, 784)).astype(np.float32), rng.integers(10, size=BATCH).astype(np.int32)
        found = collect(task, params, batch, WANTED)
        total += float(np.asarray(found["norm"]).sum()) + float(np.abs(np.asarray(found["sketch"])).sum())
    return {"peak_mib": timing.most_resident(), "checksum": total}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(stream(sys.argv[2], int(sys.argv[3]))))
        return
    args = timing.arguments(__doc__ or "")
    result: dict[str, Any] = {}
    for network, base in (("mlp", 6400), ("gpt", 320)):
        base = base // 2 if args.quick else base
        for examples in (base, 10 * base):
            command = [sys.executable, "-m", "benchmarks.stream_memory", "--worker", network, str(examples)]
            runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2)]
            one, two = map(json.loads, runs)
            assert np.isfinite(one["checksum"])
            assert one["checksum"] == two["checksum"] > 0
            result[f"{network}_{examples}_peak_mib"] = round(min(one["peak_mib"], two["peak_mib"]), 1)
        small, large = (result[f"{network}_{n}_peak_mib"] for n in (base, 10 * base))
        result[f"{network}_ratio"] = round(large / small, 4)
    timing.report(result | timing.machine(), args.json)


if __name__ == "__main__":
    main()
