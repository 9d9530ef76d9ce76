"""Convolutions in the layout that a CPU's fast kernels take, inside loops too.

XLA for CPUs brings convolutions into that layout (batch, space, features; kernels: space, in, out) in the outermost
program alone. In the body of a loop those of a derivative keep theirs, and run some 30 times slower.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
from jax import lax

from uimjax.taps import _compat


def fast(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun`, whose convolutions of whatever layout are carried out in the fast one; on a CPU alone, else `fun` as it
    stands. Meant for a derivative in a loop: the function is traced as it is called."""

    @functools.wraps(fun)
    def made(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return fun(*args)
        program, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
        opened, leaves = _compat.open_jaxpr(program), jax.tree.leaves(args)
        # what does not convolve is bound as it was traced: to trace it again would take as long once more
        outs = _run(opened, leaves) if _convolves(opened) else jax.extend.core.jaxpr_as_fun(program)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return made


def _convolves(program: _compat.Opened) -> bool:
    return any(
        eqn.primitive.name == "conv_general_dilated" or any(map(_convolves, _compat.within(eqn)[0]))
        for eqn in program.eqns
    )


def _run(program: _compat.Opened, values: list[Any]) -> list[Any]:
    env = dict(zip(program.constvars, program.consts, strict=True))
    env.update(zip(program.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if _compat.is_literal(atom) else env[atom]

    for eqn in program.eqns:
        env.update(zip(eqn.outvars, _outputs(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in program.outvars]


def _outputs(eqn: Any, ins: list[Any]) -> list[Any]:
    if eqn.primitive.name in _compat.INLINED:
        return _run(_compat.inner_jaxpr(eqn), ins)
    if eqn.primitive.name == "scan":
        return _scan(eqn, ins)
    layout = _compat.conv(eqn) if eqn.primitive.name == "conv_general_dilated" else None
    return _compat.bind(eqn, ins) if layout is None else [_convolve(layout, *ins)]


def _scan(eqn: Any, ins: list[Any]) -> list[Any]:
    scan = _compat.scan(eqn)
    consts, (carry, xs) = ins[: scan.consts], (ins[scan.consts :][: scan.carry], ins[scan.consts + scan.carry :])

    def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = _run(scan.body, [*consts, *carry, *slices])
        return outs[: scan.carry], outs[scan.carry :]

    carry, ys = scan.rerun(body, carry, xs)
    return [*carry, *ys]


def _convolve(layout: _compat.Conv, lhs: Any, rhs: Any) -> Any:
    """`layout` lists (batch, features, *space) of the left side, (out, in, *space) of the kernel."""
    rank = lhs.ndim
    last = lambda axes: (axes[0], *axes[2:], axes[1])  # noqa: E731  # features come last
    kernel = (*layout.rhs[2:], layout.rhs[1], layout.rhs[0])
    usual = lax.ConvDimensionNumbers(
        (0, rank - 1, *range(1, rank - 1)), (rank - 1, rank - 2, *range(rank - 2)), (0, rank - 1, *range(1, rank - 1))
    )
    out = lax.conv_general_dilated(
        lhs.transpose(last(layout.lhs)), rhs.transpose(kernel), layout.strides, layout.padding,
        layout.lhs_dilation, layout.rhs_dilation, usual, layout.groups,
        precision=layout.precision, preferred_element_type=layout.dtype,
    )  # fmt: skip
    back = sorted(range(rank), key=last(layout.out).__getitem__)
    return out.transpose(back)
