"""The blocks of a curvature: each parameter as a stack of matrices, a bias as a further row of the matrix before it.

The gradient of `x W + b` in W is `sum_t x_t (x) g_t`, and in b `sum_t g_t`: together `sum_t [x_t, 1] (x) g_t`, one
matrix `[I + 1, O]` with one curvature (Martens & Grosse 2015, arXiv 1503.05671). Taken apart, W's block and b's each
explain the mean of the inputs, and scores count it twice. Which bias belongs to which matrix is seen in the gradients.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.taps import (
    Dense,
    Direct,
    Factors,
    Gather,
    Leaf,
    Place,
    Sites,
    expand,
    from_matrices,
    matrices,
    pair,
    spread,
    to_matrices,
)

SAME = 1e-4  # relative difference up to which two gradients are the same but for rounding of float32
SEEN, SEEN_BYTES = 8, 64 << 20  # rows that show it, and what their gradients may take where they must be formed
COARSE = 4  # and so many units of a coarser type


class Join(NamedTuple):
    """`bias` is a further row (side 0) or column (side 1) of `matrix`, together `shape` (n, I, O); `factored`: so it is
    for the factors, too."""

    bias: str
    matrix: str
    side: int
    shape: tuple[int, int, int]
    factored: bool = True


class Laid(NamedTuple):
    """The sites of a loss, laid out in blocks."""

    sites: Sites
    joins: tuple[Join, ...]


class Block(NamedTuple):
    """One stack of matrices `shape` (n, I, O): factored `uses`, each with its place, and a `plain` gradient
    `[B, n, I, O]` or None."""

    path: str
    shape: tuple[int, int, int]
    uses: tuple[tuple[Dense | Gather, Place | None], ...]
    plain: Any

    @property
    def examples(self) -> int:
        return self.plain.shape[0] if self.plain is not None else self.uses[0][0].examples

    @property
    def rank_one(self) -> bool:
        """One use, of the whole parameter, at one position: each gradient is an outer product."""
        if len(self.uses) != 1 or self.plain is not None:
            return False
        use, where = self.uses[0]
        return where is None and isinstance(use, Dense) and use.g.shape[2] == 1


def some(found: Sites, rows: Any, draws: int = 1) -> Any:
    """Rows to lay out by: of one or two there may be no gradient at all."""
    fits = SEEN_BYTES // (4 * draws * max(sum(leaf.size for leaf in found.used), 1))
    return row.spread(rows, int(np.clip(fits, 2, SEEN)))


def lay_out(found: Sites, factors: Factors, like: Laid | None = None) -> Laid:
    """The blocks of a loss: which biases stand behind which matrices is read off the gradients of a few rows (arrays,
    not tracers). `like`: those of the loss whose blocks they shall be; a join that these factors do not share is kept,
    and marked.
    """
    leaves = {leaf.path: leaf for leaf in found.used}
    if like is not None:
        return Laid(found, tuple(join._replace(factored=_holds(join, leaves, factors)) for join in like.joins))
    taken: dict[str, Join] = {}
    for leaf in found.used:
        for bias in found.used:
            if bias.path in taken or any(join.matrix == leaf.path for join in taken.values()):
                continue
            if sides := _sides(leaf, bias, factors):
                n, i, o = leaf.layout.shape
                shape = (n, i + 1, o) if sides[0] == 0 else (n, i, o + 1)
                taken[bias.path] = Join(bias.path, leaf.path, sides[0], shape)
    return Laid(found, tuple(taken.values()))


def _holds(join: Join, leaves: dict[str, Leaf], factors: Factors) -> bool:
    both = join.bias in leaves and join.matrix in leaves
    return both and join.side in _sides(leaves[join.matrix], leaves[join.bias], factors)


def _sides(leaf: Leaf, bias: Leaf, factors: Factors) -> list[int]:
    """The sides of a matrix's one factored use whose sum over positions is the bias's gradient."""
    (use, *more), (other, *others) = factors[leaf.path], factors[bias.path]
    if more or others or not isinstance(use, Dense) or not isinstance(other, Direct):
        return []
    if bias.through or len(bias.sites) != 1 or leaf.sites[0].number not in bias.sites[0].behind:
        return []  # equal on these rows, perhaps, but not whatever the data
    n, i, o = leaf.layout.shape
    vector = 1 in bias.layout.shape[1:] and bias.layout.shape[0] == n
    if not vector or min(i, o) == 1 or pair(leaf, [use])[0][1] is not None:
        return []
    whole = np.asarray(to_matrices(other.gradient, bias.layout), np.float64).reshape(other.examples, n, -1)
    size, use = np.linalg.norm(whole), expand(use)
    kinds = (other.gradient.dtype, use.a.dtype, use.g.dtype)
    near = max(SAME, *(COARSE * float(jnp.finfo(kind).eps) for kind in kinds)) * size
    sums = [np.asarray(x, np.float64).sum(2) for x in (use.g, use.a)]  # [B, n, O], [B, n, I]
    same = [x.shape == whole.shape and np.linalg.norm(x - whole) <= near for x in sums]
    return [side for side in (0, 1) if size > 0 and same[side]]


def blocks(laid: Laid, factors: Factors) -> list[Block]:
    """The blocks of a batch's gradients; parameters that the loss does not touch have none."""
    made = {leaf.path: _block(leaf, factors[leaf.path]) for leaf in laid.sites.used if leaf.path in factors}
    for join in laid.joins:
        whole, bias = made.pop(join.matrix, None), made.pop(join.bias, None)
        if whole is not None or bias is not None:
            made[join.matrix] = _joined(whole, bias, join)
    return list(made.values())


