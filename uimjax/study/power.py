"""How many raters and outputs a study takes: simulated studies, judged as real ones are, in how many the effect shows.

Pairwise: rater r prefers the mended answer to output i with probability sigmoid(m + u_r + v_i), u ~ N(0, raters^2), v ~
N(0, items^2), m so that the mean over all raters and outputs is .5 + effect. Likert: a rating is 1 to `scale`, rounded
from its middle + u_r + v_i + noise, such that the answers differ by `effect` points in the mean. It shows where the
interval of `judged_mean` lies above no effect.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import UsageError
from uimjax.study.effect import judged_mean
from uimjax.study.sheets import KINDS

DRAWS = 200  # of clusters, for one interval
SHARED = 512  # of the population, that fix a mean
SHOWN = 100_000  # ratings that fix what of an effect shows


@dataclass(frozen=True)
class World:
    """`effect`: over .5 of a share, or in points of a scale; `raters`, `items`: standard deviations of what a rater and
    an output add, in logits or points; `noise`: of a single rating, in points; `ties`: share of answers that are."""

    kind: str = "pairwise"
    effect: float = 0.1
    raters: float = 0.5
    items: float = 0.5
    noise: float = 1.0
    scale: int = 5
    ties: float = 0.0


class Power(NamedTuple):
    """Of a design: in which share of the simulated studies the effect shows, give or take `error` (standard error)."""

    raters: int
    items: int
    power: float
    error: float


def check_world(world: World) -> None:
    """Raises UsageError."""
    if world.kind not in KINDS:
        raise UsageError(f"--kind {world.kind}: one of {', '.join(KINDS)} was wanted")
    most = 0.5 if world.kind == "pairwise" else world.scale - 1
    if not 0 < world.effect < most:
        raise UsageError(
            f"--effect {world.effect}: between 0 and {most} ({'of a share, beyond .5' if most == 0.5 else 'points'})"
        )
    for name, value in (("rater-sd", world.raters), ("item-sd", world.items), ("noise", world.noise)):
        if value < 0:
            raise UsageError(f"--{name} {value}: 0 at least")
    if not 0 <= world.ties < 1 - 2 * world.effect * (world.kind == "pairwise"):
        raise UsageError(f"--ties {world.ties}: so many leave no room for an effect of {world.effect}")


def ratings(world: World, raters: int, items: int, rng: np.random.Generator) -> np.ndarray:
    """`[R, I]` of one study: of pairs 1 where the mended answer is preferred, .5 of a tie; of a scale its lead."""
    u, v = rng.normal(0, world.raters, raters)[:, None], rng.normal(0, world.items, items)
    if world.kind == "pairwise":
        wins = rng.random((raters, items)) < _sigmoid(_middle(world) + u + v)
        return np.where(rng.random((raters, items)) < world.ties, 0.5, wins.astype(float))
    return _scaled(world, _lead(world) + u + v, rng)


def _scaled(world: World, lead: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points of the mended answer less those of the other, where a rater finds it so much better."""
    noise = lambda: rng.normal(0, world.noise, lead.shape)  # noqa: E731  # of either rating
    before, after = ((1 + world.scale) / 2 + sign * lead / 2 + noise() for sign in (-1, 1))
    whole = lambda x: np.clip(np.round(x), 1, world.scale)  # noqa: E731  # what can be answered
    return whole(after) - whole(before)


def power(world: World, raters: int, items: int, draws: int = 300, seed: int = 0) -> Power:
    """Of one design.

    Raises:
        UsageError: as `check_world`, or a design of fewer than two raters or outputs.
    """
    check_world(world)
    if raters < 2 or items < 2:
        raise UsageError(f"{raters} raters and {items} outputs: two of either at least, or nothing is said of others")
    none, ends = (0.5, (0.0, 1.0)) if world.kind == "pairwise" else (0.0, (1.0 - world.scale, world.scale - 1.0))
    shows = 0
    for k in range(draws):
        rng = np.random.default_rng([seed, raters, items, k])
        shows += judged_mean(ratings(world, raters, items, rng), ends, seed=k, draws=DRAWS).low > none
    share = shows / draws
    return Power(raters, items, share, float(np.sqrt(max(share * (1 - share), 0.25 / draws) / draws)))


def designs(
    world: World, raters: Sequence[int], items: Sequence[int], draws: int = 300, seed: int = 0
) -> tuple[list[Power], Any]:
    """(all designs, the one with the fewest ratings that reaches 80%, or None)."""
    found = [power(world, r, i, draws, seed) for r in raters for i in items]
    able = [one for one in found if one.power >= 0.8]
    return found, min(able, key=lambda one: (one.raters * one.items, one.raters)) if able else None


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@functools.lru_cache(maxsize=64)
def _middle(world: World) -> float:
    """m, where sigmoid's mean over the normal population, ties among it, is .5 + effect."""
    z = float(np.hypot(world.raters, world.items)) * _normal()
    return _halved(lambda m: float(_sigmoid(m + z).mean()), 0.5 + world.effect / (1 - world.ties), 50.0)


@functools.lru_cache(maxsize=64)
def _lead(world: World) -> float:
    """What has to be added before rounding and the ends of the scale, for the effect to show in the answers."""
    return _halved(lambda m: _shown(world, m), world.effect, 2.0 * world.scale)


def _shown(world: World, lead: float) -> float:
    """The mean difference of points that are answered, over many raters and outputs."""
    rng = np.random.default_rng(0)
    spread = rng.normal(0, float(np.hypot(world.raters, world.items)), SHOWN)
    return float(_scaled(world, lead + spread, rng).mean())


def _halved(rises: Callable[[float], float], want: float, most: float) -> float:
    low, high = -most, most
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) < want else (low, middle)
    return (low + high) / 2


def _normal() -> np.ndarray:
    from scipy import stats

    return stats.norm.ppf((np.arange(SHARED) + 0.5) / SHARED)
