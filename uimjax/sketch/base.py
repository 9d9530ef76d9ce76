"""What the sketches share: one key a parameter, so that matrices follow from (seed, parameter, axis) alone."""

import itertools
import zlib
from collections.abc import Iterable
from typing import Any

import jax

from uimjax.taps import Leaf

VERSION = 3  # of how matrices follow from a choice; stored in every index


def leaf_key(key: Any, leaf: Leaf) -> Any:
    return jax.random.fold_in(key, zlib.crc32(leaf.path.encode()))


def blocks(widths: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Column ranges side by side, from (matrices, numbers a matrix) of each parameter: one for each matrix."""
    ends = list(itertools.accumulate((width for n, width in widths for _ in range(n)), initial=0))
    return tuple(itertools.pairwise(ends))
