"""Kernels that need only jax: each op has a reference (the specification), and faster versions where one wins."""

from uimjax_kernels.gram_square.api import gram_square
from uimjax_kernels.project.api import project
from uimjax_kernels.topk_dot.api import TopK, topk_dot

__all__ = ["TopK", "gram_square", "project", "topk_dot"]
