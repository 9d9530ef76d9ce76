"""Walk the jaxpr of one example's loss and find every use of a parameter by data.

Each value is neutral (constants), a `View` of a source (depends on parameters alone), or data. Sources are the
parameters, then *derived* values: parameter-only results that are no rearrangement of one parameter (a product of two,
a slice, a normalised weight); their gradients are pulled back afterwards. An equation where a source meets data gets
an action; a control-flow equation that parameters enter gets a plan of its own.
"""

import collections
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import TapError
from uimjax.taps import _compat, views
from uimjax.taps.base import Site, View, axis_atoms
from uimjax.taps.follow import DATA, Const, is_float, viewed


@dataclass
class Source:
    """A parameter leaf, or a derived value; `leaves`: the parameters it follows from."""

    shape: tuple[int, ...]
    dtype: Any
    leaves: frozenset[int]


@dataclass(frozen=True)
class Tap:
    """Add a zero to the first output and record the operand at `data` (None: record nothing)."""

    site: int
    data: int | None


@dataclass(frozen=True)
class TapOperands:
    """Add a zero to these operands: (position, site)."""

    taps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Enter:
    """Run the body of a jit, remat or scan, or the branches of a cond, by plans of their own, after adding zeros to
    some operands."""

    kind: str
    plans: tuple["Plan", ...]
    taps: tuple[tuple[int, int], ...] = ()


@dataclass
class Plan:
    jaxpr: _compat.Opened
    actions: dict[int, Any] = field(default_factory=dict)
    derived: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # equation -> (output, source)

    def sites(self) -> list[int]:
        """Indices of the sites in this plan and the plans inside it."""
        found = []
        for action in self.actions.values():
            if isinstance(action, Tap):
                found.append(action.site)
            if isinstance(action, TapOperands | Enter):
                found.extend(site for _, site in action.taps)
            if isinstance(action, Enter):
                found.extend(site for plan in action.plans for site in plan.sites())
        return found


class Poison(Exception):
    """Inside a scan or a branch, a source is used in a way that only the boundary can account for."""

    def __init__(self, source: int):
        super().__init__(source)
        self.source = source


@dataclass
class State:
    sources: list[Source]
    sites: list[Site] = field(default_factory=list)


def build(jaxpr: Any, parameters: Sequence[Any], chosen: Collection[int]) -> tuple[Plan, State, Any]:
    """The plan of a closed jaxpr whose first inputs are the parameters; also the class of its first output.

    Parameters that are not `chosen` (by position) count as constants.
    """
    opened = _compat.open_jaxpr(jaxpr)
    state = State([Source(tuple(p.shape), p.dtype, frozenset({k})) for k, p in enumerate(parameters)])
    classes: list[Any] = [
        View(k, axis_atoms(tuple(p.shape))) if is_float(p) and k in chosen else Const()
        for k, p in enumerate(parameters)
    ]
    classes += [DATA] * (len(opened.invars) - len(classes))
    plan, out = _walk(opened, classes, state, ())
    return plan, state, out[0]


def _const_class(value: Any) -> Const:
    dtype = jax.typeof(value).dtype
    if np.ndim(value) == 0 and (jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer)):
        return Const(float(np.asarray(value)))
    return Const()


def _walk(opened: _compat.Opened, classes: Sequence[Any], state: State, levels: tuple[int, ...]):
    env: dict[Any, Any] = {}

    def read(atom):
        return _const_class(atom.val) if _compat.is_literal(atom) else env[atom]

    env.update(zip(opened.constvars, map(_const_class, opened.consts), strict=True))
    env.update(zip(opened.invars, classes, strict=True))
    plan = Plan(opened)
    origin: dict[Any, Any] = {}  # values that are matrices' outputs, rearranged or added: their sites
    reads = collections.Counter(v for eqn in opened.eqns for v in eqn.invars if not _compat.is_literal(v))
    reads.update(v for v in opened.outvars if not _compat.is_literal(v))
    for index, eqn in enumerate(opened.eqns):
        ins = [read(v) for v in eqn.invars]
        action, outs, derived = _visit(eqn, ins, state, levels)
        if action is not None:
            plan.actions[index] = action
        if derived:
            plan.derived[index] = derived
        _note_origin(eqn, ins, action, origin, reads, state)
        env.update(zip(eqn.outvars, outs, strict=True))
    return plan, [read(v) for v in opened.outvars]


