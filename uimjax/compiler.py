"""XLA's compiler for a GPU: leave out a search that takes minutes."""

import os
from importlib.util import find_spec

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
FLAG = "xla_gpu_enable_triton_gemm"


def compile_sooner() -> bool:
    """Call once, before JAX computes anything: on an NVIDIA GPU, products are then left to cuBLAS, and no kernels of
    XLA's own are tried out for each of them. True where XLA was told; elsewhere, or where XLA_FLAGS name the choice
    already, nothing happens.

    The sketching program of a GPT of 12 layers of 768 (bfloat16, 32 rows of 512, H100, JAX 0.11) compiled in 13 s
    instead of 83, and took 93 ms a batch instead of 85. Without trying anything out, but with XLA's kernels, it took
    551 ms. A job pays for several such programs, so it must run for a quarter of an hour before the search pays.
    It is the whole process's setting, so a library should leave it alone; the command line calls it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags or not any(find_spec(name) for name in PLUGINS):  # a build for CPUs has no such flag to take
        return False
    os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=false".strip()
    return True
