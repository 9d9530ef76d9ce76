"""Carry out a plan: the loss of one example, with a zero added at every site and the data operands recorded.

Differentiating `sum(vmap(run))` with respect to the zeros gives the `g` factors; no weight gradient is ever built.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from uimjax.taps import _compat
from uimjax.taps.plan import Enter, Plan, Tap, TapOperands


def run(plan: Plan, values: list[Any], zeros: dict[int, Any]) -> tuple[list[Any], dict[int, Any]]:
    """(outputs, records): records hold the data operand of each site that needs one."""
    jaxpr = plan.jaxpr
    env = dict(zip(jaxpr.constvars, jaxpr.consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    records: dict[int, Any] = {}

    def read(atom):
        return atom.val if _compat.is_literal(atom) else env[atom]

    for index, eqn in enumerate(jaxpr.eqns):
        ins = [read(v) for v in eqn.invars]
        match plan.actions.get(index):
            case None:
                outs = _compat.bind(eqn, ins)
            case Tap(site, data):
                outs = _compat.bind(eqn, ins)
                outs[0] = outs[0] + zeros[site]
                if data is not None:
                    records[site] = ins[data]
            case TapOperands(taps):
                outs = _compat.bind(eqn, _add(ins, taps, zeros))
            case Enter(kind, inner, taps):
                ins = _add(ins, taps, zeros)
                needed = {site: zeros[site] for plan in inner for site in plan.sites()}
                outs, found = _ENTER[kind](eqn, inner, ins, needed)
                records.update(found)
            case unknown:
                raise AssertionError(unknown)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars], records


def _add(ins, taps, zeros):
    ins = list(ins)
    for position, site in taps:
        ins[position] = ins[position] + zeros[site]
    return ins


def _call(_eqn, plans, ins, zeros):
    return run(plans[0], ins, zeros)


def _remat(eqn, plans, ins, zeros):
    (plan,) = plans
    return _compat.remat_wrapper(eqn)(lambda ins, zeros: run(plan, ins, zeros))(ins, zeros)


def _cond(_eqn, plans, ins, zeros):
    """Each branch gains the records of all: zeros where another branch would have made them."""
    index, *ins = ins
    shapes: dict[int, Any] = {}
    for plan in plans:
        shapes |= jax.eval_shape(functools.partial(run, plan), ins, zeros)[1]

    def branch(plan):
        def made(ins, zeros):
            outs, records = run(plan, ins, zeros)
            return outs, {site: jnp.zeros(s.shape, s.dtype) for site, s in shapes.items()} | records

        return made

    return lax.switch(index, [branch(plan) for plan in plans], ins, zeros)


def _scan(eqn, plans, ins, zeros):
    """The body gains an input (its zeros, stacked) and an output (its records, stacked)."""
    (plan,) = plans
    scan = _compat.scan(eqn)
    consts, carry, xs = (
        ins[: scan.consts],
        ins[scan.consts : scan.consts + scan.carry],
        ins[scan.consts + scan.carry :],
    )

    def body(carry, slices):
        xs, zeros = slices
        outs, records = run(plan, [*consts, *carry, *xs], zeros)
        return outs[: scan.carry], (outs[scan.carry :], records)

    carry, (ys, records) = scan.rerun(body, carry, (xs, zeros))
    return [*carry, *ys], records


_ENTER = {"jit": _call, "remat": _remat, "scan": _scan, "cond": _cond}


def derived_values(plan: Plan, parameters: list[Any]) -> dict[int, Any]:
    """The derived sources' values from the parameters alone (what depends on data is left out)."""
    known: dict[int, Any] = {}
    missing = [None] * (len(plan.jaxpr.invars) - len(parameters))
    _derive(plan, [*parameters, *missing], known)
    return known


def _derive(plan: Plan, values: list[Any], known: dict[int, Any]) -> list[Any]:
    jaxpr = plan.jaxpr
    env = dict(zip(jaxpr.constvars, jaxpr.consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))

    def read(atom):
        return atom.val if _compat.is_literal(atom) else env[atom]

    for index, eqn in enumerate(jaxpr.eqns):
        ins, action = [read(v) for v in eqn.invars], plan.actions.get(index)
        if isinstance(action, Enter) and action.kind == "cond":
            for inner in action.plans:
                _derive(inner, ins[1:], known)
            outs = [None] * len(eqn.outvars)
        elif isinstance(action, Enter) and action.kind != "scan":
            outs = _derive(action.plans[0], ins, known)
        elif action is not None or any(value is None for value in ins):
            outs = [None] * len(eqn.outvars)
        else:
            outs = _compat.bind(eqn, ins)
        for output, source in plan.derived.get(index, ()):
            known[source] = outs[output]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]
