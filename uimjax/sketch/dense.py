"""Dense Johnson-Lindenstrauss projection of the whole gradient, as TRAK takes it (Park et al. 2023, arXiv 2303.14186).

`s_k = sum_d R_dk g_d` over all parameters d, `R_dk = +-1 / sqrt(width)`. R is never stored: its signs follow from a key
for each matrix and from their place, and are made where the gradient meets them (`uimjax_kernels.project`).

*Guarantees*: `E <s(x), s(y)> = <x, y>` with variance `(|x|^2 |y|^2 + <x, y>^2 - 2 sum_d x_d^2 y_d^2) / width`; the same
bits for any blocking, batch split or sharding.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import UsageError
from uimjax.sketch.base import leaf_key
from uimjax.taps import (
    Dense,
    Direct,
    Factor,
    Factors,
    Gather,
    Leaf,
    Sites,
    contract,
    expand,
    form,
    from_matrices,
    pair,
    to_matrices,
)
from uimjax_kernels import project
from uimjax_kernels.project.reference import signs

BLOCK_BYTES = 32 << 20  # of signs that stand in memory at once, where one row of a matrix has no more
NUMBERS = 1 << 22  # of a gradient that are formed at once, where a kernel makes the signs and none stand in memory


@dataclass(frozen=True)
class DenseSketch:
    """A choice: `width` numbers for the whole gradient."""

    width: int = 2048
    seed: int = 0

    def __post_init__(self):
        if self.width < 1:
            raise UsageError(f"a sketch of width {self.width} was asked for; at least 1 was wanted")

    def __str__(self) -> str:
        return f"dense sketch of {self.width}"


def columns(sketch: DenseSketch, _found: Sites) -> tuple[tuple[int, int], ...]:
    """One block: all parameters share the columns."""
    return ((0, sketch.width),)


def draw(_sketch: DenseSketch, _found: Sites, key: Any) -> Any:
    """The key itself: all signs follow from it."""
    return key


def apply(sketch: DenseSketch, found: Sites, drawn: Any, factors: Factors, reference: Sites, size: int) -> Any:
    """`[B, width]`, over the parameters of `reference`. The gradient is formed a block of rows at a time and meets that
    block's signs."""
    total = jnp.zeros((size, sketch.width), jnp.float32)
    wanted = {leaf.path for leaf in reference.used}
    for leaf in found.used:
        if leaf.path in wanted:
            total = total + _leaf_apply(sketch, leaf, leaf_key(drawn, leaf), factors[leaf.path])
    return total


def lift(sketch: DenseSketch, found: Sites, drawn: Any, vectors: Any) -> dict[str, Any]:
    """The adjoint: `[Q, width]` to `{path: [Q, *parameter shape]}`."""
    out = {}
    for leaf in found.used:
        n, rows, cols = leaf.layout.shape
        blocks, height = _blocks(sketch, leaf)
        key = leaf_key(drawn, leaf)

        def block(at: tuple[Any, Any], leaf: Leaf = leaf, height: int = height, key: Any = key) -> Any:
            return jnp.einsum("qk,rok->qro", vectors, _signs(sketch, leaf, key, at[0], at[1], height))

        made = jnp.moveaxis(jax.lax.map(block, blocks), 0, 1)  # [Q, n * blocks, height, O]
        whole = made.reshape(vectors.shape[0], n, -1, cols)[:, :, :rows]
        out[leaf.path] = from_matrices(whole, leaf.shape, leaf.layout)
    return out


def _blocks(sketch: DenseSketch, leaf: Leaf) -> tuple[tuple[Any, Any], int]:
    """((stack entry, first row) of each block, rows a block)."""
    n, rows, cols = leaf.layout.shape
    numbers = NUMBERS if jax.default_backend() == "gpu" else BLOCK_BYTES // (4 * sketch.width)
    height = max(1, min(rows, numbers // cols))
    starts = np.arange(0, rows, height)
    return (jnp.asarray(np.repeat(np.arange(n), len(starts))), jnp.asarray(np.tile(starts, n))), height


def _place(leaf: Leaf, key: Any, entry: Any, start: Any) -> tuple[Any, Any]:
    """(the seed of one stack entry's signs, which row of R is the first of the matrix's row `start`)."""
    _, rows, cols = leaf.layout.shape
    if rows * cols > 2**32:
        raise UsageError(f"{leaf.path} has {rows} x {cols} entries, more than the 2^32 that a dense sketch can number")
    seed = jax.random.key_data(jax.random.fold_in(key, entry)).astype(jnp.uint32)
    return seed, jnp.asarray(start, jnp.uint32) * np.uint32(cols)


def _signs(sketch: DenseSketch, leaf: Leaf, key: Any, entry: Any, start: Any, height: int) -> Any:
    """R of the rows from `start` on of one stack entry, `[height, O, width]`, float32."""
    seed, first = _place(leaf, key, entry, start)
    cols = leaf.layout.shape[2]
    return (signs(first, height * cols, seed, sketch.width) / np.sqrt(np.float32(sketch.width))).reshape(
        height, cols, -1
    )


def _leaf_apply(sketch: DenseSketch, leaf: Leaf, key: Any, uses: tuple[Factor, ...]) -> Any:
    blocks, height = _blocks(sketch, leaf)
    n, rows, _ = leaf.layout.shape
    spare = len(blocks[0]) // n * height - rows  # the last block reads beyond the rows, where all is zero
    if any(place is not None for _, place in pair(leaf, uses)):  # slices: formed at their place
        uses = (Direct(form(leaf, uses)),)
    held = [_padded(leaf, expand(use), spare) for use in uses]

    def step(total: Any, at: tuple[Any, Any]) -> tuple[Any, None]:
        seed, first = _place(leaf, key, at[0], at[1])
        formed = functools.reduce(jnp.add, (_rows_of(use, at[0], at[1], height) for use in held))
        return total + project(formed.reshape(len(formed), -1), seed, sketch.width, first), None

    return jax.lax.scan(step, jnp.zeros((uses[0].examples, sketch.width), jnp.float32), blocks)[0]


def _padded(leaf: Leaf, use: Any, spare: int) -> Any:
    """The use with `spare` further rows of zeros."""
    if isinstance(use, Direct):
        return Direct(jnp.pad(to_matrices(use.gradient, leaf.layout), [(0, 0), (0, 0), (0, spare), (0, 0)]))
    return Dense(jnp.pad(use.a, [(0, 0)] * 3 + [(0, spare)]), use.g) if isinstance(use, Dense) else use


def _rows_of(use: Any, entry: Any, start: Any, height: int) -> Any:
    """Rows `[start, start + height)` of one stack entry of the gradient, `[B, height, O]`, summed in float32."""
    if isinstance(use, Direct):
        one = jax.lax.dynamic_index_in_dim(use.gradient, entry, 1, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(one, start, height, 1).astype(jnp.float32)
    first, g = (jax.lax.dynamic_slice_in_dim(x, entry, 1, 1) for x in use[:2])  # [B, 1, T, ...]
    if isinstance(use, Gather):
        index = start + jnp.arange(height, dtype=first.dtype)
        a = (first[..., None] == index[None, None, None]).astype(g.dtype)
    else:
        a = jax.lax.dynamic_slice_in_dim(first, start, height, 3)
    return contract(a, g, None)[:, 0].astype(jnp.float32)
