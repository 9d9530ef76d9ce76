"""Sparse sketches: a mask, then a sparse Johnson-Lindenstrauss transform (SJLT), as GraSS composes them
(Hu et al. 2025, arXiv 2505.18976; SJLT: Kane & Nelson 2014, arXiv 1012.1577).

Of each axis of a matrix `mask` entries are kept, drawn without replacement and scaled by `sqrt(I / mask)`; each of the
kept products is then added, with a random sign, to `hashes` of the `width` numbers of its parameter, one in each of as
many equal parts. Of a factored gradient nothing larger than `mask^2` is formed.

*Guarantees*: `E <s(x), s(y)> = <x, y>` for every parameter. Without a mask the variance is that of a dense sketch,
`(|x|^2 |y|^2 + <x, y>^2 - 2 sum_d x_d^2 y_d^2) / width`; a mask of a share p of an axis adds the variance of sampling
p of the products `x_d y_d`, which is large where few entries hold most of them.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import UsageError
from uimjax.sketch import kronecker
from uimjax.sketch.base import blocks, leaf_key
from uimjax.taps import Factors, Leaf, Sites


@dataclass(frozen=True)
class SparseSketch:
    """A choice: `width` numbers a matrix, after `mask` entries of each side (0: all of them; vectors keep mask^2), each
    added in `hashes` places."""

    width: int = 256
    mask: int = 64
    hashes: int = 1
    seed: int = 0

    def __post_init__(self):
        if min(self.width, self.hashes) < 1 or self.mask < 0 or self.width % self.hashes:
            raise UsageError(
                f"{self}: a positive width that divides into its hashes, and a mask of 0 or more, were wanted"
            )

    def __str__(self) -> str:
        return f"sparse sketch of {self.width}" + (f" after a mask of {self.mask}" if self.mask else "")


def _kept(sketch: SparseSketch, leaf: Leaf) -> tuple[int, int]:
    """(rows, columns) that the mask keeps."""
    _, rows, cols = leaf.layout.shape
    if not sketch.mask:
        return rows, cols
    most = sketch.mask**2 if 1 in (rows, cols) else sketch.mask
    return min(rows, most), min(cols, most)


def _width(sketch: SparseSketch, leaf: Leaf) -> int:
    """Numbers of one matrix; no more than the mask keeps (then as they are)."""
    return min(sketch.width, int(np.prod(_kept(sketch, leaf))))


def columns(sketch: SparseSketch, found: Sites) -> tuple[tuple[int, int], ...]:
    """One block for each matrix of each parameter's stack."""
    return blocks((leaf.layout.shape[0], _width(sketch, leaf)) for leaf in found.used)


def draw(sketch: SparseSketch, found: Sites, key: Any) -> dict[str, Any]:
    """`{path: ((rows [n, I, m] or None, columns [n, O, m'] or None), (places [n, hashes, m m'], signs))}`."""
    draw = jax.jit(lambda key: {leaf.path: _leaf_draw(sketch, leaf, key) for leaf in found.used})
    return draw(key)


def _leaf_draw(sketch: SparseSketch, leaf: Leaf, key: Any) -> Any:
    n, *axes = leaf.layout.shape
    keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(leaf_key(key, leaf), k), 4))(jnp.arange(n))

    def select(axis: int, size: int, kept: int) -> Any:
        if kept == size:
            return None
        picked = jax.vmap(lambda k: jax.random.permutation(k, size)[:kept])(keys[:, axis])
        return (picked[:, None, :] == jnp.arange(size)[None, :, None]) * jnp.sqrt(jnp.float32(size / kept))

    kept = _kept(sketch, leaf)
    sides = tuple(select(axis, size, k) for axis, (size, k) in enumerate(zip(axes, kept, strict=True)))
    count, part = int(np.prod(kept)), _width(sketch, leaf) // sketch.hashes
    if count <= sketch.width:
        return sides, None
    shape = (sketch.hashes, count)
    at = jax.vmap(lambda k: jax.random.randint(k, shape, 0, part))(keys[:, 2])
    at = at + part * jnp.arange(sketch.hashes)[None, :, None]
    signs = jax.vmap(lambda k: jax.random.rademacher(k, shape, jnp.float32))(keys[:, 3])
    return sides, (at, signs / jnp.sqrt(jnp.float32(sketch.hashes)))


def apply(
    sketch: SparseSketch, found: Sites, drawn: dict[str, Any], factors: Factors, reference: Sites, size: int
) -> Any:
    """Sketches side by side in the order of `reference.used`, `[B, D]`."""
    kept = kronecker.project(found, {path: drawn[path][0] for path in drawn}, factors)
    parts = []
    for leaf in reference.used:
        n, width = leaf.layout.shape[0], _width(sketch, leaf)
        if leaf.path not in kept:
            parts.append(jnp.zeros((size, n * width)))
            continue
        values, hashed = kept[leaf.path].reshape(size, n, -1), drawn[leaf.path][1]
        parts.append((values if hashed is None else _scattered(values, *hashed, width)).reshape(size, -1))
    return jnp.concatenate(parts, 1)


def _scattered(values: Any, at: Any, signs: Any, width: int) -> Any:
    """`[B, n, m]` into `[B, n, width]`: each number added, with its signs, at its places."""
    moved = jnp.moveaxis(values, 0, 2)  # examples last: one addition moves a contiguous row of them
    spread = (moved[:, None] * signs[..., None]).reshape(values.shape[1], -1, values.shape[0])
    summed = jax.vmap(lambda x, k: jax.ops.segment_sum(x, k, width))(spread, at.reshape(at.shape[0], -1))
    return jnp.moveaxis(summed, 2, 0)


def lift(sketch: SparseSketch, found: Sites, drawn: dict[str, Any], vectors: Any) -> dict[str, Any]:
    """The adjoint: `[Q, D]` to `{path: [Q, *parameter shape]}`."""
    out, start = {}, 0
    for leaf in found.used:
        n, width, kept = leaf.layout.shape[0], _width(sketch, leaf), _kept(sketch, leaf)
        block = vectors[:, start : start + n * width].reshape(-1, n, width)
        start += n * width
        sides, hashed = drawn[leaf.path]
        if hashed is not None:
            at, signs = hashed
            block = jax.vmap(lambda x, k: x[:, k], (1, 0), 1)(block, at)  # [Q, n, hashes, m]
            block = (block * signs[None]).sum(2)
        out[leaf.path] = kronecker.lifted(leaf, sides, block.reshape(-1, n, *kept))
    return out
