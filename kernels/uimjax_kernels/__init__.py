"""Kernels that need only jax: each op has a reference (the specification), and faster versions where one wins."""

from uimjax_kernels.topk_dot.api import TopK, topk_dot

__all__ = ["TopK", "topk_dot"]