PASSED = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy", "add"})


def _note_origin(eqn: Any, ins: list[Any], action: Any, origin: dict[Any, Any], reads: Any, state: State) -> None:
    """Follow matrices' outputs, while nothing else reads them, to the bias that is added to them."""
    vars_ = [v for v in eqn.invars if not _compat.is_literal(v)]
    alone = tuple(site for v in vars_ if reads[v] == 1 for site in origin.get(v, ()))
    if isinstance(action, Tap):
        site = state.sites[action.site]
        if site.kind in ("dense", "conv"):
            origin[eqn.outvars[0]] = (site.number,)
        elif site.kind == "bias":
            state.sites[site.number] = site._replace(behind=alone)
            origin[eqn.outvars[0]] = alone
    elif eqn.primitive.name in PASSED and len(eqn.outvars) == 1 and DATA in ins:
        origin[eqn.outvars[0]] = alone


def _visit(eqn: Any, ins: list[Any], state: State, levels: tuple[int, ...]):
    """(action or None, classes of the outputs, derived sources made here)."""
    name = eqn.primitive.name
    holds_view = any(isinstance(c, View) for c in ins)
    holds_data = any(c is DATA for c in ins)
    if not holds_view:
        if holds_data:
            return None, [DATA] * len(eqn.outvars), None
        return None, _fold(eqn, ins), None
    if name in _compat.INLINED or name in _compat.REMAT:
        plan, outs = _walk(_compat.inner_jaxpr(eqn), ins, state, levels)
        kind = "remat" if name in _compat.REMAT and holds_data else "jit"
        return Enter(kind, (plan,)), outs, None
    if name == "while":
        raise TapError(
            f"a parameter enters a while loop at {_compat.source_line(eqn)}, which has no reverse-mode derivative. "
            "Use lax.scan, or lax.fori_loop with static bounds."
        )
    if name in _ENTERED and holds_data:
        return _enter(eqn, ins, state, levels)
    if not holds_data:
        return _parameter_only(eqn, ins, state, levels)
    site = _recognise(eqn, ins, state, levels)
    if site is None:
        return TapOperands(_tap_operands(eqn, ins, state, levels)), [DATA] * len(eqn.outvars), None
    return site, [DATA] * len(eqn.outvars), None


def _fold(eqn: Any, ins: list[Any]) -> list[Any]:
    """Classes of a constant equation's outputs; scalars are evaluated so that a weight's scale is known."""
    known = all(c.value is not None for c in ins) and all(v.aval.shape == () for v in (*eqn.invars, *eqn.outvars))
    if not known or eqn.primitive.name in ("scan", "while", "cond") or not ins:
        return [Const()] * len(eqn.outvars)
    with jax.ensure_compile_time_eval():
        values = [jnp.asarray(c.value, v.aval.dtype) for c, v in zip(ins, eqn.invars, strict=True)]
        return [_const_class(out) for out in _compat.bind(eqn, values)]


# ---------------------------------------------------------------- parameters alone


