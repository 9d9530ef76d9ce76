"""The curvature of sketched rows, its damping given or chosen by agreement of halves."""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from uimjax.curvature import Curvature, damped
from uimjax.curvature import damping as rule
from uimjax.curvature.damping import Chosen
from uimjax.curvature.projected import agreement
from uimjax.errors import UsageError

ROWS, QUERIES = 128, 32  # training rows that score each other, by the curvatures of both halves
LEAST = 8  # rows of which halves can be taken
SEED = 0  # of which rows are in which half


def curvature(
    choice: Curvature,
    blocks: tuple[tuple[int, int], ...],
    count: int,
    parts: Iterable[tuple[np.ndarray, Any]],
    seen: Callable[[np.ndarray], Any] | None = None,
) -> tuple[Any, Chosen | None]:
    """(the finished curvature, its damping and the evidence) of `count` training rows that come in `parts`:
    `(ids [B], rows [B x draws, D])`, every row once.

    Where the damping is open, some training rows are scored as if others were queries, so it depends on no question:
    one index has one damping. `seen`: from ids to the rows to be scored, where `parts` holds those of another source.

    Raises:
        NonFiniteError: as `Curvature.finish`. UsageError: too few rows to halve.
    """
    if choice.damping is not None:
        state = choice.init(blocks)
        for ids, rows in parts:
            state = choice.add(state, choice.batch(blocks, rows), len(ids))
        return choice.finish(state), rule.given(choice.damping) if choice.damping else None
    if count < LEAST:
        raise UsageError(
            f"the damping of {choice.name} cannot be chosen from {count} rows (at least {LEAST}); give one: "
            "projected(damping=0.1)"
        )
    first, scored, asked = _halved(count)
    wanted, kept = np.concatenate([scored, asked]), {}
    whole, halves = choice.init(blocks), [choice.init(blocks) for _ in range(2)]
    for ids, rows in parts:
        for k, half in enumerate((first[ids], ~first[ids])):
            inside = jnp.where(np.repeat(half, len(rows) // len(ids))[:, None], rows, 0)
            sums = tuple(np.asarray(x, np.float64) for x in choice.batch(blocks, inside))
            halves[k] = choice.add(halves[k], sums, int(half.sum()))
            whole = choice.add(whole, sums, int(half.sum()))
        if seen is None and (here := np.isin(ids, wanted)).any():
            kept |= dict(zip(ids[here].tolist(), np.asarray(rows)[here], strict=True))
    few = np.stack([kept[i] for i in wanted.tolist()]) if seen is None else np.asarray(seen(wanted))
    agree = agreement((halves[0], halves[1]), few[: len(scored)], few[len(scored) :])
    chosen = rule.choose(agree, rule.SKETCHED[choice.source.kind])
    return damped(choice.finish(whole), chosen.value), chosen


def _halved(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(`[N]` bool, the first half; ids of rows to be scored; ids of others that stand for queries)."""
    rng, first = np.random.default_rng(SEED), np.zeros(count, bool)
    first[rng.permutation(count)[: count // 2]] = True
    order, queries = rng.permutation(count), min(QUERIES, count // 4)
    return first, order[queries : queries + ROWS], order[:queries]
