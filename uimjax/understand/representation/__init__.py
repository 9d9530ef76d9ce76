"""Representations and the curvature at them: spectra, similarities, dimensions, sharpness.

The public names are imported on first use: importing this package imports neither jax, scipy nor scikit-learn.
"""

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Angles": "similarity",
    "Dimension": "dimension",
    "Extremes": "hessian",
    "Moments": "moments",
    "Negative": "hessian",
    "Quadrature": "hessian",
    "Sharpness": "hessian",
    "Spectrum": "spectrum",
    "Summary": "moments",
    "cka": "similarity",
    "cka_matrix": "similarity",
    "densities": "hessian",
    "density": "hessian",
    "extremes": "hessian",
    "hessian_spectrum": "hessian",
    "moments_of": "moments",
    "negative": "hessian",
    "over_series": "series",
    "principal_angles": "similarity",
    "sharpness": "hessian",
    "spectrum_of": "spectrum",
    "spectrum_of_moments": "spectrum",
    "two_nn": "dimension",
}

if TYPE_CHECKING:
    from uimjax.understand.representation import moments as moments
    from uimjax.understand.representation.dimension import Dimension as Dimension
    from uimjax.understand.representation.dimension import two_nn as two_nn
    from uimjax.understand.representation.hessian import Extremes as Extremes
    from uimjax.understand.representation.hessian import Negative as Negative
    from uimjax.understand.representation.hessian import Quadrature as Quadrature
    from uimjax.understand.representation.hessian import Sharpness as Sharpness
    from uimjax.understand.representation.hessian import densities as densities
    from uimjax.understand.representation.hessian import density as density
    from uimjax.understand.representation.hessian import extremes as extremes
    from uimjax.understand.representation.hessian import hessian_spectrum as hessian_spectrum
    from uimjax.understand.representation.hessian import negative as negative
    from uimjax.understand.representation.hessian import sharpness as sharpness
    from uimjax.understand.representation.moments import Moments as Moments
    from uimjax.understand.representation.moments import Summary as Summary
    from uimjax.understand.representation.moments import moments_of as moments_of
    from uimjax.understand.representation.series import over_series as over_series
    from uimjax.understand.representation.similarity import Angles as Angles
    from uimjax.understand.representation.similarity import cka as cka
    from uimjax.understand.representation.similarity import cka_matrix as cka_matrix
    from uimjax.understand.representation.similarity import principal_angles as principal_angles
    from uimjax.understand.representation.spectrum import Spectrum as Spectrum
    from uimjax.understand.representation.spectrum import spectrum_of as spectrum_of
    from uimjax.understand.representation.spectrum import spectrum_of_moments as spectrum_of_moments

__all__ = [*_WHERE, "moments"]  # pyright: ignore[reportUnsupportedDunderAll]  # the table above


def __getattr__(name: str) -> Any:
    if name == "moments":  # its init, update, merge and finish
        return importlib.import_module(f"{__name__}.moments")
    if name not in _WHERE:
        raise AttributeError(f"{__name__} has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