def _parameter_only(eqn: Any, ins: list[Any], state: State, levels: tuple[int, ...]):
    if eqn.primitive.name == "stop_gradient":
        return None, [Const()] * len(eqn.outvars), None
    found = viewed(eqn, ins)
    if found is not None:
        return None, found, None
    if eqn.primitive.name == "gather" and isinstance(ins[0], View):
        site = _embed(eqn, ins, state, levels)  # constant positions: keep the rows factored, not a dense table
        if site is not None:
            return site, [DATA], None
    outs: list[Any] = []
    derived = []
    for position, var in enumerate(eqn.outvars):
        if jnp.issubdtype(var.aval.dtype, np.complexfloating):
            raise TapError(
                f"a parameter becomes complex at {_compat.source_line(eqn)}; gradients are followed through real "
                "values alone. Keep real and imaginary parts as two real arrays."
            )
        if not is_float(var.aval):
            outs.append(Const())
            continue
        if levels:
            raise Poison(next(c.source for c in ins if isinstance(c, View)))
        leaves = frozenset().union(*(state.sources[c.source].leaves for c in ins if isinstance(c, View)))
        state.sources.append(Source(tuple(var.aval.shape), var.aval.dtype, leaves))
        outs.append(View(len(state.sources) - 1, axis_atoms(tuple(var.aval.shape))))
        derived.append((position, len(state.sources) - 1))
    return None, outs, derived


# ---------------------------------------------------------------- where a parameter meets data


def _new_site(state: State, kind: str, eqn: Any, view: View, value_shape, tap_aval, detail, levels) -> int:
    index = len(state.sites)
    state.sites.append(
        Site(
            index,
            kind,
            view.source,
            view,
            tuple(value_shape),
            (*levels, *tap_aval.shape),
            tap_aval.dtype,
            detail,
            _compat.source_line(eqn),
        )
    )
    return index


def _tap_operands(eqn: Any, ins: list[Any], state: State, levels) -> tuple[tuple[int, int], ...]:
    taps = []
    for position, (var, c) in enumerate(zip(eqn.invars, ins, strict=True)):
        if isinstance(c, View):
            aval = var.aval
            taps.append((position, _new_site(state, "direct", eqn, c, aval.shape, aval, None, levels)))
    return tuple(taps)


def _recognise(eqn: Any, ins: list[Any], state: State, levels) -> Tap | None:
    """A site of a kind of its own, or None: then the gradient is taken at the operand itself."""
    name = eqn.primitive.name
    if sum(isinstance(c, View) for c in ins) != 1 or len(eqn.outvars) != 1:
        return None
    position = next(k for k, c in enumerate(ins) if isinstance(c, View))
    view, operand, out = ins[position], eqn.invars[position].aval, eqn.outvars[0].aval
    if name == "dot_general":
        return _dense(eqn, view, position, state, levels)
    if name == "conv_general_dilated" and position == 1:
        return _conv(eqn, view, state, levels)
    if name == "gather" and position == 0:
        return _embed(eqn, ins, state, levels)
    if name in ("add", "add_any", "sub"):
        view = view._replace(scale=-view.scale) if name == "sub" and position == 1 else view
        return Tap(_new_site(state, "bias", eqn, view, operand.shape, out, None, levels), None)
    if name == "mul" and ins[1 - position] is DATA:
        return Tap(_new_site(state, "scale", eqn, view, operand.shape, out, None, levels), 1 - position)
    return None


def _dense(eqn: Any, view: View, position: int, state: State, levels) -> Tap | None:
    numbers = _compat.dot(eqn)
    weight = eqn.invars[position].aval
    batch, contract = numbers.batch[position], numbers.contract[position]
    free = [axis for axis in range(len(weight.shape)) if axis not in (*batch, *contract)]
    if any(atom.broadcast for axis in (*contract, *free) for atom in view.dims[axis]):
        return None
    site = _new_site(state, "dense", eqn, view, weight.shape, eqn.outvars[0].aval, (numbers, position), levels)
    return Tap(site, 1 - position)


def _conv(eqn: Any, view: View, state: State, levels) -> Tap | None:
    layout = _compat.conv(eqn)
    if layout is None or not view.bijective:
        return None
    if views.split_leading(view.dims[layout.rhs[0]], layout.groups) is None:
        return None
    kernel = eqn.invars[1].aval
    return Tap(_new_site(state, "conv", eqn, view, kernel.shape, eqn.outvars[0].aval, layout, levels), 0)


