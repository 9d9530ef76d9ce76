"""Digests of traced programs: what a function computes, whatever it is called."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from uimjax import store
from uimjax.errors import UsageError
from uimjax.taps import _compat


def digest(program: Any, constants: Sequence[Any], more: str = "") -> str:
    """Of a traced program and the constants it closes over.

    Raises:
        UsageError: it calls back into Python, and what that computes is no part of it.
    """
    text = program.pretty_print(use_color=False)  # its text has colours where stdout is a terminal
    if called := re.search(r"\b(pure|io)_callback\[", text):
        raise UsageError(
            f"a program with jax.{called[1]}_callback has no digest, as what Python computes there cannot be told "
            "apart: nothing of it can be kept. Write it in JAX, or leave the folder out where there is a choice."
        )
    text = re.sub(r" at 0x[0-9a-f]+", "", text) + more
    consts = "".join(store.digest_array(c) for c in constants)
    return hashlib.sha256((text + consts).encode()).hexdigest()[:32]


def own_rules(program: Any) -> str:
    """The derivative's rules of a program's `custom_vjp` and `custom_jvp` functions, as the program of its derivative;
    they are no part of the program itself."""
    if not re.search(r"custom_[vj][vj]p", str(program)):
        return ""

    def backward(*inputs: Any) -> Any:
        out, pull = jax.vjp(jax.extend.core.jaxpr_as_fun(program), *inputs)
        return [x for x in pull([_ones(x) for x in out]) if x.dtype != jax.dtypes.float0]

    made = jax.make_jaxpr(backward)(*program.in_avals)
    return digest(made, _compat.constants(made))


def _ones(x: Any) -> Any:
    """A cotangent of x; integers have none."""
    return jnp.ones_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)


def operations(program: Any) -> float:
    """Of all products and convolutions of a traced program, a multiply-add counting twice. Loops count as often as they
    run (a compiler's own analysis counts their body once); of branches the costliest."""
    total = 0.0
    for eqn in _compat.open_jaxpr(program).eqns:
        inside, times = _compat.within(eqn)
        each = [operations(its) for its in inside]
        most = max(each, default=0.0) if eqn.primitive.name == "cond" else sum(each)
        total += _compat.operations(eqn) + times * most
    return total
