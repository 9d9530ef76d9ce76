"""The public call of `topk_dot`."""

from typing import Any

from uimjax_kernels.dispatch import Implementation, dispatch
from uimjax_kernels.topk_dot import reference
from uimjax_kernels.topk_dot.reference import TopK

_TABLE = {"reference": Implementation(reference.topk_dot, reference.refuses)}


def topk_dot(queries: Any, rows: Any, scale: Any, k: int, *, implementation: str | None = None) -> TopK:
    """The k largest and the k smallest of `scale[i] * <queries[q], rows[i]>` for each query, best first.

    `queries` `[Q, D]`, `rows` `[N, D]`, `scale` `[N]` -> `TopK` of `[Q, k]` each; int32 indices into `rows`. Equal
    scores keep the lower index. N x Q scores are never held at once. With k > N the tail has index -1 and value -inf
    (`+inf` among the smallest). Raises `KernelError` where shapes do not fit.
    """
    return dispatch("topk_dot", _TABLE, implementation, queries, rows, scale, k)


__all__ = ["TopK", "topk_dot"]
