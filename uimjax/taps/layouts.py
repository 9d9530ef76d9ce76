"""From what the taps recorded to factors in each parameter's own rows and columns."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from uimjax.taps import views
from uimjax.taps.base import Atom, Dense, Direct, Factor, Gather, Layout, Leaf, Place, Site

FACTORED = ("dense", "conv", "embed")


def site_layout(site: Site) -> Layout | None:
    """Stack, rows (data side of the matrix) and columns (output side) of a factored site; None for plain gradients.

    Of the parameter as a whole, also where the site uses a slice of it.
    """
    used = _used(site)
    return None if used is None else Layout(*(tuple(atom.uncut for atom in group) for group in used))


def _used(site: Site) -> Layout | None:
    """The same for the slice that the site uses; what is cut to one index counts as stack."""
    split = {"dense": _dense_dims, "conv": _conv_dims, "embed": _embed_dims}.get(site.kind)
    if split is None:
        return None
    stack, rows, cols = split(site)
    stack = [atom for level in site.view.outer if level is not None for atom in level] + list(stack)
    groups = ([*stack, *site.view.fixed], rows, cols)
    return Layout(*(views.in_order([a for a in group if not a.broadcast]) for group in groups))


def place(site: Site, layout: Layout) -> Place | None:
    """Where a factored site's factor stands in the parameter's layout; None where it is the whole parameter."""
    used = _used(site)
    assert used is not None
    if not any(atom.whole for group in used for atom in group):
        return None
    stack, rows, cols = (views.indices(group) for group in used)
    return Place(stack, cols, rows) if orientation(site, layout) == "swapped" else Place(stack, rows, cols)


def factored(leaf: Leaf) -> list[tuple[Site, Place | None]]:
    """The sites of a parameter whose gradients stay factored, in the order of its factors, each with its place."""
    kept = [site for site in leaf.sites if site.kind in FACTORED and orientation(site, leaf.layout) != "apart"]
    return [(site, place(site, leaf.layout)) for site in kept]


def form(leaf: Leaf, factors: Sequence[Factor]) -> Any:
    """The factors of one parameter formed and added, `[B, *shape]`; None where it has none."""
    plain = [f.gradient for f in factors if isinstance(f, Direct)]
    total = None
    for factor, where in pair(leaf, factors):
        made = matrices(factor, leaf.layout.shape[1] if where is None or where.rows is None else len(where.rows))
        total = spread(total, made, where, leaf.layout.shape)
    if total is not None:
        plain.append(views.from_matrices(total, leaf.shape, leaf.layout))
    return functools.reduce(jnp.add, plain) if plain else None


def pair(leaf: Leaf, factors: Sequence[Factor]) -> list[tuple[Dense | Gather, Place | None]]:
    """The factored ones of a parameter's factors, each with its place."""
    kept = [f for f in factors if not isinstance(f, Direct)]
    return list(zip(kept, (where for _, where in factored(leaf)), strict=True)) if kept else []


def spread(total: Any, part: Any, where: Place | None, shape: Sequence[int]) -> Any:
    """`total` `[B, *shape]` (None: zeros) plus a part that stands at a place of it."""
    if where is None or not any(axis is not None for axis in where):
        return part if total is None else total + part
    total = jnp.zeros((part.shape[0], *shape), part.dtype) if total is None else total
    at = np.ix_(*(np.arange(n) if axis is None else axis for axis, n in zip(where, shape, strict=True)))
    return total.at[(slice(None), *at)].add(part)


def _dense_dims(site: Site):
    numbers, position = site.detail
    dims = site.view.dims
    batch, contract = numbers.batch[position], numbers.contract[position]
    free = [axis for axis in range(len(dims)) if axis not in (*batch, *contract)]
    return tuple([atom for axis in axes for atom in dims[axis]] for axes in (batch, contract, free))


