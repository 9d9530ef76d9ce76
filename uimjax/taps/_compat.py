"""The only reader of jaxpr equations' layouts, which are not API: tested on JAX 0.10, 0.11 and 0.12."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend import core


class Opened(NamedTuple):
    """A jaxpr with its constants beside it, whichever class this version of JAX keeps them in."""

    invars: tuple
    outvars: tuple
    eqns: tuple
    constvars: tuple
    consts: tuple


class Scan(NamedTuple):
    body: Opened
    consts: int
    carry: int
    length: int
    rerun: Callable  # (body function, carry, xs) -> (carry, ys), with the equation's own length, order and unrolling


class Dot(NamedTuple):
    """Axes of a dot_general: (lhs, rhs) pairs."""

    contract: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]


class Lookup(NamedTuple):
    """A gather of whole trailing slices along axis 0; `mode` is what happens out of range."""

    mode: str  # "promise" | "clip" | "drop"


def open_jaxpr(jaxpr: Any) -> Opened:
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return Opened(
        tuple(inner.invars),
        tuple(inner.outvars),
        tuple(inner.eqns),
        tuple(inner.constvars),
        tuple(getattr(jaxpr, "consts", ())),
    )


def constants(jaxpr: Any) -> list[Any]:
    """Every constant that a program and the programs inside it close over, in order of appearance."""
    opened = open_jaxpr(jaxpr)
    found = list(opened.consts)
    for eqn in opened.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                if hasattr(inner, "eqns"):
                    found += constants(inner)
    return found


def is_literal(atom: Any) -> bool:
    return isinstance(atom, core.Literal)


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Carry out one equation as it stands; custom derivative rules stay attached."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def source_line(eqn: Any) -> str:
    """Where in the user's code an equation comes from, for error messages; in a library's where no frame is theirs."""
    frame = getattr(eqn.source_info, "traceback", None)
    frames = [f for f in (frame.frames if frame else []) if "/jax/" not in f.file_name]
    frames.sort(key=lambda f: "/site-packages/" in f.file_name)  # stable: the innermost of theirs comes first
    return f"{frames[0].file_name}:{frames[0].line_num}" if frames else "an unknown place"


INLINED = frozenset({"jit", "pjit", "closed_call", "core_call", "core_closed_call"})
REMAT = frozenset({"remat", "remat2", "checkpoint"})


def inner_jaxpr(eqn: Any) -> Opened:
    """The jaxpr of a jit, a call or a remat."""
    return open_jaxpr(eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"])


def remat_wrapper(eqn: Any) -> Callable[[Callable], Callable]:
    """`jax.checkpoint` with the equation's own policy."""
    policy, prevent_cse = eqn.params["policy"], eqn.params["prevent_cse"]
    return lambda fun: jax.checkpoint(fun, policy=policy, prevent_cse=prevent_cse)


def scan(eqn: Any) -> Scan:
    params = eqn.params
    if "num_consts" in params:
        consts, carry = params["num_consts"], params["num_carry"]
    else:  # JAX 0.12 keeps the three groups as a tree
        consts, carry = (len(group) for group in params["ft_in"].unpack()[:2])
    length, reverse, unroll = params["length"], params["reverse"], params["unroll"]

    def rerun(body, init, xs):
        return lax.scan(body, init, xs, length=length, reverse=reverse, unroll=unroll)

    return Scan(open_jaxpr(params["jaxpr"]), consts, carry, length, rerun)


def branches(eqn: Any) -> list[Opened]:
    """The branches of a cond or switch, in the order of its index."""
    return [open_jaxpr(branch) for branch in eqn.params["branches"]]


def dot(eqn: Any) -> Dot:
    contract, batch = eqn.params["dimension_numbers"]
    pairs = [tuple(tuple(int(axis) for axis in side) for side in group) for group in (contract, batch)]
    return Dot(*pairs)  # type: ignore[arg-type]  # two pairs, which pyright cannot count


