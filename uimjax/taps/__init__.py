"""The jaxpr interpreter: factored per-example gradients of any JAX loss, the model untouched."""

from uimjax.taps.base import Dense, Direct, Factor, Gather, Layout, Leaf, Place, Site
from uimjax.taps.capture import Factors, Sites, capture, check_budget, sites, verify
from uimjax.taps.layouts import form, pair, spread
from uimjax.taps.views import from_matrices, to_matrices

__all__ = [
    "Dense", "Direct", "Factor", "Factors", "Gather", "Layout", "Leaf", "Place", "Site", "Sites",
    "capture", "check_budget", "form", "from_matrices", "pair", "sites", "spread", "to_matrices", "verify",
]  # fmt: skip
