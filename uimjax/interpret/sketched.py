"""The curvature of sketched rows, its damping given or chosen by agreement of halves."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import factors
from uimjax import sketch as sketching
from uimjax.curvature import Curvature, Source, damped, source
from uimjax.curvature import damping as rule
from uimjax.curvature.blocks import Laid
from uimjax.curvature.damping import Chosen
from uimjax.curvature.projection import agreement
from uimjax.rows import Pass
from uimjax.sketch import AnySketch
from uimjax.taps import Sites, capture
from uimjax.task import Task

ROWS, QUERIES = 128, 32  # training rows that score each other, by the curvatures of both halves
SEED = 0  # of which rows are in which half


class Part(NamedTuple):
    """Some training rows: their `ids` `[B]`, their `own` rows `[B, D]`, which are scored, and the `rows` `[B x draws,
    D]` of the curvature's source."""

    ids: np.ndarray
    own: Any
    rows: Any


def curvature(
    choice: Curvature, blocks: tuple[tuple[int, int], ...], count: int, parts: Iterable[Part]
) -> tuple[Any, Chosen | None]:
    """(the finished curvature, its damping and the evidence) of `count` training rows, each in one of
    the `parts`.

    Where the damping is open, some training rows are scored as if others were queries, so it depends on no question:
    one index has one damping.

    Raises:
        NonFiniteError: as `Curvature.finish`. UsageError: too few rows to halve.
    """
    if choice.damping is not None:
        state = choice.init(blocks)
        for ids, _, rows in parts:
            state = choice.add(state, choice.batch(blocks, rows), len(ids))
        return choice.finish(state), rule.given(choice.damping) if choice.damping else None
    rule.check(count, choice.name, "projected(damping=0.1)")
    first, scored, asked = _halved(count)
    wanted, seen = np.concatenate([scored, asked]), {}
    whole, halves = choice.init(blocks), [choice.init(blocks) for _ in range(2)]
    for ids, own, rows in parts:
        for k, half in enumerate((first[ids], ~first[ids])):
            inside = jnp.where(np.repeat(half, len(rows) // len(ids))[:, None], rows, 0)
            sums = tuple(np.asarray(x, np.float64) for x in choice.batch(blocks, inside))
            halves[k] = choice.add(halves[k], sums, int(half.sum()))
            whole = choice.add(whole, sums, int(half.sum()))
        if (here := np.isin(ids, wanted)).any():
            seen |= dict(zip(ids[here].tolist(), np.asarray(own)[here], strict=True))
    few = np.stack([seen[i] for i in wanted.tolist()])
    agree = agreement((halves[0], halves[1]), few[: len(scored)], few[len(scored) :])
    chosen = rule.choose(agree, rule.SKETCHED[choice.source.kind])
    return damped(choice.finish(whole), chosen.value), chosen


def by_source(
    choice: Source, task: Task, found: Sites, sketch: AnySketch | None, params: Any, data: Any, how: Pass
) -> Iterator[Part]:
    """The training rows of a curvature of that source, batch by batch, padding left out. Where the loss's gradients are
    multiples of the source's, as of one class and its margin, one sketch makes both.

    Raises: as `source.gradients`.
    """
    made = source.gradients(choice, task, Laid(found, ()), params, data)
    program, drawn = _program(made, found, sketch), sketching.drawn(found, sketch)
    for batch in how.over(data):
        own, rows = program(params, batch.rows, np.maximum(batch.ids, 0), drawn)
        count = int(batch.mask.sum())  # padding stands at the end
        yield Part(batch.ids[batch.mask], own[:count], rows[: count * made.draws])


def kept(parts: Iterable[Part], into: list[Any]) -> Iterator[Part]:
    """The same parts, their rows to score appended as they pass."""
    for part in parts:
        into.append(part.own)
        yield part


@functools.lru_cache(maxsize=16)
def _program(made: source.Gradients, found: Sites, sketch: AnySketch | None):
    """Compiled `(params, rows, ids, drawn) -> (rows of the loss [B, D], rows of the source [B x draws, D])`."""

    def program(params: Any, rows: Any, ids: Any, drawn: Any) -> tuple[Any, Any]:
        own = capture(found, params, rows)[1]
        apart = lambda: sketching.rows(found, sketch, drawn, own, found)  # noqa: E731
        if made.plain:
            return (alone := apart()), alone
        theirs = source.factors(made.laid.sites, made.plain, params, rows, ids)
        of_source = sketching.rows(made.laid.sites, sketch, drawn, theirs, found)
        known = factors.multiple(own, theirs) if made.draws == 1 else None
        if known is None:
            return apart(), of_source
        ratio, fits = known
        return jax.lax.cond(fits.all(), lambda: ratio.astype(of_source.dtype)[:, None] * of_source, apart), of_source

    return jax.jit(program)


def _halved(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(`[N]` bool, the first half; ids of rows to be scored; ids of others that stand for queries)."""
    rng, first = np.random.default_rng(SEED), np.zeros(count, bool)
    first[rng.permutation(count)[: count // 2]] = True
    order, queries = rng.permutation(count), min(QUERIES, count // 4)
    return first, order[queries : queries + ROWS], order[:queries]
