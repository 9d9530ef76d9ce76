"""Curvature of the training loss: sums over rows that stream and do not depend on batch splits, then a solve."""

from uimjax.curvature.adam import Adam
from uimjax.curvature.base import Curvature, Source, Spectrum
from uimjax.curvature.euclidean import identity
from uimjax.curvature.harmonic import Harmonic
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.operator import Operator
from uimjax.curvature.projection import damped, projected

__all__ = [
    "Adam", "Curvature", "Harmonic", "Kronecker", "Operator", "Source", "Spectrum", "damped", "identity",
    "projected",
]  # fmt: skip
