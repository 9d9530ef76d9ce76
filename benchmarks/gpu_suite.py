"""The table of factor_cost on a GPU, in one call of under nine minutes: GPT 12x768 and a decoder of 1B parameters.

Claims: rank-16 sketches of every parameter cost at most 1.15 of a plain backward pass at 1B (random weights, bfloat16),
and at 160M the model FLOPs utilisation of a sketching pass is at least five times the 4% known of a rival's. MFU counts
6 FLOPs a parameter and token, for every column, against the dense bfloat16 peak of the card (none for a card that is
not in the table). `--quick` takes tiny networks that run anywhere.
Run: python -m benchmarks.gpu_suite --json > gpu_suite-<card>.json
"""

import functools
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, timing
from benchmarks.factor_cost import Run, measure
from uimjax.task import Task

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # dense bfloat16, vendors' data sheets
COLUMNS = ("plain", "sketch", "norms")


def decoder(layers: int, width: int, heads: int, vocabulary: int, length: int, batch: int) -> Run:
    params = networks.scanned_params(jax.random.key(0), layers, width, vocabulary, jnp.bfloat16)
    rows = jnp.asarray(np.random.default_rng(0).integers(vocabulary, size=(batch, length + 1)))
    loss = functools.partial(networks.scanned_loss, heads=heads)
    shape = f"{layers}x{width}, V={vocabulary}, T={length}, batch {batch}, bf16"
    return Run(Task(loss), params, rows, shape, columns=COLUMNS)


def with_utilisation(run: Run, result: dict[str, Any], peak: float | None) -> dict[str, Any]:
    count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    length = run.batch.shape[1] - 1
    for column in COLUMNS:
        flops = 6 * count * length * result[f"{column}_examples_per_s"]
        result[f"{column}_mfu"] = None if peak is None else round(flops / peak, 4)
    return result | {"parameters": count}


def main() -> None:
    args = timing.arguments(__doc__ or "", only=["gpt_160m", "decoder_1b"])
    runs = {
        "gpt_160m": lambda: decoder(12, 768, 12, 50304, 512, 32),
        "decoder_1b": lambda: decoder(18, 2048, 16, 50304, 1024, 8),
    }
    if args.quick:
        runs = {"tiny": lambda: decoder(2, 32, 2, 64, 16, 4)}
    kind = jax.devices()[0].device_kind
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in kind), None)
    result: dict[str, Any] = {}
    for name, make in runs.items():
        if args.only and name not in args.only:
            continue
        run = make()
        result[name] = with_utilisation(run, measure(run, 5 if args.quick else 10), peak)
        jax.clear_caches()
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    timing.report(result | {"commit": done.stdout.strip(), **timing.machine()}, args.json)


if __name__ == "__main__":
    main()
