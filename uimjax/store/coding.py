"""How the unit vectors of an index are stored: whole, in few bits with a scale a block, or as factors of few terms.

`Coding.parse("rank4-int8")`: each matrix of a vector (the sketch of one parameter's gradient) as 4 pairs of factors,
`G ~ sum_k u_k v_k^T`, found by subspace iteration; their numbers as int8. In int8 and int4 each block of 128 or 32
numbers has a scale of its own, the largest of them over 127 or 7, rounded up to bfloat16 so that nothing is clipped.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from uimjax.errors import UnknownNameError, UsageError

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),  # two numbers a byte
}
BLOCK = {"int8": 128, "int4": 32}  # numbers that share a scale
LARGEST = {"int8": 127, "int4": 7}
SCALE = np.dtype(ml_dtypes.bfloat16)
ROUNDS = 4  # of subspace iteration

Shapes = tuple[tuple[int, int], ...]  # of the matrices that lie side by side in a vector, row by row


class Packed(NamedTuple):
    """`numbers` `[n, stored]` of the coding's dtype; `scales` `[n, blocks]` bfloat16, or None."""

    numbers: Any
    scales: Any


@dataclass(frozen=True)
class Coding:
    """A choice: the `dtype` of what is stored, and how many terms of each matrix (`rank` 0: all of it)."""

    dtype: str = "float32"
    rank: int = 0

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UnknownNameError("dtype of an index", self.dtype, DTYPES)
        if self.rank < 0:
            raise UsageError(f"a coding of {self.rank} terms was asked for; 0 (all) or more was wanted")

    @classmethod
    def parse(cls, text: str) -> "Coding":
        """`float32`, `bfloat16`, `int8`, `int4`, or those after `rankC-`.

        Raises:
            UnknownNameError: it is none of them.
        """
        found = re.fullmatch(r"(?:rank(\d+)-)?(\w+)", text)
        if found is None:
            raise UnknownNameError("coding of an index", text, [*DTYPES, "rank4-int8"])
        return cls(found[2], int(found[1] or 0))

    def __str__(self) -> str:
        return (f"rank{self.rank}-" if self.rank else "") + self.dtype


def numbers(coding: Coding, shapes: Shapes) -> int:
    """How many numbers of a vector are kept."""
    return sum(_kept(coding, *shape) for shape in shapes)


