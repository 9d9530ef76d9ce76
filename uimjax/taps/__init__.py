"""The jaxpr interpreter: factored per-example gradients of any JAX loss, the model untouched."""

from uimjax.taps.base import Dense, Direct, Factor, Gather, Layout, Leaf, Place, Site
from uimjax.taps.captures import Factors, Sites, capture, check_budget, sites
from uimjax.taps.layouts import contract, convolved, expand, factored, form, matrices, pair, spread
from uimjax.taps.parts import axes_of, each_example, entries, owners, positions, tokens
from uimjax.taps.proof import check_segments, verify
from uimjax.taps.views import from_matrices, to_matrices

__all__ = [
    "Dense", "Direct", "Factor", "Factors", "Gather", "Layout", "Leaf", "Place", "Site", "Sites",
    "axes_of", "capture", "check_budget", "check_segments", "contract", "convolved", "each_example",
    "entries", "expand", "factored", "form", "from_matrices", "matrices", "owners", "pair", "positions", "sites",
    "spread", "to_matrices", "tokens", "verify",
]  # fmt: skip
