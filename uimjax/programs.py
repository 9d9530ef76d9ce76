"""Digests of traced programs: what a function computes, whatever it is called."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from uimjax import store
from uimjax.taps import _compat


def digest(program: Any, constants: Sequence[Any], more: str = "") -> str:
    """Of a traced program and the constants it closes over."""
    text = re.sub(r" at 0x[0-9a-f]+", "", str(program)) + more
    consts = "".join(store.digest_array(c) for c in constants)
    return hashlib.sha256((text + consts).encode()).hexdigest()[:32]


def own_rules(program: Any) -> str:
    """The reverse rules of a program's `custom_vjp` functions, as the program of its derivative; they are no part of
    the program itself."""
    if "custom_vjp" not in str(program):
        return ""

    def backward(*inputs: Any) -> Any:
        out, pull = jax.vjp(jax.extend.core.jaxpr_as_fun(program), *inputs)
        return [x for x in pull([jnp.ones_like(x) for x in out]) if x.dtype != jax.dtypes.float0]

    made = jax.make_jaxpr(backward)(*program.in_avals)
    return digest(made, _compat.constants(made))
