"""Curvature of the training loss: sums over rows that stream and do not depend on batch splits, then a solve."""

from uimjax.curvature.base import Curvature, Spectrum
from uimjax.curvature.identity import identity
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.projected import projected
from uimjax.curvature.source import Source

__all__ = ["Curvature", "Kronecker", "Source", "Spectrum", "identity", "projected"]
