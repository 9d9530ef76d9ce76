"""A curvature that is diagonal in a basis of Kronecker products: how it is entered, solved and measured in.

`H = Q diag(L + damping) Q^T` with `Q = Q_A (x) Q_C` for each parameter: K-FAC, EK-FAC, and (Q = I) every diagonal. A
gradient `G` `[I, O]` is rotated to `Q_A^T G Q_C`, from its factors where that is cheaper, and there H divides.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from uimjax.curvature import blocks, statistics
from uimjax.curvature.blocks import Block, Laid
from uimjax.curvature.statistics import Pair
from uimjax.taps import expand


class Rotated(NamedTuple):
    """`bases` `{path: (Q_A [n, I, I] or None, Q_C [n, O, O] or None)}` (None: I), `values` `{path: [n, I, O]}` per
    example and undamped, `damping` `{path: number}`."""

    bases: dict[str, Pair]
    values: dict[str, Any]
    damping: dict[str, Any]


def identity(laid: Laid) -> Rotated:
    """H = I: gradients as they are."""
    paths = blocks.shapes(laid)
    return Rotated(
        dict.fromkeys(paths, (None, None)),
        {path: jnp.ones(shape) for path, shape in paths.items()},
        dict.fromkeys(paths, 0.0),
    )


class Outer(NamedTuple):
    """A gradient of rank one in the rotated basis, `a (x) g`: a `[B, n, I]`, g `[B, n, O]`."""

    a: Any
    g: Any


Inside = Any  # one block's rotated gradients: `Outer`, or formed `[B, n, I, O]`


def enter(made: Sequence[Block], bases: dict[str, Pair]) -> dict[str, Inside]:
    """Gradients in the rotated basis."""
    return {block.path: _enter(block, bases[block.path]) for block in made if block.path in bases}


def _enter(block: Block, bases: Pair) -> Inside:
    if not block.rank_one:
        return statistics.rotated(block._replace(uses=tuple((expand(u), w) for u, w in block.uses)), *bases)
    use = expand(block.uses[0][0])
    return Outer(*(statistics.rotate(x, basis)[:, :, 0] for x, basis in zip(use[:2], bases, strict=True)))


def formed(block: Inside) -> Any:
    """`[B, n, I, O]`."""
    return block.a[:, :, :, None] * block.g[:, :, None, :] if isinstance(block, Outer) else block


def weights(inverse: Rotated, path: str, power: float) -> Any:
    """`(L + damping)^power` `[n, I, O]`."""
    return (inverse.values[path] + inverse.damping[path]) ** power


def divide(inverse: Rotated, inside: dict[str, Inside], power: float = -1.0) -> dict[str, Any]:
    """`H^power x` of rotated gradients, formed: `{path: [B, n, I, O]}`."""
    return {path: formed(block) * weights(inverse, path, power)[None] for path, block in inside.items()}


def square(inverse: Rotated, inside: dict[str, Inside], power: float = -1.0) -> dict[str, Any]:
    """`x^T H^power x` by parameter, `{path: [B]}`."""
    out = {}
    for path, block in inside.items():
        if power == 0 and isinstance(block, Outer):  # a product with ones; XLA:CPU's gave NaN now and then (JAX 0.10)
            out[path] = (jnp.square(block.a).sum(2) * jnp.square(block.g).sum(2)).sum(1)
            continue
        w = weights(inverse, path, power)
        if isinstance(block, Outer):
            out[path] = (_stacked(jnp.square(block.a), w) * jnp.square(block.g)).sum((1, 2))
        else:
            out[path] = (jnp.square(block) * w[None]).sum((1, 2, 3))
    return out


def products(inside: dict[str, Inside], directions: dict[str, Any]) -> dict[str, Any]:
    """`<x_b, v_q>` by parameter, `{path: [B, Q]}`, of rotated gradients and formed directions `[Q, n, I, O]`."""
    out = {}
    for path, v in directions.items():
        if path not in inside:
            continue
        x = inside[path]
        if isinstance(x, Outer) and v.shape[0] < v.shape[2]:  # fewer queries than rows of the matrix: smaller than G
            half = jnp.einsum("bni,qnio->bnqo", x.a, v)
            out[path] = (half * x.g[:, :, None]).sum((1, 3))
        else:
            x = formed(x)
            out[path] = x.reshape(x.shape[0], -1) @ v.reshape(v.shape[0], -1).T
    return out


def between(inverse: Rotated, rows: dict[str, Inside], queries: dict[str, Inside]) -> Any:
    """`x_b^T H^-1 y_q` `[B, Q]` for few rows and queries: outer products pair by pair, nothing of them formed."""
    total = 0.0
    for path, y in queries.items():
        if path not in rows:
            continue
        x, w = rows[path], weights(inverse, path, -1.0)
        if isinstance(x, Outer) and isinstance(y, Outer):
            a, g = (p[:, None] * q[None] for p, q in zip(x, y, strict=True))  # [B, Q, n, I], [B, Q, n, O]
            flat = a.reshape(-1, *a.shape[2:])
            total = total + (_stacked(flat, w).reshape(g.shape) * g).sum((2, 3))
        else:
            v = formed(y) * w[None]
            total = total + formed(x).reshape(len(formed(x)), -1) @ v.reshape(v.shape[0], -1).T
    return total


def turn(bases: dict[str, Pair], made: dict[str, Any], back: bool = False) -> dict[str, Any]:
    """Formed blocks `{path: [Q, n, I, O]}` into the rotated basis, or back from it."""
    out = {}
    for path, x in made.items():
        rows, cols = bases[path]
        x = x if rows is None else jnp.einsum("bnio,nki->bnko" if back else "bnio,nik->bnko", x, rows)
        out[path] = x if cols is None else jnp.einsum("bnio,nko->bnik" if back else "bnio,nok->bnik", x, cols)
    return out


def solve(laid: Laid, inverse: Rotated, gradients: dict[str, Any], power: float = -1.0) -> dict[str, Any]:
    """`H^power g` of plain gradients `{path: [Q, *parameter shape]}`."""
    inside = turn(inverse.bases, blocks.together(laid, gradients))
    return blocks.split(laid, turn(inverse.bases, divide(inverse, inside, power), back=True))


def mean_value(inverse: Rotated) -> float:
    """The mean eigenvalue over all parameters, undamped."""
    total = sum(float(jnp.sum(x)) for x in inverse.values.values())
    return total / sum(math.prod(x.shape) for x in inverse.values.values())


def _stacked(a: Any, w: Any) -> Any:
    """`[B, n, I]` times `[n, I, O]`: one GEMM where the stack has one entry."""
    return (a[:, 0] @ w[0])[:, None] if w.shape[0] == 1 else jnp.einsum("bni,nio->bno", a, w)
