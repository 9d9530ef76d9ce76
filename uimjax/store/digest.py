"""xxh3-128 digests of arrays, pytrees, files and texts."""

from typing import Any

import jax
import numpy as np
import xxhash

from uimjax.store.remote import Place


def digest_bytes(data: Any) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def digest_text(text: str) -> str:
    return digest_bytes(text.encode())


def digest_array(array: Any) -> str:
    """Of dtype, shape and bytes. Typed PRNG keys count by their data."""
    array = _plain(array)
    head = f"{array.dtype}{array.shape}".encode()
    return digest_bytes(head + array.tobytes())


def digest_rows(rows: Any) -> np.ndarray:
    """Of each row of a pytree of arrays `[N, ...]`, by its bytes alone: `[N]` uint64."""
    leaves = [_plain(leaf) for leaf in jax.tree.leaves(rows)]
    found = [xxhash.xxh3_64_intdigest(b"".join(x.tobytes() for x in parts)) for parts in zip(*leaves, strict=True)]
    return np.array(found, np.uint64)


def _plain(array: Any) -> np.ndarray:
    """As numpy, in C order; of typed PRNG keys their data."""
    if jax.numpy.issubdtype(jax.typeof(array).dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.ascontiguousarray(array)


def digest_tree(tree: Any) -> str:
    """Of a pytree of arrays: paths and leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return digest_text("\n".join(f"{jax.tree_util.keystr(path)} {digest_array(leaf)}" for path, leaf in leaves))


def digest_file(path: Place) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()
