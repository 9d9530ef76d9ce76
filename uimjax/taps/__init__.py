"""The jaxpr interpreter: factored per-example gradients of any JAX loss, the model untouched."""

from uimjax.taps.base import Dense, Direct, Factor, Gather, Layout, Leaf, Site
from uimjax.taps.capture import Factors, Sites, capture, check_budget, sites, to_gradient, verify
from uimjax.taps.views import from_matrices, to_matrices

__all__ = [
    "Dense", "Direct", "Factor", "Factors", "Gather", "Layout", "Leaf", "Site", "Sites",
    "capture", "check_budget", "sites", "to_gradient", "from_matrices",
    "to_matrices", "verify",
]  # fmt: skip