def shapes(laid: Laid) -> dict[str, tuple[int, int, int]]:
    """`{path: (n, I, O)}` of the blocks."""
    made = {leaf.path: leaf.layout.shape for leaf in laid.sites.used}
    for join in laid.joins:
        del made[join.bias]
        made[join.matrix] = join.shape
    return made


def _block(leaf: Leaf, uses: Any) -> Block:
    plain = to_matrices(uses[-1].gradient, leaf.layout) if isinstance(uses[-1], Direct) else None
    return Block(leaf.path, leaf.layout.shape, tuple(pair(leaf, uses)), plain)


def _joined(whole: Block | None, bias: Block | None, join: Join) -> Block:
    n, i, o = join.shape
    if join.factored and whole is not None and bias is not None:
        use = whole.uses[0][0]
        assert isinstance(use, Dense)
        sides = [use.a, use.g]
        ones = jnp.ones((*sides[join.side].shape[:3], 1), sides[join.side].dtype)
        sides[join.side] = jnp.concatenate([sides[join.side], ones], 3)
        return Block(join.matrix, join.shape, ((Dense(sides[0], sides[1], use.owner), None),), None)
    size = (whole or bias).examples  # type: ignore[union-attr]  # one of them is there
    rest, last = ((n, i - 1, o), (n, 1, o)) if join.side == 0 else ((n, i, o - 1), (n, i, 1))
    parts = [
        jnp.zeros((size, *shape)) if part is None else formed(part).reshape(size, *shape)
        for part, shape in ((whole, rest), (bias, last))
    ]
    return Block(join.matrix, join.shape, (), jnp.concatenate(parts, 2 + join.side))


def arrays(made: list[Block]) -> Any:
    """The arrays of blocks alone, `[B, ...]` each, to be cut and mapped over."""
    return [(tuple(use for use, _ in block.uses), block.plain) for block in made]


def rebuilt(made: list[Block], held: Any) -> list[Block]:
    """The blocks with other `arrays`."""
    return [
        block._replace(uses=tuple((use, where) for use, (_, where) in zip(uses, block.uses, strict=True)), plain=plain)
        for block, (uses, plain) in zip(made, held, strict=True)
    ]


def formed(block: Block) -> Any:
    """The gradients themselves, `[B, n, I, O]`."""
    total = block.plain
    for use, where in block.uses:
        rows = block.shape[1] if where is None or where.rows is None else len(where.rows)
        total = spread(total, matrices(use, rows), where, block.shape)
    return total


def split(laid: Laid, made: dict[str, Any]) -> dict[str, Any]:
    """Formed blocks `{path: [Q, n, I, O]}` as gradients `{path: [Q, *parameter shape]}`."""
    made = dict(made)
    for join in laid.joins:
        if join.matrix in made:
            whole = made[join.matrix]
            made[join.matrix], made[join.bias] = jnp.split(whole, [join.shape[1 + join.side] - 1], 2 + join.side)
    leaves = {leaf.path: leaf for leaf in laid.sites.leaves}
    return {
        path: from_matrices(x.reshape(x.shape[0], *leaves[path].layout.shape), leaves[path].shape, leaves[path].layout)
        for path, x in made.items()
    }


def together(laid: Laid, gradients: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split`; a parameter of a block that is missing counts as zeros."""
    plain = Laid(laid.sites, tuple(join._replace(factored=False) for join in laid.joins))
    made: Factors = {path: (Direct(x),) for path, x in gradients.items()}
    return {block.path: formed(block) for block in blocks(plain, made)}
