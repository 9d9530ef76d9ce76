"""After scores by few terms: the strongest rows of every query scored exactly, and the error of the rest measured."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.curvature import rotated, separable
from uimjax.curvature.blocks import Laid
from uimjax.interpret import curved
from uimjax.interpret.base import Method
from uimjax.interpret.exact import Ready, row_scale

CANDIDATES = 40  # strongest rows of a query, at either end, that are scored again
SAMPLED = 4096  # pairs drawn blindly, that the error is measured on
PAIRS, ROWS = 4096, 512  # at once


class Measured(NamedTuple):
    """What few terms did to the scores: Pearson's `correlation` with exact ones and the root mean square error as a
    share of their root mean square, over `pairs` drawn blindly; `rescored` pairs are exact."""

    correlation: float
    error: float
    pairs: int
    rescored: int


def rerank(
    its: Ready, params: Any, data: Any, queries: Any, method: Method, values: np.ndarray
) -> tuple[np.ndarray, Measured]:
    """`values` `[N, Q]` with the `CANDIDATES` strongest rows at either end of each query exact, and the error."""
    count, asked = values.shape
    k = min(CANDIDATES, count)
    top = [np.argpartition(sign * values, k - 1, axis=0)[:k] for sign in (-1, 1)]
    rng = np.random.default_rng(0)
    blind = min(SAMPLED, values.size)
    at = np.concatenate([np.concatenate(top).ravel() * asked + np.tile(np.arange(asked), 2 * k),
                         rng.choice(values.size, blind, replace=False)])  # fmt: skip
    wanted = np.unique(at)
    change = _changes(its, params, data, queries, method, wanted // asked, wanted % asked)
    sample = at[-blind:]
    exact = values.ravel()[sample] + change[np.searchsorted(wanted, sample)]
    off = exact - values.ravel()[sample]
    spread = np.sqrt(np.mean(exact**2))
    varies = min(exact.std(), values.ravel()[sample].std()) > 0
    related = np.corrcoef(exact, values.ravel()[sample])[0, 1] if varies else 1.0 - float(off.any())
    values = values.copy()
    values.ravel()[wanted] += change
    error = float(np.sqrt(np.mean(off**2)) / spread) if spread else 0.0
    return values, Measured(float(related), error, blind, len(wanted))


def _changes(its: Ready, params: Any, data: Any, queries: Any, method: Method, rows: Any, asked: Any) -> np.ndarray:
    """Exact less separable score of each pair (row, query); rows rising."""
    program = _program(its.laid, method.normalize)
    inside = _asked(its, params, queries, method)
    out, first = [], 0
    while first < len(rows):
        ids = np.unique(rows[first : first + PAIRS])[:ROWS]
        last = first + min(PAIRS, int(np.searchsorted(rows[first : first + PAIRS], ids[-1], side="right")))
        batch = next(row.selected(data, ids, ROWS))
        b, q = np.searchsorted(ids, rows[first:last]), asked[first:last]
        b, q = (np.pad(x, (0, PAIRS - len(x))) for x in (b, q))
        found = program(params, batch.rows, its.inverse, inside, its.terms, b, q)
        out.append(np.asarray(found)[: last - first])
        first = last
    return np.concatenate(out)


def _asked(its: Ready, params: Any, queries: Any, method: Method) -> dict[str, Any]:
    """All queries' outer products, negated and normalised."""
    enter, parts = curved.entering(its.asked), []
    power = {"unit": -1.0, "update": 0.0}.get(method.normalize)
    for batch in row.batches(queries, min(ROWS, row.count(queries))):
        inside, real = enter(params, batch.rows, its.inverse.bases), int(batch.mask.sum())
        inside = inside if batch.mask.all() else jax.tree.map(lambda x, n=real: x[:n], inside)  # padding is at the end
        scale = -1.0 if power is None else -row_scale(its.inverse, inside, power)[:, None, None]
        parts.append({path: inside[path]._replace(a=inside[path].a * scale) for path in its.terms})
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


@functools.lru_cache(maxsize=32)
def _program(laid: Laid, normalize: str):
    power = {"unit": -1.0, "self": -1.0, "update": -2.0}.get(normalize)

    def program(params: Any, rows: Any, inverse: Any, asked: Any, terms: Any, b: Any, q: Any) -> Any:
        inside = curved.inside(laid, params, rows, inverse.bases)
        change = 0.0
        for path, its in terms.items():
            exact, thin = separable.pairs(inside[path], asked[path], b, q, rotated.weights(inverse, path, -1.0), its)
            change = change + exact - thin
        return change if power is None else change * row_scale(inverse, inside, power)[b]

    return jax.jit(program)
