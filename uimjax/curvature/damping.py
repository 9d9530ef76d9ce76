"""Damping chosen by agreement: the smallest at which two halves of the data give the same scores.

A curvature measured on finitely many rows is noise in its small eigenvalues, and `1 / (L + damping)` turns that noise
into scores. So measure it on either half of the rows, score the same rows and queries with both, and raise the damping
until the scores of a query correlate at `THRESHOLD` (Pearson, median over queries). More damping than that only pulls
the scores towards the plain dot product. No user input, no truth, no retraining; what was tried stays with the result.

The thresholds were set on sets with retrained truth that no benchmark scores: MNIST with two MLPs (238k and 135k
parameters; SGD, AdamW), digits with an MLP and a CNN. There the damping that the rule takes has 98 to 100% of the LDS
of the best damping by Fisher gradients, 95 to 100% by empirical ones, 89 to 97% by the margin's; the best itself
differs by a factor of 1,000. Those of sketched rows (`SKETCHED`) were set on MNIST with two MLPs and on a GPT of mixed
documents. There TRAK's kernel keeps 98 to 100% of the best LDS (with a tenth of the mean eigenvalue 51 to 77%), LoGra,
GraSS and TrackStar 85 to 100% (78 to 100%): a GPT of 96 steps would have more damping than halves ask for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import UsageError

LOW, HIGH = 1e-4, 1e4  # of the mean eigenvalue: where damping is looked for
STEPS = 6  # halvings of that range on a log scale
THRESHOLD = {"fisher": 0.85, "ggn": 0.85, "margin": 0.9, "empirical": 0.6}  # by source
SKETCHED = THRESHOLD | {"empirical": 0.85}
LEAST = 8  # rows of which halves can be taken


class Chosen(NamedTuple):
    """`value`: in units of the mean eigenvalue; `tried`: (damping, agreement) in order; `reached`: the agreement asked
    for was met somewhere in the range. At an end of the range a smaller one may do as well, or none."""

    value: float
    tried: tuple[tuple[float, float], ...]
    reached: bool

    def __str__(self) -> str:
        if not self.tried:
            return f"damping {self.value:.3g} x mean eigenvalue (given)"
        end = {1: ", the least that is tried", 2: ", the most that is tried"}.get(len(self.tried), "")
        agreed = f"halves agree at {dict(self.tried)[self.value]:.2f}{end}"
        return f"damping {self.value:.3g} x mean eigenvalue ({agreed})"


def check(count: int, what: str, cure: str, rows: str = "rows") -> None:
    """Are there rows enough to halve?

    Raises:
        UsageError: no.
    """
    if count < LEAST:
        raise UsageError(
            f"the damping of {what} cannot be chosen from {count} {rows} (at least {LEAST}); give one: {cure}"
        )


def given(value: float) -> Chosen:
    return Chosen(value, (), True)


def choose(agreement: Callable[[float], float], threshold: float) -> Chosen:
    """Bisection on a log scale for the smallest damping whose `agreement` reaches the threshold; the largest of the
    range where none does."""
    tried: list[tuple[float, float]] = []

    def enough(value: float) -> bool:
        tried.append((value, float(agreement(value))))
        return tried[-1][1] >= threshold

    low, high = np.log10(LOW), np.log10(HIGH)
    if enough(10.0**low):
        return Chosen(10.0**low, tuple(tried), True)
    if not enough(10.0**high):
        return Chosen(10.0**high, tuple(tried), False)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(10.0**middle) else (middle, high)
    return Chosen(10.0**high, tuple(tried), True)


def correlation(one: Any, other: Any) -> float:
    """Median over queries of Pearson's correlation of two score tables `[N, Q]`; queries without scores are left
    out."""
    one, other = (np.asarray(x, np.float64) - np.mean(np.asarray(x, np.float64), 0) for x in (one, other))
    size = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    kept = size > 0
    return float(np.median((one * other).sum(0)[kept] / size[kept])) if kept.any() else 1.0
