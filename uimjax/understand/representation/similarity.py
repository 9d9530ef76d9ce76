"""How alike two representations of the same rows are: linear centred kernel alignment, and angles between subspaces.

CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with linear kernels K = X X^T and L = Y Y^T (Kornblith et al. 2019, arXiv
1905.00414), between 0 and 1 but for noise, the same under rotation and scaling of either. Three estimates of HSIC:

- "biased": `||Xc^T Yc||_F^2` of centred features; rises with the width where rows are few;
- "unbiased": HSIC_1 (Song et al. 2012, JMLR 13), with K~ and L~ the kernels with zeros on the diagonal,
  `HSIC_1 = (tr(K~ L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 1'K~L~1 / (n-2)) / (n (n-3))`;
- "minibatch": the mean of HSIC_1 over batches in the order of the rows, the last incomplete one left out; the ratio is
  taken of the means (Nguyen et al. 2020, arXiv 2010.15327).

No kernel `[n, n]` is made. With s_x = sum x_i, a_i = |x_i|^2 (and s_y, b_i of y) all three are made of sums over rows:

    tr(K~ L~) = ||X^T Y||_F^2 - sum a_i b_i,      1'K~1 = |s_x|^2 - sum a_i,
    1'K~L~1   = sum (x_i.s_x - a_i)(y_i.s_y - b_i)
              = s_x' X^T Y s_y - s_x.(sum b_i x_i) - s_y.(sum a_i y_i) + sum a_i b_i.

HSIC does not change when a constant is added to all rows, so the first row is taken off all: sums of large means
would leave no digits for the rest.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import subspace_angles

from uimjax.errors import NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.understand.representation import base
from uimjax.understand.representation.base import Features

KINDS = ("biased", "unbiased", "minibatch")
FEWEST = 4  # rows that HSIC_1 takes
FLAT = 16 * np.finfo(np.float64).eps  # a spread below so much of the mean is rounding


class Sums(NamedTuple):
    """Sums over rows, for one pair of feature sets: all that HSIC is made of (names as in the module docstring)."""

    rows: int
    xy: np.ndarray  # [d1, d2] X^T Y
    x: np.ndarray  # [d1]
    y: np.ndarray  # [d2]
    a: float
    b: float
    ab: float
    bx: np.ndarray  # [d1]
    ay: np.ndarray  # [d2]


def _sums(x: np.ndarray, y: np.ndarray) -> Sums:
    a, b = np.square(x).sum(1), np.square(y).sum(1)
    return Sums(len(x), x.T @ y, x.sum(0), y.sum(0), a.sum(), b.sum(), a @ b, b @ x, a @ y)


def _added(first: Sums | None, second: Sums) -> Sums:
    if first is None:
        return second
    made: Any = [p + q for p, q in zip(first, second, strict=True)]
    return Sums(*made)


def _biased(s: Sums) -> float:
    return float(np.square(s.xy - np.outer(s.x, s.y) / s.rows).sum() / s.rows**2)


def _unbiased(s: Sums) -> float:
    n = s.rows
    both = np.square(s.xy).sum() - s.ab
    k, l = s.x @ s.x - s.a, s.y @ s.y - s.b  # noqa: E741  # the formula's letter
    mixed = s.x @ s.xy @ s.y - s.x @ s.bx - s.y @ s.ay + s.ab
    return float((both + k * l / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)) / (n * (n - 3)))


def cka(x: Features, y: Features, kind: str = "unbiased", batch_size: int = 256) -> float:
    """Linear CKA of two feature sets of the same N rows in the same order: `[N, d1]` and `[N, d2]`, or iterables of
    their batches. `batch_size` is that of "minibatch".

    *Guarantees*: how the rows arrive in batches changes nothing; nor does their order but for "minibatch"; memory is
    `O((d1 + d2)^2)` beside the batches, whatever N.

    Raises:
        UnknownNameError: no such kind. ShapeError: not `[N, d]`, sets of different N, or too few rows for the kind.
        NonFiniteError: NaN or infinity, or features without any spread. UsageError: batches of under 4 rows.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(cka(x, 7 * x[:, ::-1] + 1), 12)
    1.0
    """
    return float(cka_matrix([x, y], kind, batch_size)[0, 1])


def cka_matrix(sets: Sequence[Features], kind: str = "unbiased", batch_size: int = 256) -> np.ndarray:
    """The CKA `[K, K]` of each of K feature sets with each, as `cka`, in one pass over all of them side by side; memory
    is half the square of the sum of their widths. Raises as `cka`."""
    if kind not in KINDS:
        raise UnknownNameError("kind of CKA", kind, KINDS)
    if batch_size < FEWEST:
        raise UsageError(f"batch_size={batch_size}; HSIC_1 takes at least {FEWEST} rows")
    if not sets:
        raise ShapeError("no feature sets; at least one was wanted")
    pairs = [(i, j) for i in range(len(sets)) for j in range(i, len(sets))]
    totals: dict[tuple[int, int], Sums] = {}
    hsic, full, count, shifts = np.zeros((len(sets), len(sets))), 0, 0, []
    for parts in _side_by_side(sets, batch_size):
        shifts = shifts or [part[0] for part in parts]
        parts = [part - shift for part, shift in zip(parts, shifts, strict=True)]
        count, whole = count + len(parts[0]), len(parts[0]) == batch_size
        full += whole
        for i, j in pairs:
            made = _sums(parts[i], parts[j])
            if kind != "minibatch":
                totals[i, j] = _added(totals.get((i, j)), made)
            elif whole:
                hsic[i, j] += _unbiased(made)
    _check_rows(kind, count, full, batch_size)
    for i, j in pairs:
        if kind == "minibatch":
            hsic[i, j] /= full
        else:
            hsic[i, j] = (_biased if kind == "biased" else _unbiased)(totals[i, j])
    return _ratios(hsic, shifts)


def _side_by_side(sets: Sequence[Features], size: int) -> Iterator[list[np.ndarray]]:
    """Chunks of the same rows of each set."""
    seen = [0] * len(sets)
    for parts in zip_longest(*(base.chunks(each, size) for each in sets)):
        seen = [n + (0 if part is None else len(part)) for n, part in zip(seen, parts, strict=True)]
        if len(set(seen)) > 1:
            short, long = int(np.argmin(seen)), int(np.argmax(seen))
            raise ShapeError(
                f"feature set {short} ends after {seen[short]} rows and set {long} goes on; features of the same rows, "
                "in the same order, were wanted of each"
            )
        yield list(parts)


def _check_rows(kind: str, count: int, full: int, batch_size: int) -> None:
    if kind == "unbiased" and count < FEWEST:
        raise ShapeError(f"{count} rows, and the unbiased CKA takes {FEWEST} or more; give more, or take kind='biased'")
    if kind == "minibatch" and not full:
        raise ShapeError(
            f"{count} rows do not fill one batch of {batch_size}: give a smaller batch_size, or take kind='unbiased'"
        )


def _ratios(hsic: np.ndarray, shifts: list[np.ndarray]) -> np.ndarray:
    spread = np.sqrt(np.maximum(np.diag(hsic), 0))  # about the norm of the covariance
    for number, (size, shift) in enumerate(zip(spread, shifts, strict=True)):
        if size <= FLAT**2 * (shift @ shift):
            raise NonFiniteError(
                f"feature set {number} is the same in all rows, and has no similarity to anything: look for a dead "
                "layer, or take more rows"
            )
    upper = hsic / np.outer(spread, spread)
    return np.triu(upper) + np.triu(upper, 1).T


class Angles(NamedTuple):
    """`radians` `[k]`, the largest first, 0 to pi/2. `space` says between what: "features", subspaces of the d features
    that both sets share; "rows", subspaces of the N rows."""

    radians: np.ndarray
    space: str


def principal_angles(x: np.ndarray, y: np.ndarray, k: int, centred: bool = False) -> Angles:
    """Principal angles between the leading k-dimensional subspaces of `[N1, d1]` and `[N2, d2]` (Bjorck and Golub 1973,
    doi 10.2307/2005662).

    Where widths are equal, between the spans of the first k right singular vectors, directions of feature space (two
    checkpoints of one model, or two sets of rows); else between those of the left ones, which needs the same N rows.
    The k-th singular value should stand clear of the next: a subspace that cuts through a tie is a matter of rounding.

    Raises:
        ShapeError: not `[N, d]`, or different d and different N. NonFiniteError.
        UsageError: k below 1, or more than the rank of one of the two.
    """
    x, y = base.matrix(x, "the first features"), base.matrix(y, "the second features")
    space = "features" if x.shape[1] == y.shape[1] else "rows"
    if space == "rows" and len(x) != len(y):
        raise ShapeError(
            f"features {list(x.shape)} and {list(y.shape)} share neither their width nor their rows, so no space holds "
            "a subspace of each; take features of the same rows"
        )
    first, second = (_leading(each, k, centred, space) for each in (x, y))
    return Angles(subspace_angles(first, second), space)


def _leading(x: np.ndarray, k: int, centred: bool, space: str) -> np.ndarray:
    """The first k singular vectors, as columns."""
    left, sigma, right = np.linalg.svd(x - x.mean(0) if centred else x, full_matrices=False)
    rank = int((sigma > sigma[0] * max(x.shape) * np.finfo(np.float64).eps).sum())
    if not 1 <= k <= rank:
        raise UsageError(f"k={k} directions of features {list(x.shape)} of rank {rank}; 1 to {rank} were wanted")
    return right[:k].T if space == "features" else left[:, :k]
