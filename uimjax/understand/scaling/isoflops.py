"""The best size of each budget, read off parabolas, and its growth with compute (arXiv 2203.15556, approach 2)."""

from typing import NamedTuple

import numpy as np

from uimjax.errors import DataError, UnknownNameError, UsageError
from uimjax.understand.scaling.intervals import DRAWS, LEVEL, percentiles
from uimjax.understand.scaling.table import FLOPS, Table, column, numbers, read

NEAR = 0.1  # budgets within this, relatively, are one
FEWEST = 4  # runs of a budget


class Budget(NamedTuple):
    """Runs of one budget: sizes and losses, the parabola `c0 + c1 u + c2 u^2` of the loss in u = log N, its minimum;
    NaN where it has none among the runs."""

    compute: float
    sizes: np.ndarray
    losses: np.ndarray
    parabola: np.ndarray
    best_size: float
    best_loss: float


class IsoFLOP(NamedTuple):
    """`exponent` a of N* ~ C^a with its interval, the `budgets`, how many of them have a minimum, and the share of the
    draws that had none in two: the interval is of the others, and too narrow where that share is large."""

    exponent: float
    low: float
    high: float
    budgets: list[Budget]
    used: int
    failed: float


def isoflop(
    table: Table, *, columns: dict[str, str] | None = None, loss: str = "loss", draws: int = DRAWS, seed: int = 0
) -> IsoFLOP:
    """Fit a parabola in log N to the runs of each budget, and a power law to where the minima lie.

    Budgets are values of the column of compute (else 6 N D), those within a tenth taken together. The interval is that
    of `draws` resamples of the runs within each budget.

    Raises:
        DataError: fewer than two budgets of four runs and more have a minimum between their sizes. As `fit`.
    """
    held = read(table)
    given = dict(columns or {})
    for what in given:
        if what not in ("N", "C", "D"):
            raise UnknownNameError("column of an IsoFLOP profile", what, ("N", "C", "D"))
    if draws < 1:
        raise UsageError(f"draws={draws} arrived; at least one was wanted")
    names = {what: column(held, what, given) for what in ("N", "C", "D", "loss") if what != "loss"}
    target = column(held, "loss", {} if loss == "loss" and "loss" not in held else {"loss": loss})
    if target is None:
        raise UnknownNameError("column", loss, held)
    if names["N"] is None or (names["C"] is None and names["D"] is None):
        raise DataError(f"columns {', '.join(held)} arrived; a size N and C (or D) were wanted (columns={{...}})")
    size, value = numbers(held, names["N"], positive=True), numbers(held, target, positive=True)
    if names["C"] is not None:
        compute = numbers(held, names["C"], positive=True)
    else:
        compute = FLOPS * size * numbers(held, str(names["D"]), positive=True)
    groups = _groups(compute)
    budgets = [_budget(float(np.exp(np.log(compute[k]).mean())), size[k], value[k]) for k in groups]
    exponent = _exponent(budgets)
    if not np.isfinite(exponent):
        raise DataError(
            f"of {len(budgets)} budgets with {FEWEST} runs and more, {_used(budgets)} have a minimum between their "
            "sizes; at least two were wanted: add smaller and larger models at the same compute"
        )
    rng = np.random.default_rng(seed)
    each = np.array([_exponent([_drawn(budget, rng) for budget in budgets]) for _ in range(draws)])
    kept = each[np.isfinite(each)]
    if not len(kept):
        raise DataError(f"none of {draws} draws of these runs has two budgets with a minimum between their sizes, so "
                        "the exponent has no interval; add runs to each budget, or draws")  # fmt: skip
    low, high = percentiles(kept, LEVEL)
    return IsoFLOP(exponent, float(low), float(high), budgets, _used(budgets), 1 - len(kept) / draws)


def _groups(compute: np.ndarray) -> list[np.ndarray]:
    order, found = np.argsort(compute, kind="stable"), []
    for k in order:
        if found and compute[k] <= compute[found[-1][0]] * (1 + NEAR):
            found[-1].append(int(k))
        else:
            found.append([int(k)])
    return [np.array(group) for group in found if len(group) >= FEWEST]


def _budget(compute: float, sizes: np.ndarray, losses: np.ndarray) -> Budget:
    u = np.log(sizes)
    if len(np.unique(u)) < 3:
        return Budget(compute, sizes, losses, np.full(3, np.nan), np.nan, np.nan)
    shift = u.mean()
    c2, c1, c0 = np.polyfit(u - shift, losses, 2)
    parabola = np.array([c0 - c1 * shift + c2 * shift**2, c1 - 2 * c2 * shift, c2])
    at = shift - c1 / (2 * c2) if c2 > 0 else np.nan
    if not u.min() <= at <= u.max():
        return Budget(compute, sizes, losses, parabola, np.nan, np.nan)
    return Budget(compute, sizes, losses, parabola, float(np.exp(at)), float(c0 - c1**2 / (4 * c2)))


def _drawn(budget: Budget, rng: np.random.Generator) -> Budget:
    kept = rng.integers(len(budget.sizes), size=len(budget.sizes))
    return _budget(budget.compute, budget.sizes[kept], budget.losses[kept])


def _used(budgets: list[Budget]) -> int:
    return sum(bool(np.isfinite(budget.best_size)) for budget in budgets)


def _exponent(budgets: list[Budget]) -> float:
    found = [(np.log(b.compute), np.log(b.best_size)) for b in budgets if np.isfinite(b.best_size)]
    if len(found) < 2:
        return float("nan")
    compute, size = np.array(found).T
    return float(np.polyfit(compute, size, 1)[0])
