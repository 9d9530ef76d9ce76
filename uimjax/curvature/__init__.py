"""Curvature of the training loss, as sums over rows: streams, resumes, independent of batch splits."""

from uimjax.curvature.base import Curvature, Spectrum
from uimjax.curvature.identity import identity
from uimjax.curvature.projected import projected

__all__ = ["Curvature", "Spectrum", "identity", "projected"]
