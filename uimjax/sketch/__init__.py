"""Projections of gradients to few numbers, chosen by a value: `Sketch` (two-sided, from factors), `DenseSketch` (TRAK),
`SparseSketch` (GraSS). One surface for all of them; each kind has its formula and guarantees in its own file."""

import dataclasses
import functools
from typing import Any

import jax

from uimjax.errors import UnknownNameError
from uimjax.sketch import dense, kronecker, sparse, unsketched
from uimjax.sketch.base import VERSION
from uimjax.sketch.dense import DenseSketch
from uimjax.sketch.kronecker import Sketch
from uimjax.sketch.sparse import SparseSketch
from uimjax.sketch.truncated import low_rank, principal
from uimjax.taps import Factors, Sites

AnySketch = Sketch | DenseSketch | SparseSketch
_KINDS: dict[str, Any] = {
    "kronecker": (Sketch, kronecker),
    "dense": (DenseSketch, dense),
    "sparse": (SparseSketch, sparse),
}

__all__ = [
    "VERSION", "AnySketch", "DenseSketch", "Sketch", "SparseSketch",
    "columns", "drawn", "from_record", "lift", "low_rank", "principal", "record", "rows", "shapes",
]  # fmt: skip


def _of(sketch: AnySketch | None) -> tuple[str, Any]:
    if sketch is None:
        return "none", unsketched
    return next((name, module) for name, (kind, module) in _KINDS.items() if isinstance(sketch, kind))


def columns(found: Sites, sketch: AnySketch | None) -> tuple[tuple[int, int], ...]:
    """Column ranges of the rows, one for each block of a curvature."""
    return _of(sketch)[1].columns(sketch, found)


def shapes(found: Sites, sketch: AnySketch) -> tuple[tuple[int, int], ...]:
    """Of the matrices that those blocks hold, row by row; a block that is no matrix has one row."""
    if isinstance(sketch, Sketch):
        return kronecker.shapes(sketch, found)
    return tuple((1, stop - start) for start, stop in columns(found, sketch))


@functools.lru_cache(maxsize=32)
def drawn(found: Sites, sketch: AnySketch | None) -> Any:
    """What the sketch draws, once for each program and choice: matrices, or the key they follow from."""
    return _of(sketch)[1].draw(sketch, found, jax.random.key(0 if sketch is None else sketch.seed))


def drawn_shapes(found: Sites, sketch: AnySketch | None) -> Any:
    """Of what the sketch draws, the shapes; nothing is drawn, or kept."""
    return jax.eval_shape(lambda: drawn.__wrapped__(found, sketch))


def rows(found: Sites, sketch: AnySketch | None, held: Any, factors: Factors, reference: Sites | None = None) -> Any:
    """Sketched gradients `[B, D]`; no sketch: as they are. `reference`: the sites whose columns they are, where `found`
    follows another loss over the same parameters."""
    size = next(uses[0].examples for uses in factors.values() if uses)
    return _of(sketch)[1].apply(sketch, found, held, factors, reference or found, size)


def lift(found: Sites, sketch: AnySketch | None, held: Any, vectors: Any) -> dict[str, Any]:
    """The adjoint of sketching: `[Q, D]` to `{path: [Q, *parameter shape]}`, `<lift(v), G> = <v, sketch(G)>`."""
    return _of(sketch)[1].lift(sketch, found, held, vectors)


def record(sketch: AnySketch) -> dict[str, Any]:
    """For manifests: the kind, the choice, and the version of what follows from it."""
    return {"kind": _of(sketch)[0]} | dataclasses.asdict(sketch) | {"version": VERSION}


def from_record(found: dict[str, Any]) -> AnySketch:
    """The choice that a manifest records; those of version 1 name no kind."""
    choice = {key: value for key, value in found.items() if key not in ("kind", "version")}
    kind = found.get("kind", "kronecker")
    if kind not in _KINDS:
        raise UnknownNameError("kind of sketch", kind, _KINDS)
    return _KINDS[kind][0](**choice)