def _conv_dims(site: Site):
    dims, (out, *inner) = site.view.dims, site.detail.rhs
    split = views.split_leading(dims[out], site.detail.groups)
    assert split is not None
    return split[0], [atom for axis in inner for atom in dims[axis]], split[1]


def _embed_dims(site: Site):
    dims = site.view.dims
    return (), dims[0], [atom for dim in dims[1:] for atom in dim]


def choose(sites: Sequence[Site], shape: tuple[int, ...]) -> Layout:
    """One layout a parameter: that of its first embedding, else of its first matrix use, else vectors as columns.

    Rows are the axes that come first in the parameter, so that uses of a tied weight in two orientations add up.
    """
    candidates = [site for site in sites if site.kind in FACTORED]
    candidates.sort(key=lambda site: site.kind != "embed")
    for site in candidates:
        layout = site_layout(site)
        assert layout is not None
        if not views.tiles([atom for group in layout for atom in group], shape):
            continue
        swapped = Layout(layout.stack, layout.cols, layout.rows)
        later = site.kind == "dense" and bool(layout.rows) and bool(layout.cols) and layout.rows[0] > layout.cols[0]
        return swapped if later else layout
    stack = next((_levels(site) for site in sites if _levels(site)), ())
    rest = _without(shape, stack)
    return Layout(stack, rest[:-1], rest[-1:]) if len(rest) > 1 else Layout(stack, (), rest)


def _levels(site: Site) -> tuple[Atom, ...]:
    atoms = [a.uncut for level in site.view.outer if level is not None for a in level if not a.broadcast]
    return views.in_order(atoms)


