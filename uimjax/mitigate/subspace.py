"""Which parameters a mitigation moves: those that patterns choose, or low-rank changes of the matrices among them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uimjax.errors import UsageError
from uimjax.taps.captures import matching


class Adapter(NamedTuple):
    """`W + a b` of a matrix W `[I, O]` (of more axes: the last is O): `a` `[I, r]`, `b` `[r, O]`, which is 0 at first
    (LoRA; Hu et al. 2021, arXiv 2106.09685)."""

    a: Any
    b: Any


def opened(params: Any, include: tuple[str, ...], exclude: tuple[str, ...], rank: int, seed: int) -> dict[str, Any]:
    """What is trained, by path (`a/b/c`, as `uj.sites` prints them): the parameters whose paths match; with a `rank`
    above 0 adapters of the matrices among them, and nothing else. `join` of them and `params` is `params`.

    Raises:
        UsageError: a pattern that matches nothing, nothing left, or a rank that no matrix has.
    """
    values = by_path(params)
    floats = [path for path, value in values.items() if jnp.issubdtype(value.dtype, jnp.floating)]
    chosen = matching(floats, include, exclude)
    if rank:
        chosen = [p for p in chosen if values[p].ndim > 1 and min(_sides(values[p])) >= rank]
    if not chosen:
        what = f"matrix that has a rank of {rank}" if rank else "parameter"
        raise UsageError(f"include={include} and exclude={exclude} leave no {what} to train")
    if not rank:
        return {p: values[p] for p in chosen}
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), rank), len(chosen))
    return {p: _adapter(values[p], rank, key) for p, key in zip(chosen, keys, strict=True)}


def join(params: Any, free: dict[str, Any]) -> Any:
    """All parameters: those that are trained instead of their old values, adapters on top of theirs."""
    values = by_path(params)
    for path, new in free.items():
        old = values[path]
        values[path] = old + (new.a @ new.b).reshape(old.shape) if isinstance(new, Adapter) else new
    return jax.tree.unflatten(jax.tree.structure(params), list(values.values()))


def by_path(params: Any) -> dict[str, Any]:
    """`{a/b/c: leaf}`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _sides(leaf: Any) -> tuple[int, int]:
    return leaf.size // leaf.shape[-1], leaf.shape[-1]


def _adapter(leaf: Any, rank: int, key: Any) -> Adapter:
    inside, out = _sides(leaf)
    a = jax.random.normal(key, (inside, rank), leaf.dtype) / jnp.sqrt(jnp.asarray(inside, leaf.dtype))
    return Adapter(a, jnp.zeros((rank, out), leaf.dtype))
