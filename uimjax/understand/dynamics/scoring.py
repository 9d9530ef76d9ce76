"""Scores of examples from statistics of their training, with the definition of each and the switches that papers
differ by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from uimjax.errors import UsageError
from uimjax.understand.dynamics.collector import Statistics

NEVER_LEARNED = {"meetings": None, "cartography": 1000.0, "infinity": float("inf")}


@dataclass(frozen=True)
class Definitions:
    """Where papers and their code differ.

    `never_learned`: what forgetting says of an example that was never right: "meetings" (their number, Toneva et al.
    2018, arXiv 1812.05159), "cartography" (1000), "infinity" (as data_diet), or a number. `variability`: "population"
    standard deviation, or "widened", sqrt(v + v^2 / (T - 1)), cartography's `include_ci`. `el2n_squared`: means
    of the squared norm.
    """

    never_learned: str | float = "meetings"
    variability: Literal["population", "widened"] = "population"
    el2n_squared: bool = False

    def __post_init__(self):
        if isinstance(self.never_learned, str) and self.never_learned not in NEVER_LEARNED:
            raise UsageError(f"never_learned={self.never_learned!r}: one of {', '.join(NEVER_LEARNED)} or a number")
        if not isinstance(self.never_learned, str) and not self.never_learned >= 0:  # NaN is not, either
            raise UsageError(f"never_learned={self.never_learned}: a number of forgettings, from 0 on, was wanted")
        if self.variability not in ("population", "widened"):
            raise UsageError(f"variability={self.variability!r}: 'population' or 'widened' was wanted")


class Score(NamedTuple):
    """`values` `[N]`, the formula, and whether a suspicious example has a large one (+1) or a small one (-1); 0: the
    score is no detector."""

    values: np.ndarray
    formula: str
    suspicious: int


DEFAULT = Definitions()


def scores(found: Statistics, how: Definitions = DEFAULT, margins: str = "logits") -> dict[str, Score]:
    """Every score that the statistics hold, by name; `margins` is the collector's."""
    met = found.met.astype(float)
    right = found.correct >= 0
    of_counts: Callable[[np.ndarray], np.ndarray] = lambda x: np.where(right & (met > 0), x, np.nan)  # noqa: E731
    deviation = np.sqrt(found.variance)
    if how.variability == "widened":
        deviation = np.sqrt(found.variance + found.variance**2 / np.maximum(met - 1, 1))
    sentinel = NEVER_LEARNED[how.never_learned] if isinstance(how.never_learned, str) else float(how.never_learned)
    never = met if sentinel is None else np.full_like(met, sentinel)
    forgetting = np.where(found.correct > 0, found.forgotten.astype(float), never)
    aleatoric = found.probability - found.probability**2 - found.variance
    first = np.where(found.first >= 0, found.first, np.inf)
    norm = "|p - onehot(y)|^2" if how.el2n_squared else "|p - onehot(y)|"
    el2n = found.el2n_squared if how.el2n_squared else found.el2n
    aum = "mean of z_y - max_{k != y} z_k" if margins == "logits" else "mean of p_y - max_{k != y} p_k"
    made = {
        "aum": Score(found.margin, aum, -1),
        "confidence": Score(found.probability, "mean of p_y", -1),
        "variability": Score(deviation, f"{how.variability} standard deviation of p_y", 0),
        "correctness": Score(of_counts(found.correct.astype(float)), "meetings at which y was the largest logit", -1),
        "threshold_closeness": Score(
            found.probability * (1 - found.probability), "m (1 - m), m the mean of p_y", 0
        ),
        "aleatoric": Score(aleatoric, "mean of p_y (1 - p_y), Data-IQ", 0),
        "forgetting": Score(of_counts(forgetting), f"times right, then wrong; never right: {how.never_learned}", 1),
        "first_learned": Score(of_counts(first), "first right meeting; infinite: never", 1),
        "presentations_to_learn": Score(of_counts(found.learned.astype(float)), "meetings until it stayed right", 1),
        "loss_mean": Score(found.loss, "mean of -log p_y, nats", 1),
        "loss_final": Score(found.last_loss, "newest -log p_y, nats", 1),
        "el2n": Score(el2n, f"mean of {norm}", 1),
        "grand": Score(found.grand, "mean of the norm of the example's gradient", 1),
    }  # fmt: skip
    for k, meeting in enumerate(found.chosen):
        at = found.at["el2n"][:, k]
        made[f"el2n_{meeting}"] = Score(at**2 if how.el2n_squared else at, f"{norm} at meeting {meeting}", 1)
        made[f"grand_{meeting}"] = Score(found.at["grand"][:, k], f"GraNd at meeting {meeting}", 1)
    return {name: score for name, score in made.items() if not np.isnan(score.values).all()}


def suspicion(score: Score) -> np.ndarray:
    """Larger is more suspicious; examples that were never met are the least."""
    values = score.values * (score.suspicious or 1)
    return np.where(np.isnan(values), -np.inf, values)