def _without(shape: tuple[int, ...], stack: Sequence[Atom]) -> tuple[Atom, ...]:
    """The atoms of a parameter that are not in the stack."""
    whole = [Atom(axis, 1, size) for axis, size in enumerate(shape) if size != 1]
    cut = []
    for atom in whole:
        inside = [s for s in stack if s.axis == atom.axis]
        fine, high = [], atom.size
        for s in views.in_order(inside):
            if high != s.stride * s.size:
                fine.append(Atom(atom.axis, s.stride * s.size, high // (s.stride * s.size)))
            high = s.stride
        if high > 1 or not inside:
            fine.append(Atom(atom.axis, 1, high))
        cut.extend(a for a in fine if a not in stack and a.size > 1)
    return views.in_order(cut)


def _same(one: Sequence[Atom], other: Sequence[Atom]) -> bool:
    left, right = views.refine(one, other), views.refine(other, one)
    return left is not None and right is not None and sorted(left) == sorted(right)


def orientation(site: Site, layout: Layout) -> str:
    """How a factored site lies in the parameter's layout: "as is", "swapped", or "apart" (then it is made dense)."""
    own = site_layout(site)
    assert own is not None
    if _same(own.stack, layout.stack):
        if _same(own.rows, layout.rows) and _same(own.cols, layout.cols):
            return "as is"
        if site.kind != "embed" and _same(own.rows, layout.cols) and _same(own.cols, layout.rows):
            return "swapped"
    return "apart"


# ---------------------------------------------------------------- raw records to factors


def factor(
    site: Site, record: Any, g: Any, layout: Layout, shape: tuple[int, ...], part: Callable[[Any], Any] | None = None
) -> Factor:
    """One site's factor. `record` `[B, *levels, *data shape]`, `g` `[B, *levels, *output shape]`.

    `part` takes a factored site's factor apart before it is laid out.
    """
    if site.kind == "bias":
        return Direct(_to_source(site, _unbroadcast(site, g), shape))
    if site.kind == "scale":
        return Direct(_to_source(site, _unbroadcast(site, _times(site, record, g)), shape))
    if site.kind == "direct":
        return Direct(_to_source(site, g, shape))
    found = raw_factor(site, record, g)
    found = found if part is None else part(found)
    if site.view.scale != 1.0:
        found = found._replace(g=found.g * jnp.asarray(site.view.scale, found.g.dtype))
    way = orientation(site, layout)
    if way == "swapped":
        assert isinstance(found, Dense)
        return Dense(found.g, found.a, found.owner)
    if way == "apart":
        own, used = site_layout(site), _used(site)
        assert own is not None
        assert used is not None
        where = Place(*(views.indices(group) for group in used))
        return Direct(views.from_matrices(spread(None, matrices(found, used.shape[1]), where, own.shape), shape, own))
    return found


def raw_factor(site: Site, record: Any, g: Any) -> Any:
    """A factored site's factor in the site's own rows and columns, unscaled."""
    return {"dense": _dense, "conv": _conv, "embed": _embed}[site.kind](site, record, g)


def _wide(*arrays: Any) -> Any:
    """The widest of their types, float32 at least."""
    return max(
        (x.dtype for x in arrays if x.dtype.itemsize >= 4), key=lambda t: t.itemsize, default=jnp.dtype("float32")
    )


def contract(a: Any, g: Any, owner: Any) -> Any:
    """`sum_t a_t (x) g_t` `[B, n, I, O]`; with `owner` each gradient's own positions, `[B * K, n, I, O]`. Summed, and
    returned, in float32 at least."""
    dtype = _wide(a, g)
    a, g = (a, g) if a.dtype == g.dtype else (a.astype(dtype), g.astype(dtype))
    if owner is None:
        return jnp.einsum("bnti,bnto->bnio", a, g, preferred_element_type=dtype)
    mine = g[:, None] * owner[:, :, None, :, None].astype(g.dtype)
    found = jnp.einsum("bnti,bknto->bknio", a, mine, preferred_element_type=dtype)
    return found.reshape(-1, *found.shape[2:])


def expand(found: Any) -> Any:
    """The same gradients without an owner: each row's data repeated for its K gradients. Memory: K times."""
    if isinstance(found, Direct) or found.owner is None:
        return found
    k = found.owner.shape[1]
    g = found.g[:, None] * found.owner[:, :, None, :, None].astype(found.g.dtype)
    return type(found)(jnp.repeat(found[0], k, 0), g.reshape(-1, *g.shape[2:]))


def matrices(found: Factor, rows: int):
    """A factored gradient formed: `[B, n, I, O]`; `rows` is I."""
    if isinstance(found, Dense):
        return contract(found.a, found.g, found.owner)
    found = expand(found)
    assert isinstance(found, Gather)
    batch, n, _ = found.ids.shape
    lead = jnp.arange(batch)[:, None, None], jnp.arange(n)[None, :, None]
    dtype = _wide(found.g)
    return jnp.zeros((batch, n, rows, found.g.shape[-1]), dtype).at[(*lead, found.ids)].add(found.g.astype(dtype))


def _to_source(site: Site, raw: Any, shape: tuple[int, ...]):
    return views.to_source(raw, site.view, shape)


def _times(site: Site, record: Any, g: Any):
    """Data times cotangent, the data's missing axes (a scalar operand) filled in."""
    lead = 1 + site.levels
    if record.ndim < g.ndim:
        record = record.reshape(*record.shape[:lead], *(1,) * (g.ndim - record.ndim), *record.shape[lead:])
    return record * g


def _unbroadcast(site: Site, g: Any):
    """Sum over the axes that an elementwise equation stretched the operand along (a scalar, or axes of size 1)."""
    lead = 1 + site.levels
    if not site.value_shape:
        return g.sum(tuple(range(lead, g.ndim)))
    stretched = [lead + k for k, n in enumerate(site.value_shape) if n == 1 and g.shape[lead + k] != 1]
    return g.sum(tuple(stretched), keepdims=True) if stretched else g


def _mark(kind: int, k: int, size: int) -> Atom:
    """A label for an axis that is no part of the parameter and is summed over (a position)."""
    return Atom(-1 - kind, k, size)


def _level_axes(site: Site) -> list[tuple[Atom, ...]]:
    return [
        (_mark(1, k, site.tap_shape[k]),) if level is None else _marked(level, 10 + k)
        for k, level in enumerate(site.view.outer)
    ]


def _marked(atoms: Sequence[Atom], key: int) -> tuple[Atom, ...]:
    """Atoms with their broadcast ones made distinct."""
    return tuple(_mark(100 + key, k, a.size) if a.broadcast else a for k, a in enumerate(atoms))


def _fold(x: Any, axes: Sequence[Sequence[Atom]], stack, positions, last) -> Any:
    """`[B, ...]` to `[B, n, T, last]`."""
    return views.arrange(x, axes, (stack, positions, last))


def _split(axes: Sequence[Sequence[Atom]]):
    """(stack atoms in the parameter's order, position labels in order of appearance)."""
    flat = [atom for axis in axes for atom in axis]
    return views.in_order([a for a in flat if not a.broadcast]), [a for a in flat if a.broadcast]


def _dense(site: Site, record: Any, g: Any) -> Dense:
    numbers, position = site.detail
    dims, other = site.view.dims, 1 - position
    batch, contract = numbers.batch, numbers.contract
    levels = _level_axes(site)
    shared = [_marked(dims[axis], 50 + k) for k, axis in enumerate(batch[position])]
    data_shape = record.shape[1 + site.levels :]
    data_free = [axis for axis in range(len(data_shape)) if axis not in (*batch[other], *contract[other])]
    free = [(_mark(2, axis, data_shape[axis]),) for axis in data_free]
    weight_free = [dims[axis] for axis in range(len(dims)) if axis not in (*batch[position], *contract[position])]

    data_axes: list[Sequence[Atom]] = [()] * len(data_shape)
    for label, axis in zip(shared, batch[other], strict=True):
        data_axes[axis] = label
    for axis, mate in zip(contract[other], contract[position], strict=True):
        data_axes[axis] = dims[mate]
    for label, axis in zip(free, data_free, strict=True):
        data_axes[axis] = label
    out_axes = [*shared, *(weight_free + free if position == 0 else free + weight_free)]

    stack, positions = _split([*levels, *shared, *free])
    rows = views.in_order([atom for axis in contract[position] for atom in dims[axis]])
    cols = views.in_order([atom for dim in weight_free for atom in dim])
    return Dense(
        _fold(record, [*levels, *data_axes], stack, positions, rows),
        _fold(g, [*levels, *out_axes], stack, positions, cols),
    )


def _embed(site: Site, record: Any, g: Any) -> Gather:
    levels, dims = _level_axes(site), site.view.dims
    index_shape = record.shape[1 + site.levels : -1]
    free = [(_mark(2, axis, size),) for axis, size in enumerate(index_shape)]
    stack, positions = _split([*levels, *free])
    cols = views.in_order([atom for dim in dims[1:] for atom in dim])
    rows = site.value_shape[0]
    ids = _fold(record, [*levels, *free, ()], stack, positions, ())[..., 0].astype(jnp.int32)
    g = _fold(g, [*levels, *free, *dims[1:]], stack, positions, cols)
    if site.detail.mode == "drop":
        g = jnp.where(((ids >= 0) & (ids < rows))[..., None], g, 0)
    return Gather(jnp.clip(ids, 0, rows - 1), g)


def _patches(image: Any, conv: Any, window: Sequence[int], out: Sequence[int]) -> Any:
    """`[..., N, C, *spatial]` to `[..., N, C, W, *out]`: for each of the W offsets in the window, the entries that it
    meets. Cut out as slices: `lax`'s own patches are a convolution with one-hot kernels, several times as slow."""
    lead = image.ndim - len(window)
    around = [(low, high, dilation - 1) for (low, high), dilation in zip(conv.padding, conv.lhs_dilation, strict=True)]
    padded = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0)] * lead + around)
    each = []
    for offset in np.ndindex(*window):
        first = [at * dilation for at, dilation in zip(offset, conv.rhs_dilation, strict=True)]
        last = [a + (n - 1) * step + 1 for a, n, step in zip(first, out, conv.strides, strict=True)]
        starts, stops = [0] * lead + first, [*padded.shape[:lead], *last]
        each.append(lax.slice(padded, starts, stops, [1] * lead + list(conv.strides)))
    return jnp.stack(each, lead)


