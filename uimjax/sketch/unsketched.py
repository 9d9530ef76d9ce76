"""No sketch: gradients formed and laid side by side, for small models and as the measure of the others."""

from typing import Any

import jax.numpy as jnp

from uimjax.sketch.base import blocks
from uimjax.taps import Factors, Sites, form


def columns(_sketch: None, found: Sites) -> tuple[tuple[int, int], ...]:
    """One block for each matrix of each parameter's stack."""
    return blocks((leaf.layout.shape[0], leaf.size // leaf.layout.shape[0]) for leaf in found.used)


def draw(_sketch: None, _found: Sites, _key: Any) -> None:
    return None


def apply(_sketch: None, found: Sites, _drawn: None, factors: Factors, reference: Sites, size: int) -> Any:
    """`[B, parameters]`; memory B times the parameters."""
    mine = {leaf.path: leaf for leaf in found.used}
    parts = [
        form(mine[leaf.path], factors[leaf.path]).reshape(size, -1).astype(jnp.float32)
        if leaf.path in mine
        else jnp.zeros((size, leaf.size))
        for leaf in reference.used
    ]
    return jnp.concatenate(parts, 1)


def lift(_sketch: None, found: Sites, _drawn: None, vectors: Any) -> dict[str, Any]:
    out, start = {}, 0
    for leaf in found.used:
        out[leaf.path] = vectors[:, start : start + leaf.size].reshape(-1, *leaf.shape)
        start += leaf.size
    return out
