"""The contract of every curvature: a sum over rows, then a solve."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from uimjax.errors import UnknownNameError, UsageError

SOURCES = ("fisher", "ggn", "empirical", "margin")


@dataclass(frozen=True)
class Source:
    """Which gradients a curvature is the second moment of (`source.py`); `samples` a row and their `seed` count where
    labels are drawn."""

    kind: Literal["fisher", "ggn", "empirical", "margin"] = "fisher"
    samples: int = 16
    seed: int = 0

    def __post_init__(self):
        if self.kind not in SOURCES:
            raise UnknownNameError("source of a curvature", self.kind, SOURCES)
        if self.samples < 1:
            raise UsageError(f"{self.samples} samples a row; at least 1 was wanted")


EMPIRICAL = Source("empirical")


class Spectrum(NamedTuple):
    """A finished block-diagonal curvature: eigenvectors `[d, d]`, eigenvalues `[d]` (float64) and what is added to them
    a block; 0 where the damping was left open."""

    vectors: tuple[Any, ...]
    values: tuple[Any, ...]
    damping: tuple[float, ...]


@dataclass(frozen=True)
class Curvature:
    """`init(blocks) -> state`, `update(state, rows) -> state`, `finish(state) -> inverse`,
    `solve(inverse, rows, power=-1.0) -> rows`.

    `blocks` are (start, stop) column ranges of the rows `[N, D]`; `power` -1 gives H^-1 x, -1/2 whitens. `update` is
    `add(state, batch(blocks, rows), len(rows))`; `batch` is pure and jittable, for programs that compute the rows
    themselves, and rows of zeros add nothing to it. `source`: whose gradients the rows are. `damping`: times
    the mean eigenvalue; 0 for a curvature that has none; None: `finish` gives a `Spectrum` whose damping is still to be
    chosen (`projected.damped`). `with_damping`: the same with that damping, where there is one.
    """

    name: str
    init: Callable[[tuple[tuple[int, int], ...]], Any]
    update: Callable[[Any, Any], Any]
    batch: Callable[[tuple[tuple[int, int], ...], Any], Any]
    add: Callable[[Any, Any, int], Any]
    finish: Callable[[Any], Any]
    solve: Callable[..., Any]
    source: Source = EMPIRICAL
    damping: float | None = 0.0
    with_damping: Callable[[float], "Curvature"] | None = None
