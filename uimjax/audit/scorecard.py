"""How well a tracing found what was planted. It reads the truth, after the edit was decided."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from uimjax.corpora.truth import read_truth


class Found(NamedTuple):
    """Of one ranking: average precision, recall among the top |P|, and hard negatives taken for positives there."""

    ap: float
    recall: float
    hard_negatives: int


def scorecard(truth: Path, decided: Path, scores: dict[str, np.ndarray]) -> tuple[float, dict[str, Found]]:
    """(base rate, {method: Found}). Scores `[N]`, high = suspicious; on a tie the lower id stands first."""
    from sklearn.metrics import average_precision_score  # takes seconds to import, and most commands need none of it

    known = read_truth(truth, decided)
    count = len(next(iter(scores.values())))
    planted = np.zeros(count, bool)
    planted[known.positives] = True
    found = {}
    for name, values in scores.items():
        top = np.argsort(-values, kind="stable")[: planted.sum()]
        found[name] = Found(
            float(average_precision_score(planted, values)),
            float(planted[top].mean()),
            int(np.isin(top, known.hard_negatives).sum()),
        )
    return float(planted.mean()), found
