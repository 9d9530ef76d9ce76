"""What the taps speak of: atoms and views (how a value is cut from a parameter), sites, and factored gradients.

A parameter's axes are cut into *atoms*, so that a reshape, a transposition or a scan over stacked layers only moves
atoms about. The gradient of one example at a site is kept as the factors that make it, never formed unless asked.
"""

import math
from typing import Any, NamedTuple


class Atom(NamedTuple):
    """A piece of one axis of a source; its index counts by `stride` along `axis`. A negative axis: broadcast.

    `whole` > 0: a slice, the indices `[start, start + size)` of an atom of `whole`.
    """

    axis: int
    stride: int
    size: int
    start: int = 0
    whole: int = 0

    @property
    def broadcast(self) -> bool:
        return self.axis < 0

    @property
    def uncut(self) -> "Atom":
        """The atom that this one is a slice of; itself where it is none."""
        return Atom(self.axis, self.stride, self.whole or self.size)


class View(NamedTuple):
    """A value that is `scale` times a rearrangement (plus constants) of one source.

    `dims`: the atoms of each axis. `outer`: for each enclosing scan, the atoms its iterations run over, or None where
    every iteration sees the same value (its gradient then sums over them). `fixed`: atoms cut down to one index, which
    stand in no axis any more (one layer of a stack, one of the three in a fused qkv).
    """

    source: int
    dims: tuple[tuple[Atom, ...], ...]
    outer: tuple[tuple[Atom, ...] | None, ...] = ()
    scale: float = 1.0
    fixed: tuple[Atom, ...] = ()

    @property
    def bijective(self) -> bool:
        return not any(atom.broadcast for dim in self.dims for atom in dim)


class Site(NamedTuple):
    """One USE of a parameter by data.

    `kind`: dense, conv, embed (factored) or scale, bias, direct (the gradient itself, in the parameter's shape).
    `value_shape` is that of the weight at the point of use, for one scan iteration; `tap_shape` that of the zero
    added there, for one example with the enclosing scans' lengths in front. `detail` is the equation's layout.
    `behind`: of a bias, the sites of the matrices whose outputs it is added to, where nothing else reads these: all
    have one cotangent, whatever the data.
    """

    number: int
    kind: str
    source: int
    view: View
    value_shape: tuple[int, ...]
    tap_shape: tuple[int, ...]
    tap_dtype: Any
    detail: Any
    line: str
    behind: tuple[int, ...] = ()

    @property
    def levels(self) -> int:
        return len(self.view.outer)

    @property
    def repeats(self) -> int:
        return math.prod(self.tap_shape[: self.levels])


class Layout(NamedTuple):
    """A parameter as a stack of matrices: atoms of the stack [n], the rows [I] and the columns [O]."""

    stack: tuple[Atom, ...]
    rows: tuple[Atom, ...]
    cols: tuple[Atom, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        n, i, o = (math.prod(atom.size for atom in group) for group in self)
        return n, i, o


class Place(NamedTuple):
    """Where in its parameter's stack, rows and columns a factor of a slice stands: indices, None for all of them."""

    stack: Any
    rows: Any
    cols: Any


class Dense(NamedTuple):
    """Gradient `[B, n, I, O] = sum_t a[:, :, t, :, None] * g[:, :, t, None, :]`; a `[B, n, T, I]`, g `[B, n, T, O]`.

    Rows and columns are the parameter's own (`Layout`): for a weight used transposed the activation lies in `g`.
    With `owner` `[B, K, T]` (0 or 1): K gradients a row, `[B * K, n, I, O]`, each the sum over its own positions.
    `image`: what the patches in `a` are cut from, where a convolution may stand for a product with them.
    """

    a: Any
    g: Any
    owner: Any = None
    image: Any = None

    @property
    def examples(self) -> int:
        return _examples(self.g, self.owner)


class Gather(NamedTuple):
    """Gradient `[B, n, I, O] = sum_t onehot(ids[:, :, t], I)[..., None] * g[:, :, t, None, :]`; ids `[B, n, T]` int.

    `owner` as in `Dense`.
    """

    ids: Any
    g: Any
    owner: Any = None

    @property
    def examples(self) -> int:
        return _examples(self.g, self.owner)


class Direct(NamedTuple):
    """The gradient itself, `[B, *parameter shape]`."""

    gradient: Any

    @property
    def examples(self) -> int:
        return self.gradient.shape[0]


def _examples(g: Any, owner: Any) -> int:
    return g.shape[0] if owner is None else owner.shape[0] * owner.shape[1]


Factor = Dense | Gather | Direct


class Leaf(NamedTuple):
    """One parameter: its path, shape, the layout its sketches and curvature use, and its uses."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    layout: Layout
    sites: tuple[Site, ...]
    through: tuple[int, ...] = ()  # derived values that its gradient also comes back through

    @property
    def used(self) -> bool:
        return bool(self.sites or self.through)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def axis_atoms(shape: tuple[int, ...]) -> tuple[tuple[Atom, ...], ...]:
    """The identity view's dims: one atom an axis, none for axes of size 1."""
    return tuple((Atom(axis, 1, size),) if size != 1 else () for axis, size in enumerate(shape))
