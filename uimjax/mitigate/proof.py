"""The triple: the traced fix beside the oracle's and a random one of equal size, and what may be said of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from uimjax.errors import UsageError

SEEDS = 3  # least repetitions for a verdict
ORACLE, TRACED, RANDOM = 0.8, 0.9, 0.2  # gates: mitigate by design, frozen before any run


class Utility(NamedTuple):
    """What a fix may cost elsewhere: at most `most`, in points of a rate, or as a share of a loss's rise."""

    name: str
    most: float
    is_loss: bool = False

    def cost(self, before: float, after: float) -> float:
        return after / before - 1.0 if self.is_loss else before - after

    def says(self, cost: float) -> str:
        return (
            f"the {self.name} rises by {cost:.1%}"
            if self.is_loss
            else f"it costs {100 * cost:.1f} points of {self.name}"
        )


ACCURACY = Utility("accuracy", 0.01)
HELD_OUT_LOSS = Utility("loss on clean held-out text", 0.02, is_loss=True)


class Outcome(NamedTuple):
    """One edit carried out: the probe and the utility after it, and what is reported beside them."""

    probe: float
    utility: float
    also: dict[str, float] | None = None


class Verdict(NamedTuple):
    """Means over draws and seeds. `closed_*`: share of the gap to the clean twin; `spread`: standard deviation of the
    traced arm's probe. `says`: "fixed", "not fixed", or why nothing can be said."""

    probe_clean_twin: float
    probe_before: float
    probe_after_traced: float
    probe_after_oracle: float
    probe_after_random: float
    closed_traced: float
    closed_oracle: float
    closed_random: float
    spread: float
    utility_before: float
    utility_after: float
    says: str


def judge(
    twin: float,
    before: Outcome,
    traced: Sequence[Outcome],
    oracle: Sequence[Outcome],
    random: Sequence[Outcome],
    kind: Utility = ACCURACY,
    least: float = 0.1,
) -> Verdict:
    """Weigh the arms. Without a random control, or with fewer than three repetitions, nothing is called fixed; `least`
    is the gap to the clean twin, in the probe's unit, below which nothing failed.

    Raises:
        UsageError: an arm is missing.
    """
    if not traced or not oracle or not random:
        raise UsageError("a verdict needs the traced, the oracle and the random arm; one has no outcome")
    gap = before.probe - twin
    means = [float(np.mean([o.probe for o in arm])) for arm in (traced, oracle, random)]
    closed = [(before.probe - mean) / gap if gap > 0 else 0.0 for mean in means]
    utility = float(np.mean([o.utility for o in traced]))
    return Verdict(
        probe_clean_twin=twin,
        probe_before=before.probe,
        probe_after_traced=means[0],
        probe_after_oracle=means[1],
        probe_after_random=means[2],
        closed_traced=closed[0],
        closed_oracle=closed[1],
        closed_random=closed[2],
        spread=float(np.std([o.probe for o in traced])),
        utility_before=before.utility,
        utility_after=utility,
        says=_says(
            gap, least, closed, kind, kind.cost(before.utility, utility), min(len(traced), len(oracle), len(random))
        ),
    )


def _says(gap: float, least: float, closed: Sequence[float], kind: Utility, cost: float, repeats: int) -> str:
    traced, oracle, random = closed
    if gap < least:
        return f"no failure to fix: the probe is within {least:g} of the clean twin"
    if repeats < SEEDS:
        return f"no verdict from {repeats} repetition(s); at least {SEEDS} are needed"
    if random > RANDOM:
        return f"no verdict: forgetting random rows closes {random:.0%} of the gap too"
    if oracle < ORACLE:
        return f"not fixed: even the planted rows close only {oracle:.0%} of the gap"
    if traced < TRACED * min(oracle, 1.0):  # beyond the clean twin nothing is left to mend
        return f"not fixed: the traced rows close {traced:.0%} of the gap, the planted ones {oracle:.0%}"
    if cost > kind.most:
        return f"not fixed: {kind.says(cost)}"
    return "fixed"


def over_seeds(
    twin: Sequence[float],
    before: Sequence[float],
    after: Mapping[str, Sequence[float]],
    cost: Sequence[float],
    least: float,
    kind: Utility = HELD_OUT_LOSS,
) -> dict[str, float | str]:
    """The same verdict where every seed has a training, a twin and edits of its own: `closed_*` is the share of the
    mean gap to the twins that the mean of an arm closes. `cost`: of the traced fix, in the utility's unit."""
    gap = float(np.mean(before) - np.mean(twin))
    closed = {arm: float(np.mean(before) - np.mean(after[arm])) / gap if gap > 0 else 0.0 for arm in after}
    repeats = min(len(values) for values in (twin, before, *after.values()))
    says = _says(gap, least, [closed[a] for a in ("traced", "oracle", "random")], kind, float(np.mean(cost)), repeats)
    return {f"closed_{arm}": share for arm, share in closed.items()} | {"verdict": says}
