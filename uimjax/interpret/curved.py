"""The Kronecker curvature of a task over its training rows, with the damping given or chosen by agreement of halves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
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
FORMED_BYTES = 256 << 20  # that their gradients may take where they must be formed
SEED = 0  # of which rows are in which half


def curvature(
    choice: Kronecker, task: Task, laid: Laid, params: Any, data: Any, asked: Laid, queries: Any, how: Pass
) -> tuple[Rotated, Chosen]:
    """The damped curvature over all rows. Where the choice leaves the damping open, the statistics of two halves are
    taken apart on the way (half as much work again) and must agree on the queries' scores.

    Raises: as `kronecker.measure` and `source.gradients`.
    """
    made = source.gradients(choice.source, task, laid, params, data)
    kept = resume.passes(how, choice, [made], params, data)
    if choice.damping is not None:
        inverse = kronecker.measure(choice, made, params, lambda: how.over(data), kept)
        return damped(inverse, choice.damping), rule.given(choice.damping)
    whole, one, other = _halves(choice, made, params, data, how, kept)
    rows, some = _few(laid.sites, data, ROWS), _few(laid.sites, queries, QUERIES)
    seen = [(half, entering(laid)(params, rows, half.bases), entering(asked)(params, some, half.bases))
            for half in (one, other)]  # fmt: skip

    def agreement(value: float) -> float:
        return rule.correlation(*(_between(damped(half, value), *its) for half, *its in seen))

    chosen = rule.choose(agreement, rule.THRESHOLD[choice.source.kind])
    return damped(whole, chosen.value), chosen


def _few(found: Sites, rows: Any, most: int) -> Any:
    """At most so many rows, evenly spaced, and no more than fit where their gradients are formed."""
    fits = max(2, FORMED_BYTES // (4 * sum(leaf.size for leaf in found.used)))
    return row.spread(rows, min(most, fits))


_between = jax.jit(rotated.between)


def damped(inverse: Rotated, value: float) -> Rotated:
    """The same curvature with `value` times its mean eigenvalue added, of all parameters together: damping by parameter
    would lift those with large eigenvalues most, and scores are sums over parameters."""
    added = max(value * rotated.mean_value(inverse), float(jnp.finfo(jnp.float32).tiny))
    return inverse._replace(damping=dict.fromkeys(inverse.damping, added))


def _halves(
    choice: Kronecker, made: Gradients, params: Any, data: Any, how: Pass, kept: Callable[..., Kept | None]
) -> list[Rotated]:
    """The undamped curvatures of all rows, and of either half of them."""
    order = np.random.default_rng(SEED).permutation(row.count(data))
    ids = np.sort(order[: len(order) // 2 or 1]), np.sort(order[len(order) // 2 :])
    parts = [functools.partial(how.over, data, half) for half in ids]
    run = functools.partial(kronecker.run_pass, made=made, params=params)
    empty = dict.fromkeys(blocks.shapes(made.laid), (None, None))
    sums, bases = None, [empty] * 3
    if choice.kind != "diagonal":
        halves = [
            run("covariances", batches=part, bases=None, kept=kept("covariances", k, None))
            for k, part in enumerate(parts)
        ]
        sums = [_together(halves), *halves]
        bases = [statistics.eigenbases(its.sums) for its in sums]
    if sums is not None and choice.kind == "kfac":
        values = [kronecker.kfac_values(its, q) for its, q in zip(sums, bases, strict=True)]
    else:
        halves = [
            run("eigenvalues", batches=part, bases=q, kept=kept("eigenvalues", k, q))
            for k, (part, q) in enumerate(zip(parts, bases[1:], strict=True))
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
