"""The Kronecker curvature of a task over its training rows, with the damping given or chosen by agreement of halves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import store
from uimjax.curvature import blocks, kronecker, rotated, source, statistics
from uimjax.curvature import damping as rule
from uimjax.curvature.blocks import Laid
from uimjax.curvature.damping import Chosen
from uimjax.curvature.kronecker import Kept, Kronecker, Sums
from uimjax.curvature.rotated import Rotated
from uimjax.curvature.source import Gradients
from uimjax.interpret import resume
from uimjax.rows import Pass
from uimjax.taps import Sites, capture
from uimjax.task import Task

ROWS, QUERIES = 128, 32  # whose scores the halves have to agree on
HALVES = "even", "odd"  # as their sums are kept
READ = 4096  # rows digested at once
FORMED_BYTES = 256 << 20  # that their gradients may take where they must be formed


def curvature(
    choice: Kronecker, task: Task, laid: Laid, params: Any, data: Any, asked: Laid, queries: Any, how: Pass,
    cure: str = "",
) -> tuple[Rotated, Chosen]:  # fmt: skip
    """The damped curvature over all rows. Where the choice leaves the damping open, the statistics of two halves are
    taken apart on the way (half as much work again) and must agree on the queries' scores. Which row is in which half
    follows from its contents, so the order of the rows changes nothing but rounding. `cure`: how the caller's own
    choice is given a damping.

    Raises: UsageError: too few distinct rows to halve. As `kronecker.measure` and `source.gradients`.
    """
    made = source.gradients(choice.source, task, laid, params, data)
    kept = resume.passes(how, choice, [made], params, data)
    if choice.damping is not None:
        inverse = kronecker.measure(choice, made, params, lambda: how.over(data), kept)
        return damped(inverse, choice.damping), rule.given(choice.damping)
    contents = digests(data)
    own = f"Kronecker({choice.kind!r}, Source({choice.source.kind!r}), damping=0.1)"
    rule.check(len(np.unique(contents)), str(choice), cure or own, "distinct rows")
    whole, one, other = _halves(choice, made, params, data, halves(contents), how, kept)
    rows, some = (
        _few(its.sites, x, np.argsort(d, kind="stable"), most)
        for its, x, d, most in ((laid, data, contents, ROWS), (asked, queries, digests(queries), QUERIES))
    )
    seen = [(half, entering(laid)(params, rows, half.bases), entering(asked)(params, some, half.bases))
            for half in (one, other)]  # fmt: skip

    def agreement(value: float) -> float:
        return rule.correlation(*(_between(damped(half, value), *its) for half, *its in seen))

    chosen = rule.choose(agreement, rule.THRESHOLD[choice.source.kind])
    return damped(whole, chosen.value), chosen


def digests(rows: Any) -> np.ndarray:
    """Of each row's bytes, `[N]`: an order by them is as good as random, and of the rows' contents alone."""
    found = [store.digest_rows(batch.rows)[batch.mask] for batch in row.batches(rows, min(READ, row.count(rows)))]
    return np.concatenate(found)


def halves(contents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of every second distinct row by its digest, and of the others. Rows that stand twice stay together: in both
    halves they would make them agree whatever the noise."""
    rank = np.unique(contents, return_inverse=True)[1]
    return np.flatnonzero(rank % 2 == 0), np.flatnonzero(rank % 2 == 1)


def _few(found: Sites, rows: Any, order: np.ndarray, most: int) -> Any:
    """At most so many rows, and no more than fit where their gradients are formed."""
    fits = max(2, FORMED_BYTES // (4 * sum(leaf.size for leaf in found.used)))
    return row.take(rows, order[: min(most, fits)])


_between = jax.jit(rotated.between)


def damped(inverse: Rotated, value: float) -> Rotated:
    """The same curvature with `value` times its mean eigenvalue added, of all parameters together: damping by parameter
    would lift those with large eigenvalues most, and scores are sums over parameters."""
    added = max(value * rotated.mean_value(inverse), float(jnp.finfo(jnp.float32).tiny))
    return inverse._replace(damping=dict.fromkeys(inverse.damping, added))


def _halves(
    choice: Kronecker, made: Gradients, params: Any, data: Any, ids: tuple[np.ndarray, np.ndarray], how: Pass,
    kept: Callable[..., Kept | None],
) -> list[Rotated]:  # fmt: skip
    """The undamped curvatures of all rows, and of either half of them."""
    parts = [functools.partial(how.over, data, half) for half in ids]
    run = functools.partial(kronecker.run_pass, made=made, params=params)
    empty = dict.fromkeys(blocks.shapes(made.laid), (None, None))
    sums, bases = None, [empty] * 3
    if choice.kind != "diagonal":
        halves = [
            run("covariances", batches=part, bases=None, kept=kept("covariances", half, None))
            for half, part in zip(HALVES, parts, strict=True)
        ]
        sums = [_together(halves), *halves]
        bases = [statistics.eigenbases(its.sums) for its in sums]
    if sums is not None and choice.kind == "kfac":
        values = [kronecker.kfac_values(its, q) for its, q in zip(sums, bases, strict=True)]
    else:
        halves = [
            run("eigenvalues", batches=part, bases=q, kept=kept("eigenvalues", half, q))
            for half, part, q in zip(HALVES, parts, bases[1:], strict=True)
        ]
        if choice.kind == "diagonal":
            whole = _together(halves)
        else:
            whole = run(
                "eigenvalues", batches=lambda: how.over(data), bases=bases[0], kept=kept("eigenvalues", bases[0])
            )
        values = [kronecker.eigenvalues(its) for its in (whole, *halves)]
    return [Rotated(q, v, dict.fromkeys(q, 0.0)) for q, v in zip(bases, values, strict=True)]


def _together(halves: list[Sums]) -> Sums:
    one, other = halves
    return Sums(jax.tree.map(jnp.add, one.sums, other.sums), one.examples + other.examples)


def laid_out(found: Sites, params: Any, rows: Any, like: Laid | None = None) -> Laid:
    """The blocks of a loss, read off a few of its rows."""
    return blocks.lay_out(found, _captured(found)(params, blocks.some(found, rows)), like)


@functools.lru_cache(maxsize=32)
def _captured(found: Sites):
    return jax.jit(lambda params, rows: capture(found, params, rows)[1])


def inside(laid: Laid, params: Any, rows: Any, bases: Any) -> dict[str, Any]:
    """The gradients of a batch in the rotated basis; jittable."""
    return rotated.enter(blocks.blocks(laid, capture(laid.sites, params, rows)[1]), bases)


@functools.lru_cache(maxsize=32)
def entering(laid: Laid):
    """Compiled `(params, rows, bases) -> rotated gradients`."""
    return jax.jit(functools.partial(inside, laid))
