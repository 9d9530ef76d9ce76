"""What the sketches share: one key a parameter, so that matrices follow from (seed, parameter, axis) alone."""

import zlib
from typing import Any

import jax

from uimjax.taps import Leaf

VERSION = 2  # of how matrices follow from a choice; stored in every index


def leaf_key(key: Any, leaf: Leaf) -> Any:
    return jax.random.fold_in(key, zlib.crc32(leaf.path.encode()))
