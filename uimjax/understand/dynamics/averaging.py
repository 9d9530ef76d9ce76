"""Several seeds of one run as one table: means of scores and statistics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uimjax.errors import MismatchError, UsageError
from uimjax.understand.dynamics.collector import Statistics
from uimjax.understand.dynamics.table import PER_EXAMPLE, Table


def averaged(tables: Sequence[Table]) -> Table:
    """Means over seeds of each score and statistic: EL2N and GraNd are such means in their paper (Paul et al. 2021,
    arXiv 2107.07075, ten networks). Of an example that a seed never met, over the others; counts become fractions, and
    `variance` is the mean of the variances within seeds. `first` is over the seeds in which it was ever right.

    Raises:
        UsageError: no tables. MismatchError: other ids, labels, definitions, scores or kept meetings.
    """
    if not tables:
        raise UsageError("no tables arrived; averaged([table, ...]) takes one a seed")
    first = tables[0]
    for k, other in enumerate(tables[1:], 1):
        differ = [
            name
            for name, same in (
                ("ids", np.array_equal(first.ids, other.ids)),
                ("labels", _same(first.labels, other.labels)),
                ("definitions", first.metadata.get("definitions") == other.metadata.get("definitions")),
                ("scores", list(first.scores) == list(other.scores)),
                ("statistics", (first.statistics is None) == (other.statistics is None)),
                ("rings", first.metadata.get("ring") == other.metadata.get("ring")),
                ("tokens", first.metadata.get("tokens") == other.metadata.get("tokens")),
            )
            if not same
        ]
        if differ:
            raise MismatchError(f"table {k} has other {', '.join(differ)} than table 0; seeds of one run were wanted")
    mean = {name: s._replace(values=_mean([t.scores[name].values for t in tables])) for name, s in first.scores.items()}
    losses = None if any(t.losses is None for t in tables) else _mean([t.losses for t in tables])
    inner = [t.statistics for t in tables if t.statistics is not None]
    seeds = [t.metadata.get("seed") for t in tables]
    metadata = first.metadata | {"seed": None, "seeds": seeds}
    return first._replace(
        scores=mean, statistics=_mean_statistics(inner) if inner else None, losses=losses, metadata=metadata
    )


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None) == (b is None) and (a is None or np.array_equal(a, np.asarray(b)))


def _mean(values: Sequence[Any]) -> np.ndarray:
    """Over the first axis, of what is not NaN; NaN where everything is."""
    stacked = np.stack([np.asarray(x, np.float64) for x in values])
    there = ~np.isnan(stacked)
    return np.where(there.any(0), np.where(there, stacked, 0).sum(0) / np.maximum(there.sum(0), 1), np.nan)


def _mean_statistics(many: Sequence[Statistics]) -> Statistics:
    """Of what a seed did not collect (-1) or never met, over the others."""
    found = {name: _mean([_known(s, name) for s in many]) for name in PER_EXAMPLE}
    found |= {"losses": _mean([s.losses for s in many]), "met": np.nan_to_num(found["met"])}
    at = {name: _mean([s.at[name] for s in many]) for name in many[0].at}
    inner = [s.tokens for s in many if s.tokens is not None]
    tokens = _mean_statistics(inner) if len(inner) == len(many) else None
    return many[0]._replace(**found, at=at, tokens=tokens)


def _known(statistics: Statistics, name: str) -> np.ndarray:
    """A statistic; NaN where it is no count at all."""
    values = np.asarray(getattr(statistics, name), np.float64)
    if name in ("correct", "forgotten", "first", "learned"):
        return np.where((values >= 0) & (statistics.met > 0), values, np.nan)
    return np.where(statistics.met > 0, values, np.nan) if name == "met" else values