def _conv(site: Site, record: Any, g: Any) -> Dense:
    """Patches are cut from the input; channels split into groups become a stack."""
    conv, levels, dims = site.detail, _level_axes(site), site.view.dims
    lead = record.shape[: 1 + site.levels]
    image = record.reshape(-1, *record.shape[len(lead) :])
    image = image.transpose(0, *(1 + axis for axis in conv.lhs))  # [lead, N, C, *spatial]
    count, channels = image.shape[1:3]
    window = tuple(site.value_shape[axis] for axis in conv.rhs[2:])
    out_spatial = tuple(site.tap_shape[site.levels + axis] for axis in conv.out[2:])
    patches = _patches(image, conv, window, out_spatial)
    patches = patches.reshape(*lead, count, channels, *window, *out_spatial)
    split = views.split_leading(dims[conv.rhs[0]], conv.groups)
    assert split is not None
    groups, cols = split
    inner = [dims[axis] for axis in conv.rhs[1:]]
    marks = [(_mark(2, 0, count),), *((_mark(3, k, size),) for k, size in enumerate(out_spatial))]
    patch_axes = [*levels, marks[0], (*groups, *inner[0]), *inner[1:], *marks[1:]]
    out_axes: list[Sequence[Atom]] = [()] * len(conv.out)
    for axis, label in zip(conv.out, [marks[0], (*groups, *cols), *marks[1:]], strict=True):
        out_axes[axis] = label
    stack, positions = _split([*levels, groups, *marks])
    rows = views.in_order([atom for dim in inner for atom in dim])
    whole = not site.levels and conv.groups == 1 and not any(a.whole for a in rows) and not site.view.fixed
    return Dense(
        _fold(patches, patch_axes, stack, positions, rows),
        _fold(g, [*levels, *out_axes], stack, positions, views.in_order(cols)),
        image=record if whole else None,
    )


