"""Features as a stream: an array `[N, d]` or an iterable of batches `[B, d]`, checked, in float64 on the host."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from uimjax.errors import ShapeError
from uimjax.rows import check_finite

PIECE = 1 << 20  # numbers of an array that are copied to float64 at once
Features = Any  # an array [N, d], or an Iterable of arrays [B, d]


def matrix(features: Any, what: str = "features") -> np.ndarray:
    """One array `[N, d]`, float64.

    Raises:
        ShapeError: another rank, no rows or no columns, or complex numbers. NonFiniteError: NaN or infinity.
    """
    x = np.asarray(features)
    if x.ndim != 2 or 0 in x.shape:
        raise ShapeError(
            f"{what} of shape {list(x.shape)} arrived; [N, d] was wanted, at least one row and one column. Flatten or "
            "pool what lies between, and stack single rows or batches first (numpy.concatenate)."
        )
    if np.iscomplexobj(x):
        raise ShapeError(f"{what} are complex ({x.dtype}); real numbers were wanted. Stack real and imaginary parts.")
    check_finite(x, what)
    return x.astype(np.float64)


def scaled(x: np.ndarray) -> tuple[np.ndarray, float]:
    """(x in units of its largest number, that): squares of what is very large or small have no room in float64. Powers
    of two, so that nothing is rounded."""
    size = float(np.abs(x).max())
    unit = 2.0 ** np.floor(np.log2(size)) if size > 0 else 1.0
    return x / unit, unit


def batches(features: Features) -> Iterator[np.ndarray]:
    """The rows in order, some at a time: `[B, d]` float64.

    Raises:
        ShapeError: a batch of another width than the first, or no batch at all. As `matrix`.
    """
    width = None
    for number, batch in enumerate(_pieces(features)):
        x = matrix(batch, f"features (batch {number})")
        width = x.shape[1] if width is None else width
        if x.shape[1] != width:
            raise ShapeError(
                f"batch {number} has features of width {x.shape[1]} and the first batch {width}; one width was wanted "
                "for all: take them from one layer of one model"
            )
        yield x
    if width is None:
        raise ShapeError("no batch of features arrived; at least one was wanted. Is the iterator used up?")


def _pieces(features: Features) -> Iterable[Any]:
    if not hasattr(features, "shape"):
        return features
    if np.ndim(features) != 2 or not len(features):
        return [features]  # refused above, by its shape
    step = max(1, PIECE // max(1, features.shape[1]))
    return (features[first : first + step] for first in range(0, len(features), step))


def chunks(features: Features, size: int) -> Iterator[np.ndarray]:
    """The rows in order, `size` at a time (the last may be shorter), however they arrive: `[size, d]` float64."""
    held: list[np.ndarray] = []
    count = 0
    for batch in batches(features):
        while len(batch):
            part, batch = batch[: size - count], batch[size - count :]
            held.append(part)
            count += len(part)
            if count == size:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)