def operations(eqn: Any) -> float:
    """Of one product or convolution, a multiply-add counting twice; 0 of anything else."""
    if not eqn.outvars:  # a part of the program that gives nothing
        return 0
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "dot_general":
        lhs = eqn.invars[0].aval.shape
        return 2.0 * out.size * math.prod(lhs[axis] for axis in dot(eqn).contract[0])
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        return 2.0 * out.size * kernel.size / kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 0.0


def within(eqn: Any) -> tuple[list[Opened], int]:
    """(the programs inside an equation, how often each runs); of a while loop once, as nobody knows."""
    found = []
    for value in eqn.params.values():
        found += [x for x in (value if isinstance(value, list | tuple) else (value,)) if hasattr(x, "eqns")]
    return [open_jaxpr(x) for x in found], eqn.params["length"] if eqn.primitive.name == "scan" else 1


def permutation(eqn: Any) -> tuple[int, ...]:
    return tuple(eqn.params["permutation"])


def broadcast_dimensions(eqn: Any) -> tuple[int, ...]:
    return tuple(eqn.params["broadcast_dimensions"])


def squeezed(eqn: Any) -> tuple[int, ...]:
    return tuple(eqn.params["dimensions"])


def window(eqn: Any, starts: Sequence[float | None]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(starts, stops) of a slice, or of a dynamic_slice whose starts are known; None with strides or unknown starts."""
    shape = eqn.invars[0].aval.shape
    if eqn.primitive.name == "slice":
        plain = all(step == 1 for step in eqn.params["strides"] or ())
        bounds = tuple(eqn.params["start_indices"]), tuple(eqn.params["limit_indices"])
        return bounds if plain else None
    if any(start is None for start in starts):
        return None
    sizes = tuple(eqn.params["slice_sizes"])
    first = tuple(min(max(int(s), 0), n - size) for s, n, size in zip(starts, shape, sizes, strict=True))  # type: ignore[arg-type]  # none is None
    return first, tuple(a + size for a, size in zip(first, sizes, strict=True))


def split(eqn: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(starts, stops) of each output of a split."""
    shape, axis, at, found = eqn.invars[0].aval.shape, eqn.params["axis"], 0, []
    for size in (int(size) for size in eqn.params["sizes"]):
        starts = tuple(at if k == axis else 0 for k in range(len(shape)))
        found.append((starts, tuple(at + size if k == axis else n for k, n in enumerate(shape))))
        at += size
    return found


def reshape_is_plain(eqn: Any) -> bool:
    return eqn.params.get("dimensions") is None


def lookup(eqn: Any) -> Lookup | None:
    """The gather of an embedding table `[V, *rest]` at indices `[..., 1]`, or None for any other gather."""
    operand, indices = (v.aval for v in eqn.invars)
    numbers, sizes = eqn.params["dimension_numbers"], tuple(eqn.params["slice_sizes"])
    rank, positions = len(operand.shape), len(indices.shape) - 1
    plain = (
        rank > 0
        and indices.shape[-1:] == (1,)
        and numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and not numbers.operand_batching_dims
        and numbers.offset_dims == tuple(range(positions, positions + rank - 1))
        and sizes == (1, *operand.shape[1:])
    )
    if not plain:
        return None
    mode = eqn.params["mode"]
    modes = lax.GatherScatterMode
    return Lookup({modes.PROMISE_IN_BOUNDS: "promise", modes.CLIP: "clip"}.get(mode, "drop"))


class Conv(NamedTuple):
    """A convolution's layout: `lhs`, `rhs`, `out` give (batch, feature, *spatial) axes (for rhs: out, in, *spatial)."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: Any = None
    dtype: Any = None  # of the output, where it is said


def conv(eqn: Any) -> Conv | None:
    """The layout, or None where batch groups make the kernel meet data in another way."""
    p = eqn.params
    if p["batch_group_count"] != 1:
        return None
    numbers = p["dimension_numbers"]
    return Conv(
        tuple(numbers.lhs_spec),
        tuple(numbers.rhs_spec),
        tuple(numbers.out_spec),
        tuple(p["window_strides"]),
        tuple(tuple(pair) for pair in p["padding"]),
        tuple(p["lhs_dilation"]),
        tuple(p["rhs_dilation"]),
        p["feature_group_count"],
        p["precision"],
        p["preferred_element_type"],
    )