def convolved(site: Site, image: Any, matrix: Any) -> Any:
    """`[B, 1, T, p]`: the patches of `image` times `matrix` `[I, p]`, as a convolution with the matrix for its kernel:
    no patch is cut, and it costs what the layer itself does."""
    conv, dims = site.detail, site.view.dims
    inner = [dims[axis] for axis in conv.rhs[1:]]
    rows = views.in_order([atom for dim in inner for atom in dim])
    kernel = views.arrange(matrix.T, [rows], inner)  # [p, C, *window]
    kernel = jnp.moveaxis(kernel, (0, 1), (-1, -2))  # [*window, C, p], the order that XLA's CPU backend is fast in
    rank = kernel.ndim
    merged = jnp.moveaxis(image, 1 + conv.lhs[0], 1)
    merged = merged.reshape(-1, *merged.shape[2:])
    left = [axis for axis in range(rank) if axis != conv.lhs[0]]  # axes of the data after the batch's
    numbers = lax.ConvDimensionNumbers(
        (0, *(1 + left.index(axis) for axis in conv.lhs[1:])),
        (rank - 1, rank - 2, *range(rank - 2)),
        (0, rank - 1, *range(1, rank - 1)),
    )
    out = lax.conv_general_dilated(
        merged, kernel, conv.strides, conv.padding, conv.lhs_dilation, conv.rhs_dilation, numbers
    )
    return out.reshape(image.shape[0], 1, -1, out.shape[-1])
