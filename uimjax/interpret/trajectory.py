"""Scores summed over checkpoints of the training run: `sum_k eta_k score_k` (TracInCP, arXiv 2002.08484; LESS for
cosines, arXiv 2402.04333).

What a model has learned well shows no gradient at the end of training: p(token) is 1 and its loss is flat. While it was
being learned, it did.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import UsageError
from uimjax.interpret.base import Scores
from uimjax.task import RELATIVE


class Checkpoint(NamedTuple):
    """A moment of a training run: its parameters, the learning `rate` there, how many `steps` it stands for (SOURCE),
    and the optimizer's state where a method reads it (LESS)."""

    params: Any
    rate: float = 1.0
    steps: int = 1
    optimizer: Any = None


def is_run(params: Any) -> bool:
    """A sequence of checkpoints was passed where parameters may stand."""
    return isinstance(params, list | tuple) and bool(params) and all(isinstance(x, Checkpoint) for x in params)


def run_of(params: Any) -> list[Checkpoint]:
    """The checkpoints; parameters alone are one."""
    if isinstance(params, Checkpoint):
        return [params]
    return list(params) if is_run(params) else [Checkpoint(params)]


def over_checkpoints(scores: Sequence[Scores], rates: Sequence[float]) -> Scores:
    """The mean weighted by the learning rates `eta_k`. One checkpoint alone keeps its scores and unit.

    Raises:
        UsageError: no scores, lengths that differ, scores of several methods, or no positive rate.
    """
    if not scores or len(scores) != len(rates) or not sum(rates) > 0 or min(rates) < 0:
        raise UsageError(
            f"{len(scores)} checkpoints' scores and rates {list(rates)}; one positive rate each was wanted"
        )
    if len({s.method for s in scores}) > 1:
        raise UsageError(f"scores of several methods cannot be summed: {sorted({s.method for s in scores})}")
    if len(scores) == 1:
        return scores[0]
    values = np.tensordot(np.asarray(rates) / sum(rates), np.stack([s.values for s in scores]), 1)
    return Scores(values, f"{scores[0].method}, {len(scores)} checkpoints", RELATIVE)
