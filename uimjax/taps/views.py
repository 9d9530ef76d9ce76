"""How views move through parameter-only equations, and how raw gradients come back to the parameter's own shape."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from uimjax.taps.base import Atom, Layout, View

Dims = tuple[tuple[Atom, ...], ...]


def size(atoms: Sequence[Atom]) -> int:
    return math.prod(atom.size for atom in atoms)


def transpose(dims: Dims, permutation: Sequence[int]) -> Dims:
    return tuple(dims[axis] for axis in permutation)


def broadcast(dims: Dims, shape: Sequence[int], where: Sequence[int]) -> Dims:
    """`broadcast_in_dim`: operand axis k becomes axis where[k]; new or stretched axes hold a broadcast atom."""
    new: list[tuple[Atom, ...]] = [(Atom(-1, axis, n),) if n != 1 else () for axis, n in enumerate(shape)]
    for axis, target in enumerate(where):
        if dims[axis] or shape[target] == 1:
            new[target] = dims[axis]
    return tuple(new)


def reshape(dims: Dims, shape: Sequence[int]) -> Dims | None:
    """Regroup atoms under a new shape, splitting them where axes split; None where sizes do not nest."""
    queue = [atom for dim in dims for atom in dim]
    new = []
    for want in shape:
        taken: list[Atom] = []
        while want > 1:
            if not queue:
                return None
            atom = queue.pop(0)
            if want % atom.size == 0:
                taken.append(atom)
                want //= atom.size
            elif atom.size % want == 0:
                rest = atom.size // want
                if atom.start % rest or atom.whole % rest:
                    return None
                taken.append(Atom(atom.axis, atom.stride * rest, want, atom.start // rest, atom.whole // rest))
                queue.insert(0, Atom(atom.axis, atom.stride, rest))
                want = 1
            else:
                return None
        new.append(tuple(taken))
    return tuple(new) if not queue else None


def cut(atoms: Sequence[Atom], start: int, stop: int) -> tuple[tuple[Atom, ...], tuple[Atom, ...]] | None:
    """The indices `[start, stop)` of one axis: (its atoms, those cut to one index); None where they do not nest."""
    if start == 0 and stop == size(atoms):
        return tuple(atoms), ()
    outer, inner = atoms[0], size(atoms[1:])
    if start // inner == (stop - 1) // inner:  # within one index of the outermost atom
        deeper = cut(atoms[1:], start % inner, (stop - 1) % inner + 1)
        if deeper is None:
            return None
        one = () if outer.broadcast else (_slice(outer, start // inner, 1),)
        return deeper[0], (*one, *deeper[1])
    if start % inner or stop % inner:
        return None
    return (_slice(outer, start // inner, (stop - start) // inner), *atoms[1:]), ()


def _slice(atom: Atom, start: int, count: int) -> Atom:
    if atom.broadcast:
        return atom._replace(size=count)
    return Atom(atom.axis, atom.stride, count, atom.start + start, atom.uncut.size)


def indices(atoms: Sequence[Atom]) -> Any:
    """Where the slices among `atoms` (in order) stand in the axis that they make up uncut, or None where none is."""
    if not any(atom.whole for atom in atoms):
        return None
    found = np.zeros(1, np.int32)
    for atom in atoms:
        found = (found[:, None] * atom.uncut.size + np.arange(atom.start, atom.start + atom.size)).reshape(-1)
    return found


def split_leading(atoms: Sequence[Atom], groups: int) -> tuple[tuple[Atom, ...], tuple[Atom, ...]] | None:
    """Cut one axis's atoms into an outer part of `groups` and the rest; None where they do not nest."""
    dims = reshape((tuple(atoms),), (groups, size(atoms) // groups))
    return None if dims is None else (dims[0], dims[1])


def in_order(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Atoms in the source's own (row-major) order."""
    return tuple(sorted(atoms, key=lambda atom: (atom.axis, -atom.stride)))


def refine(atoms: Sequence[Atom], by: Sequence[Atom]) -> tuple[Atom, ...] | None:
    """Split `atoms` where the finer atoms of `by` split the same axes; None where they do not nest."""
    out: list[Atom] = []
    for atom in atoms:
        cuts = sorted(
            {b.stride for b in by if b.axis == atom.axis and atom.stride < b.stride < atom.stride * atom.size},
            reverse=True,
        )
        high = atom.stride * atom.size
        for stride in [*cuts, atom.stride]:
            if high % stride:
                return None
            out.append(Atom(atom.axis, stride, high // stride))
            high = stride
    return tuple(out)


def tiles(atoms: Sequence[Atom], shape: Sequence[int]) -> bool:
    """Do the atoms make up every axis of the source exactly once?"""
    ordered = in_order(atoms)
    for axis, want in enumerate(shape):
        stride = want
        for atom in (a for a in ordered if a.axis == axis):
            if atom.stride * atom.size != stride:
                return False
            stride = atom.stride
        if stride != 1 and want != 1:
            return False
    return True


def arrange(x, axes: Sequence[Sequence[Atom]], target: Sequence[Sequence[Atom]]):
    """Regroup the trailing axes of `x`: `axes` gives the atoms of each, `target` those of each axis wanted.

    Leading axes stay. Every atom of `axes` stands exactly once in `target`.
    """
    lead = x.ndim - len(axes)
    atoms = [atom for group in axes for atom in group]
    full = x.reshape(*x.shape[:lead], *(atom.size for atom in atoms))
    order = [atoms.index(atom) for group in target for atom in group]
    full = full.transpose(*range(lead), *(lead + k for k in order))
    return full.reshape(*x.shape[:lead], *(size(group) for group in target))


def to_source(raw, view: View, shape: Sequence[int]):
    """A gradient with respect to the viewed value, `[B, *levels, *value shape]`, in the source's shape `[B, *shape]`.

    Sums over broadcast atoms and over scans that all see the same value; applies the view's scale.
    """
    groups = [(), *view.outer, *view.dims]
    summed = tuple(k for k, level in enumerate(view.outer, start=1) if level is None)
    if summed:
        raw = raw.sum(summed)
        groups = [group for k, group in enumerate(groups) if k not in summed]
    atoms = [atom for group in groups if group for atom in group]
    full = raw.reshape(raw.shape[0], *(atom.size for atom in atoms))
    gone = tuple(k for k, atom in enumerate(atoms, start=1) if atom.broadcast)
    if gone:
        full = full.sum(gone)
        atoms = [atom for atom in atoms if not atom.broadcast]
    for atom in view.fixed:
        full, atoms = full[..., None], [*atoms, atom]
    order = sorted(range(len(atoms)), key=lambda k: (atoms[k].axis, -atoms[k].stride))
    full = full.transpose(0, *(1 + k for k in order))
    if any(atom.whole for atom in atoms):
        around = [(a.start, a.uncut.size - a.start - a.size) for a in (atoms[k] for k in order)]
        full = jnp.pad(full, [(0, 0), *around])
    full = full.reshape(raw.shape[0], *shape)
    return full if view.scale == 1.0 else full * jnp.asarray(view.scale, full.dtype)


def to_matrices(gradient, layout: Layout):
    """`[B, *shape]` as the layout's stack of matrices `[B, n, I, O]`."""
    atoms = in_order([*layout.stack, *layout.rows, *layout.cols])
    flat = gradient.reshape(gradient.shape[0], -1)
    return arrange(flat, [atoms], layout)


def from_matrices(matrices, shape: Sequence[int], layout: Layout):
    """The inverse of `to_matrices`."""
    atoms = in_order([*layout.stack, *layout.rows, *layout.cols])
    return arrange(matrices, layout, [atoms]).reshape(matrices.shape[0], *shape)
