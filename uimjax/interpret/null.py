"""The null band: how strong the strongest row is for questions without content, so that a score can be called
surprising.

The queries are shuffled, asked as the real ones are, and the strongest score of each at either end is kept. A hit's
`p` is `(1 + #{shuffled questions whose strongest score is at least as strong}) / (1 + questions)`: the largest of all
rows is compared with the largest of all rows, so that p needs no correction for their number (Westfall and Young 1993).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.errors import UsageError

DRAWS = 100  # means of null queries, where they are given


class Null(NamedTuple):
    """Of each shuffled question the largest and the smallest score of any row, `[B]` each, sorted; the questions are of
    unit length. `scale` `[Q]`: what a score grows by with the length of the real query (1 where it does not)."""

    largest: np.ndarray
    smallest: np.ndarray
    scale: np.ndarray

    def p(self, scores: Any, side: int) -> np.ndarray:
        """Of `[Q, k]` scores, how often a question without content does as well; `side` 1: proponents, -1: others."""
        held = np.sort(side * (self.largest if side > 0 else self.smallest))
        wanted = side * np.asarray(scores) / self.scale[:, None]
        return (1 + len(held) - np.searchsorted(held, wanted, "left")) / (1 + len(held))

    def band(self, level: float = 0.05) -> np.ndarray:
        """`[Q, 2]`: scores that `1 - level` of the shuffled questions do not get below, and above."""
        ends = np.array([np.quantile(self.smallest, level), np.quantile(self.largest, 1 - level)])
        return self.scale[:, None] * ends


def shuffled(queries: Any, seed: int) -> Any:
    """Queries with the order inside each of them lost: the positions of whole numbers (`[Q, T, ...]` tokens), all
    entries of real ones (pixels, features). Arrays of one length get one order, so twins stay twins. One number a
    query and keys stay, and so do flags: where there are flags `[Q, T]` (a mask), the positions that they are True at
    change places with one another alone.

    Raises:
        UsageError: nothing is left to shuffle.
    """
    leaves, tree = jax.tree.flatten(queries)
    if not any(_inner(leaf) > 1 for leaf in leaves):
        raise UsageError(
            "queries of one number each have no order to lose, so there is no null band by shuffling: pass null=rows "
            "like the queries that show nothing of the failure"
        )
    rng, count = np.random.default_rng(seed), row.count(queries)
    orders: dict[int, np.ndarray] = {}
    flags = [
        np.asarray(leaf) for leaf in leaves if leaf.ndim == 2 and jnp.issubdtype(jax.typeof(leaf).dtype, jnp.bool_)
    ]
    out = []
    for leaf in leaves:
        if (size := _inner(leaf)) > 1:
            plain = np.asarray(leaf)
            if size not in orders:
                orders[size] = _order(rng, count, size, [mask for mask in flags if mask.shape[1] == size])
            flat = plain.reshape(count, size, -1)
            leaf = np.take_along_axis(flat, orders[size][:, :, None], 1).reshape(plain.shape)
        out.append(leaf)
    return jax.tree.unflatten(tree, out)


def _order(rng: Any, count: int, size: int, masks: list[np.ndarray]) -> np.ndarray:
    """`[count, size]`: a random order of each query's positions; those that some mask is False at stay."""
    out = np.tile(np.arange(size), (count, 1))
    moved = np.logical_and.reduce(masks) if masks else np.ones((count, size), bool)
    for line, mine in zip(out, moved, strict=True):
        line[mine] = rng.permutation(line[mine])
    return out


def _inner(leaf: Any) -> int:
    """Entries of one query that change places; 0 where none do."""
    kind = jax.typeof(leaf).dtype
    if leaf.ndim < 2 or jnp.issubdtype(kind, jnp.bool_) or jnp.issubdtype(kind, jax.dtypes.prng_key):
        return 0
    return leaf.shape[1] if jnp.issubdtype(kind, jnp.integer) else int(np.prod(leaf.shape[1:]))


def questions(queries: Any, null: Any, each: bool, gradients: Any, shuffle: Any = shuffled) -> Any:
    """Gradients of questions without content, `[B, D]` of unit length. `null`: how many
    shuffles (`shuffle(queries, seed)`), or rows like the queries; `gradients(rows)` gives each row's."""
    if isinstance(null, int | np.integer):
        if null < 1:
            raise UsageError(f"a null band of {null} questions was asked for; at least 1 was wanted, 19 for p = 0.05")
        several = -(-null // (row.count(queries) if each else 1))
        found = [gradients(shuffle(queries, seed)) for seed in range(several)]
        made = jnp.concatenate(found if each else [x.mean(0, keepdims=True) for x in found])[:null]
    else:
        made, count = gradients(null), row.count(queries)
        if not each:
            if len(made) <= count:
                raise UsageError(
                    f"{len(made)} null queries for a question of {count} together: more were wanted, to draw from"
                )
            rng = np.random.default_rng(0)
            drawn = np.stack([rng.choice(len(made), count, replace=False) for _ in range(DRAWS)])
            made = made[drawn].mean(1)
    length = jnp.linalg.norm(made, axis=1, keepdims=True)
    return made / jnp.where(length > 0, length, 1)