def stored(coding: Coding, shapes: Shapes) -> tuple[int, int]:
    """(entries of `Packed.numbers`, of `Packed.scales`) of one vector."""
    count = numbers(coding, shapes)
    entries = -(-count // 2) if coding.dtype == "int4" else count
    return entries, -(-count // BLOCK[coding.dtype]) if coding.dtype in BLOCK else 0


def row_bytes(coding: Coding, shapes: Shapes) -> int:
    entries, scales = stored(coding, shapes)
    return entries * DTYPES[coding.dtype].itemsize + scales * SCALE.itemsize


@functools.partial(jax.jit, static_argnums=(0, 1))
def pack(coding: Coding, shapes: Shapes, vectors: Any) -> Packed:
    """Of float32 `[n, D]`, D the size of all `shapes`."""
    kept = _factored(coding, shapes, vectors) if coding.rank else vectors
    if coding.dtype not in BLOCK:
        return Packed(kept.astype(DTYPES[coding.dtype]), None)
    blocks, most = _blocks(kept, BLOCK[coding.dtype]), LARGEST[coding.dtype]
    scales = _up(jnp.abs(blocks).max(2) / most)
    wide = scales.astype(jnp.float32)[:, :, None]
    near = jnp.round(blocks / jnp.where(wide > 0, wide, 1)).clip(-most, most).reshape(len(kept), -1)[:, : kept.shape[1]]
    if coding.dtype == "int8":
        return Packed(near.astype(jnp.int8), scales)
    pairs = jnp.pad((near + 8).astype(jnp.uint8), ((0, 0), (0, kept.shape[1] % 2))).reshape(len(kept), -1, 2)
    return Packed(pairs[:, :, 0] | (pairs[:, :, 1] << 4), scales)


@functools.partial(jax.jit, static_argnums=(0, 1))
def unpack(coding: Coding, shapes: Shapes, packed: Packed) -> Any:
    """What is left of the vectors, float32 `[n, D]`."""
    kept = _wide(coding, numbers(coding, shapes), packed)
    return _multiplied(coding, shapes, kept) if coding.rank else kept


def _wide(coding: Coding, count: int, packed: Packed) -> Any:
    whole = packed.numbers
    if coding.dtype == "int4":
        whole = jnp.stack([whole & 15, whole >> 4], 2).reshape(len(whole), -1)[:, :count].astype(jnp.float32) - 8
    whole = whole.astype(jnp.float32)
    if coding.dtype not in BLOCK:
        return whole
    each = _blocks(whole, BLOCK[coding.dtype]) * packed.scales.astype(jnp.float32)[:, :, None]
    return each.reshape(len(whole), -1)[:, :count]


def _blocks(x: Any, size: int) -> Any:
    """`[n, blocks, size]`, the last filled up with zeros."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(len(x), -1, size)


def _up(x: Any) -> Any:
    """As bfloat16, never smaller."""
    near = x.astype(jnp.bfloat16)
    return jnp.where(near.astype(jnp.float32) < x, jnp.nextafter(near, jnp.bfloat16(jnp.inf)), near)


def _kept(coding: Coding, rows: int, cols: int) -> int:
    """Numbers of one matrix: of its factors, or all where those would be no fewer."""
    factored = coding.rank * (rows + cols)
    return factored if 0 < factored < rows * cols else rows * cols


def _factored(coding: Coding, shapes: Shapes, vectors: Any) -> Any:
    parts: list[Any] = [None] * len(shapes)
    for shape, places in _by_shape(shapes).items():  # matrices of one shape go together: one program for all of them
        size = shape[0] * shape[1]
        wholes = [vectors[:, start : start + size] for _, start in places]
        if _kept(coding, *shape) < size:
            stacked = jnp.stack(wholes, 1).reshape(-1, *shape)
            pairs = [x.reshape(len(vectors), len(places), -1) for x in _factors(stacked, coding.rank)]
            wholes = [jnp.concatenate([x[:, k] for x in pairs], 1) for k in range(len(places))]
        for (number, _), whole in zip(places, wholes, strict=True):
            parts[number] = whole
    return jnp.concatenate(parts, 1)


def _by_shape(shapes: Shapes) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """{shape: [(which matrix, its first column)]}."""
    out: dict[tuple[int, int], list[tuple[int, int]]] = {}
    start = 0
    for number, shape in enumerate(shapes):
        out.setdefault(shape, []).append((number, start))
        start += shape[0] * shape[1]
    return out


def _factors(matrices: Any, rank: int) -> tuple[Any, Any]:
    """Of `[n, p, q]` the nearest of rank c: `[n, p, c]` and `[n, c, q]`, each pair of like size."""
    start = jax.random.normal(jax.random.key(0), (matrices.shape[2], rank), matrices.dtype)
    largest = jnp.abs(matrices).max((1, 2), keepdims=True)  # squares of very small numbers would be nothing
    matrices = matrices / jnp.where(largest > 0, largest, 1)

    def turn(_: Any, basis: Any) -> Any:
        other = _orthonormal(jnp.einsum("npq,npc->nqc", matrices, _orthonormal(basis)))
        return jnp.einsum("npq,nqc->npc", matrices, other)

    basis = jnp.einsum("npq,qc->npc", matrices, start)
    basis = _orthonormal(jax.lax.fori_loop(0, ROUNDS, turn, basis))
    right = jnp.einsum("npc,npq->ncq", basis, matrices) * largest
    length = jnp.sqrt(jnp.abs(right).max(2))
    return basis * length[:, None, :], right / jnp.where(length > 0, length, 1)[:, :, None]


def _orthonormal(basis: Any) -> Any:
    """Gram and Schmidt, each column twice, over `[n, p, c]`; a column of nothing stays nothing. (LAPACK's QR is called
    once a matrix and takes minutes where this takes a second.)"""

    def column(k: Any, done: Any) -> Any:
        v = jax.lax.dynamic_index_in_dim(basis, k, 2, keepdims=False)
        for _ in range(2):  # what rounding left along the others is gone after the second time
            v = v - jnp.einsum("npc,nc->np", done, jnp.einsum("npc,np->nc", done, v))
            length = jnp.linalg.norm(v, axis=1, keepdims=True)
            v = jnp.where(length > 0, v / jnp.where(length > 0, length, 1), 0)
        return jax.lax.dynamic_update_index_in_dim(done, v, k, 2)

    return jax.lax.fori_loop(0, basis.shape[2], column, jnp.zeros_like(basis))


def _multiplied(coding: Coding, shapes: Shapes, kept: Any) -> Any:
    parts, start = [], 0
    for rows, cols in shapes:
        count = _kept(coding, rows, cols)
        part = kept[:, start : start + count]
        start += count
        if count < rows * cols:
            left = part[:, : rows * coding.rank].reshape(-1, rows, coding.rank)
            right = part[:, rows * coding.rank :].reshape(-1, coding.rank, cols)
            part = jnp.einsum("npc,ncq->npq", left, right).reshape(len(kept), -1)
        parts.append(part)
    return jnp.concatenate(parts, 1)
