"""The public call of `project`."""

from typing import Any

from uimjax_kernels.dispatch import Implementation, dispatch
from uimjax_kernels.project import pallas_gpu, pallas_tpu, reference

_TABLE = {
    "pallas_gpu": Implementation(pallas_gpu.project, pallas_gpu.refuses, "gpu"),
    "pallas_tpu": Implementation(pallas_tpu.project, pallas_tpu.refuses, named=True),
    "reference": Implementation(reference.project, reference.refuses),
}


def project(x: Any, seed: Any, width: int, start: Any = 0, *, implementation: str | None = None) -> Any:
    """`x R / sqrt(width)` `[B, width]` float32 of `x` `[B, D]`, with R `[D, width]` of signs that follow from `seed`
    (two uint32) and their place: `start` is the row of R that the first column of x meets, so that parts of a long
    vector add up. E <project(x), project(y)> = <x, y> (Achlioptas 2003). Raises `KernelError` where shapes do not
    fit."""
    return dispatch("project", _TABLE, implementation, x, seed, width, start)
