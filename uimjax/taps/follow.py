"""How a value that depends on parameters alone passes through an equation: as a `View` of its one source, or not.

Classes of values: `Const` (neutral), `View`, and `DATA`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from uimjax.taps import _compat, views
from uimjax.taps.base import View


@dataclass(frozen=True)
class Const:
    """Neutral; `value` where it is a scalar known while planning."""

    value: float | None = None


DATA = object()
_SAME = frozenset({"name", "copy", "copy_p", "sharding_constraint", "reduce_precision", "convert_element_type"})


def is_float(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.floating)


def viewed(eqn: Any, ins: list[Any]) -> list[View] | None:
    """The outputs of a parameter-only equation as views, where they all are."""
    if not all(is_float(var.aval) for var in eqn.outvars) or sum(isinstance(c, View) for c in ins) != 1:
        return None
    position = next(k for k, c in enumerate(ins) if isinstance(c, View))
    view, name = ins[position], eqn.primitive.name
    if name == "split":
        return _all([_cut(view, starts, stops) for starts, stops in _compat.split(eqn)])
    if len(eqn.outvars) != 1:
        return None
    if name in ("slice", "dynamic_slice"):
        window = _compat.window(eqn, [c.value if isinstance(c, Const) else None for c in ins[1:]])
        return None if window is None or position else _all([_cut(view, *window)])
    found = _rearranged(eqn, name, view)
    if found is None:
        found = _affine(name, view, position, ins, eqn.invars[position].aval.shape == eqn.outvars[0].aval.shape)
    return _all([found])


def _all(found: list[View | None]) -> list[View] | None:
    return None if any(view is None for view in found) else found  # type: ignore[return-value]  # none is None


def _cut(view: View, starts: tuple[int, ...], stops: tuple[int, ...]) -> View | None:
    """A slice, where it nests with the atoms; what is cut to one index leaves its axis."""
    dims, fixed = [], list(view.fixed)
    for atoms, start, stop in zip(view.dims, starts, stops, strict=True):
        made = views.cut(atoms, start, stop) if atoms and stop > start else (atoms, ()) if stop > start else None
        if made is None:
            return None
        dims.append(made[0])
        fixed += made[1]
    return view._replace(dims=tuple(dims), fixed=tuple(fixed))


def _rearranged(eqn: Any, name: str, view: View) -> View | None:
    out = eqn.outvars[0].aval
    if name in _SAME:
        return view
    if name == "transpose":
        return view._replace(dims=views.transpose(view.dims, _compat.permutation(eqn)))
    if name == "broadcast_in_dim":
        return view._replace(dims=views.broadcast(view.dims, out.shape, _compat.broadcast_dimensions(eqn)))
    if name in ("reshape", "expand_dims") and (name == "expand_dims" or _compat.reshape_is_plain(eqn)):
        dims = views.reshape(view.dims, out.shape)
        return None if dims is None else view._replace(dims=dims)
    if name == "squeeze":
        gone = _compat.squeezed(eqn)
        return view._replace(dims=tuple(d for k, d in enumerate(view.dims) if k not in gone))
    return None


def _affine(name: str, view: View, position: int, ins: list[Any], same_shape: bool) -> View | None:
    """Scaling by a known constant and shifting by any constant."""
    if name == "neg":
        return view._replace(scale=-view.scale)
    if len(ins) != 2 or not same_shape:
        return None
    if name in ("add", "sub"):
        return view._replace(scale=-view.scale) if name == "sub" and position == 1 else view
    factor = ins[1 - position].value
    if factor is None:
        return None
    if name == "mul":
        return view._replace(scale=view.scale * factor)
    if name == "div" and position == 0 and factor != 0:
        return view._replace(scale=view.scale / factor)
    return None
