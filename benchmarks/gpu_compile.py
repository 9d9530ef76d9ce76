"""What XLA's search for the fastest products costs a GPU, and what it gains, for the program that sketches gradients.

Claims: without kernels of XLA's own (`uimjax.compile_sooner`), the sketching program of GPT 12x768 (random weights,
bfloat16) compiles at least four times as fast, and runs at most a fifth longer; without any trial but with those
kernels it runs several times longer, which `uimjax` never asks for. `--quick`: a tiny network that runs anywhere;
elsewhere than on a GPU the flags mean nothing.

Run: python -m benchmarks.gpu_compile --json > gpu_compile-<card>.json
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.gpu_index import JOBS
from uimjax.interpret import indexing

KERNELS, SEARCH = "xla_gpu_enable_triton_gemm", "xla_gpu_autotune_level"
CHOICES: dict[str, dict[str, Any]] = {  # the one with kernels and search is the default, and slowest to compile: last
    "neither": {KERNELS: False, SEARCH: 0},
    "kernels": {KERNELS: True, SEARCH: 0},
    "search": {KERNELS: False},
    "both": {KERNELS: True},
}


def main() -> None:
    args = timing.arguments(__doc__ or "")
    its, reference = JOBS["tiny" if args.quick else "gpt_160m"](), None
    with tempfile.TemporaryDirectory() as at:
        asked = (its.task, its.params, its.rows, Path(at) / "index")
        maker = indexing.made(*asked, sketch=None, target_recall=None, mesh=None, **its.choices)
    inputs = jax.device_put(maker.inputs(its.rows, its.choices["batch_size"]))
    lowered = jax.jit(maker.program).lower(*inputs)
    result: dict[str, Any] = {"shape": its.shape}
    for name, choice in CHOICES.items():
        start = time.perf_counter()
        program = lowered.compile(choice if jax.default_backend() == "gpu" else None)
        compile_s = time.perf_counter() - start
        run_s = timing.interleaved({name: lambda program=program: program(*inputs)}, 10)[name]
        rows = np.asarray(program(*inputs)[1], np.float64)
        reference = rows if reference is None else reference
        far = float(np.linalg.norm(rows - reference) / np.linalg.norm(reference))
        assert far < 2e-2, f"{name}: sketches differ by {far}"
        tokens = its.choices["batch_size"] * (its.rows.shape[1] - 1)
        result[name] = {
            "compile_s": round(compile_s, 2), "run_ms": round(1e3 * run_s, 2), "tokens_per_s": round(tokens / run_s),
            "differs": far,
        }  # fmt: skip
        print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    sooner = result["both"]["compile_s"] / max(result["search"]["compile_s"], 0.01)  # elsewhere they are one program
    longer = result["search"]["run_ms"] / result["both"]["run_ms"]
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    result |= {"compiles_sooner": sooner, "runs_longer": longer, "met": sooner >= 4 and longer <= 1.2}
    return timing.report(result | {"commit": done.stdout.strip(), **timing.machine()}, args.json)


if __name__ == "__main__":
    main()