def _embed(eqn: Any, ins: list[Any], state: State, levels) -> Tap | None:
    lookup, view = _compat.lookup(eqn), ins[0]
    if lookup is None or not view.bijective or isinstance(ins[1], View):
        return None
    if view.dims[0] != views.in_order(view.dims[0]):
        return None
    table = eqn.invars[0].aval
    return Tap(_new_site(state, "embed", eqn, view, table.shape, eqn.outvars[0].aval, lookup, levels), 1)


# ---------------------------------------------------------------- scan and cond


def _enter(eqn: Any, ins: list[Any], state: State, levels: tuple[int, ...]):
    """Plan the body or the branches. Sources they cannot account for are tapped at the boundary and are data inside."""
    plans_of = _ENTERED[eqn.primitive.name]
    poisoned: set[int] = set()
    while True:
        taps = [k for k, c in enumerate(ins) if isinstance(c, View) and c.source in poisoned]
        inside = [DATA if k in taps else c for k, c in enumerate(ins)]
        marks = len(state.sites), len(state.sources)
        try:
            plans, outs = plans_of(eqn, inside, state, levels)
            break
        except Poison as poison:
            leaves = state.sources[poison.source].leaves
            del state.sites[marks[0] :], state.sources[marks[1] :]
            entering = {c.source for c in inside if isinstance(c, View)}
            if poison.source not in entering:  # derived in there: what it was made of is followed from here
                entering = {source for source in entering if state.sources[source].leaves & leaves}
                if not entering:
                    raise
            poisoned |= {poison.source} if poison.source in entering else entering
    added = tuple(
        (
            k,
            _new_site(state, "direct", eqn, ins[k], eqn.invars[k].aval.shape, eqn.invars[k].aval, None, levels),
        )
        for k in taps
    )
    return Enter(eqn.primitive.name, plans, added), outs, None


def _plan_branches(eqn: Any, ins: list[Any], state: State, levels: tuple[int, ...]):
    """Every branch by its own plan: which one an example takes, its data decide."""
    plans, each = [], []
    for branch in _compat.branches(eqn):
        plan, outs = _walk(branch, ins[1:], state, levels)
        plans.append(plan)
        each.append(outs)
    for c in (c for outs in each for c in outs):
        if isinstance(c, View):
            raise Poison(c.source)  # a branch hands a parameter on: followed from the boundary instead
    chosen = ins[0] is DATA
    return tuple(plans), [DATA if chosen or DATA in outs else Const() for outs in zip(*each, strict=True)]


def _plan_scan(eqn: Any, ins: list[Any], state: State, levels: tuple[int, ...]):
    plan, outs = _plan_body(_compat.scan(eqn), ins, state, levels)
    return (plan,), outs


def _plan_body(scan: _compat.Scan, ins: list[Any], state: State, levels: tuple[int, ...]):
    """One pass decides which carries become data; what enters as xs runs over atoms, as consts sums over repeats."""
    first_x = scan.consts + scan.carry

    def enter(k: int, c: Any) -> Any:
        if not isinstance(c, View):
            return DATA if c is DATA else Const(c.value if k < scan.consts else None)
        if k < scan.consts:
            return c._replace(outer=(*c.outer, None))
        if k < first_x:
            raise Poison(c.source)  # a parameter as initial carry: its gradient is the cotangent of the carry
        return c._replace(outer=(*c.outer, c.dims[0]), dims=c.dims[1:])

    classes = [enter(k, c) for k, c in enumerate(ins)]
    carry = slice(scan.consts, first_x)
    while True:
        marks = len(state.sites), len(state.sources)
        plan, outs = _walk(scan.body, classes, state, (*levels, scan.length))
        for c in outs:
            if isinstance(c, View):
                raise Poison(c.source)  # it leaves the body unused by data: followed from the boundary instead
        grown = [DATA if old is DATA or new is DATA else old for old, new in zip(classes[carry], outs, strict=False)]
        if grown == classes[carry]:
            return plan, outs
        classes[carry] = grown
        del state.sites[marks[0] :], state.sources[marks[1] :]


_ENTERED = {"scan": _plan_scan, "cond": _plan_branches}
