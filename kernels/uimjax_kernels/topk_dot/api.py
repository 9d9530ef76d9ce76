"""The public call of `topk_dot`."""

from typing import Any

import jax.numpy as jnp

from uimjax_kernels.dispatch import Implementation, dispatch
from uimjax_kernels.topk_dot import pallas_gpu, pallas_tpu, reference
from uimjax_kernels.topk_dot.select import TopK

_TABLE = {
    "pallas_gpu": Implementation(pallas_gpu.topk_dot, pallas_gpu.refuses, "gpu"),
    "pallas_tpu": Implementation(pallas_tpu.topk_dot, pallas_tpu.refuses, named=True),
    "reference": Implementation(reference.topk_dot, reference.refuses),
}


def topk_dot(
    queries: Any, rows: Any, scale: Any, k: int, blocks: Any = None, counted: Any = None, *,
    implementation: str | None = None,
) -> TopK:  # fmt: skip
    """The k largest and the k smallest of `scale[i] * <queries[q], rows[i]>` for each query, best first.

    `queries` `[Q, D]`, `rows` `[N, D]` (float32, bfloat16, or int8), `scale` `[N]` -> `TopK` of `[Q, k]` each; int32
    indices into `rows`. With `blocks` `[N, C]` each stretch of `D / C` columns of a row is worth that many times what
    is stored. Rows where `counted` `[N]` is False are passed over. Equal scores keep the lower index. N x Q scores are
    never held at once: 8,192 rows' are, and on an accelerator 64 MiB of them. With k > N the tail has index -1 and
    value -inf (`+inf` among the smallest). Raises `KernelError` where shapes do not fit.
    """
    scale = jnp.asarray(scale, jnp.float32)
    return dispatch("topk_dot", _TABLE, implementation, queries, rows, scale, k, blocks, counted)


__all__ = ["TopK", "topk_dot"]
