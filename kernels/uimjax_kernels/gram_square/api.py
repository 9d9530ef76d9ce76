"""The public call of `gram_square`."""

from typing import Any

from uimjax_kernels.dispatch import Implementation, dispatch
from uimjax_kernels.gram_square import pallas_gpu, pallas_tpu, reference

_TABLE = {
    "pallas_gpu": Implementation(pallas_gpu.gram_square, pallas_gpu.refuses, "gpu"),
    "pallas_tpu": Implementation(pallas_tpu.gram_square, pallas_tpu.refuses, named=True),
    "reference": Implementation(reference.gram_square, reference.refuses),
}


def gram_square(a: Any, g: Any, *, implementation: str | None = None) -> Any:
    """`sum_b (a_b^T g_b)^2`, elementwise, `[I, O]` float32, of `a` `[B, T, I]` and `g` `[B, T, O]`: the second moments
    of per-example gradients, as the eigenvalues of EK-FAC are in its basis. Raises `KernelError` where shapes do not
    fit."""
    return dispatch("gram_square", _TABLE, implementation, a, g)
