"""How many directions a representation uses: numbers made of the singular values of its features.

With sigma_k the singular values of `X` `[N, d]`, at most min(N, d) of them, and p_k = sigma_k / sum sigma:

- singular value entropy `SVE = -sum p log p` and largest singular value ratio `LSVR = -log(sigma_1 / sum sigma)`, in
  nats: Chen et al. 2024, arXiv 2309.17002;
- effective rank `exp(SVE)`: Roy and Vetterli 2007, EUSIPCO;
- RankMe, `exp(-sum q log q)` with `q = p + 1e-7`: Garrido et al. 2023, arXiv 2210.02885;
- participation ratio `(sum l)^2 / sum l^2` with `l = sigma^2`, and stable rank `sum sigma^2 / sigma_1^2`.

Features are taken as they are, as in the source of SVE and LSVR; `centred` takes their mean off first.
"""

from typing import NamedTuple

import numpy as np

from uimjax.errors import NonFiniteError
from uimjax.understand.representation import base, moments
from uimjax.understand.representation.moments import Moments

RANKME = 1e-7


class Spectrum(NamedTuple):
    """The singular values `[min(N, d)]`, the largest first, and what is made of them (module docstring).

    `skewness`: the mean over features of the absolute skewness; `kurtosis`: that of the excess kurtosis. Features that
    are constant have neither and are left out; `constant` counts them (both are NaN where all are).
    """

    singular_values: np.ndarray
    sve: float
    lsvr: float
    effective_rank: float
    rankme: float
    participation_ratio: float
    stable_rank: float
    skewness: float
    kurtosis: float
    constant: int


def spectrum_of(features: np.ndarray, centred: bool = False) -> Spectrum:
    """Of a matrix `[N, d]`, by its singular value decomposition: small singular values to full precision.

    Raises:
        ShapeError: not `[N, d]`. NonFiniteError: NaN or infinity, or nothing but zeros.

    >>> import numpy as np
    >>> found = spectrum_of(np.diag([3.0, 3.0, 0.0]))
    >>> round(found.effective_rank, 6), found.participation_ratio, found.stable_rank
    (2.0, 2.0, 2.0)
    """
    x, size = base.scaled(base.matrix(features))
    off = x - x[0]  # first, so that a constant feature is zero exactly, whatever the rounding of a mean
    mean = off.mean(0)
    off -= mean
    squares = np.square(off)
    skewness, kurtosis = moments.shape_of(
        x[0] + mean, squares.mean(0), (squares * off).mean(0), np.square(squares, out=squares).mean(0)
    )
    off[:, np.isnan(skewness)] = 0  # nor does rounding count as a direction
    made = _made(np.linalg.svd(off if centred else x, compute_uv=False), skewness, kurtosis)
    return made._replace(singular_values=made.singular_values * size)


def spectrum_of_moments(sums: Moments, centred: bool = False) -> Spectrum:
    """The same from moments that were streamed, by the eigenvalues of `X^T X`: singular values below about 1e-8 of the
    largest are lost in rounding, which moves SVE by less than `d * 2e-7`.

    Raises:
        ShapeError: no rows. NonFiniteError: nothing but zeros.
    """
    summary = moments.finish(sums)
    scatter = np.where(np.isnan(summary.skewness)[:, None] | np.isnan(summary.skewness), 0, sums.scatter)
    eigenvalues = np.linalg.eigvalsh(scatter if centred else moments.gram(sums))[::-1]
    kept = eigenvalues[: min(sums.rows, len(eigenvalues))]
    return _made(np.sqrt(np.maximum(kept, 0)), summary.skewness, summary.kurtosis)


def _made(sigma: np.ndarray, skewness: np.ndarray, kurtosis: np.ndarray) -> Spectrum:
    total = sigma.sum()
    if not total > 0:
        raise NonFiniteError(
            "all singular values are zero, so the features have no spectrum: all rows are zero or, centred, the same. "
            "Look for a dead layer, or take more rows."
        )
    p = sigma / total
    energy = np.square(sigma / sigma[0])
    varies = ~np.isnan(skewness)
    sve = _entropy(p)
    return Spectrum(
        singular_values=sigma,
        sve=sve,
        lsvr=float(np.log(total / sigma[0])),
        effective_rank=float(np.exp(sve)),
        rankme=float(np.exp(_entropy(p + RANKME))),
        participation_ratio=float(energy.sum() ** 2 / np.square(energy).sum()),
        stable_rank=float(energy.sum()),
        skewness=float(np.abs(skewness[varies]).mean()) if varies.any() else np.nan,
        kurtosis=float(kurtosis[varies].mean()) if varies.any() else np.nan,
        constant=int((~varies).sum()),
    )


def _entropy(p: np.ndarray) -> float:
    """`-sum p log p`, a zero adding nothing."""
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
