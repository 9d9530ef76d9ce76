"""What every attribution method is made of: the choice itself, and the program from examples to gradient rows."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax.curvature import Curvature
from uimjax.curvature.adam import Adam
from uimjax.curvature.harmonic import Harmonic
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.operator import Operator
from uimjax.errors import NonFiniteError, ShapeError, UimError, UnknownNameError, UsageError
from uimjax.sketch import AnySketch
from uimjax.taps import Sites, capture, sites, verify
from uimjax.task import NATS, RELATIVE, Measurement, Task

NORMALIZE = ("none", "unit", "self", "update")
CHECKPOINTS = ("last", "sum", "mean", "segments")
TOGETHER = 64  # queries whose gradients are taken at once
EXACT = (Kronecker, Operator, Harmonic, Adam)  # curvatures of whole gradients


@dataclass(frozen=True)
class Method:
    """An attribution method as a value: `score_i = - <H^-1 grad f, grad loss_i>` in the sketched space, or its cosine.

    `curvature` None means H = I; a `Kronecker`, `Operator`, `Harmonic` or `Adam` one takes whole gradients.
    `normalize`: "unit" divides by the whitened norms of both sides (cosine; TrackStar), "self" by the square root of
    the row's self-influence `g^T H^-1 g` (l-RelatIF: Barshan et al. 2020, arXiv 2003.11630), "update" by `|H^-1 g|` and
    the query's own norm (theta-RelatIF; the cosine with the update, LESS). `retain`: `grad f` is first made orthogonal
    to the loss gradients of held-out clean rows, so that training rows which merely teach the same answers well are not
    taken for the cause. `checkpoints`: what to do with several of a training run: the "last" alone, the "sum" of their
    scores by learning rate (TracInCP, LESS), their "mean" (TRAK's ensembles), or "segments" of the run (SOURCE).
    """

    name: str
    sketch: AnySketch | None = None
    curvature: Curvature | Kronecker | Operator | Harmonic | Adam | None = None
    normalize: Literal["none", "unit", "self", "update"] = "unit"
    retain: bool = False
    checkpoints: Literal["last", "sum", "mean", "segments"] = "last"

    def __post_init__(self):
        if self.normalize not in NORMALIZE:
            raise UnknownNameError("normalisation", self.normalize, NORMALIZE)
        if isinstance(self.curvature, EXACT) and self.sketch is not None:
            raise UsageError(
                f"{self.name}: {self.curvature} is measured on whole gradients, and {self.sketch} leaves none. Take "
                "the sketch away, or a curvature of sketched rows (uimjax.curvature.projected)."
            )
        if self.checkpoints not in CHECKPOINTS:
            raise UnknownNameError("way to use checkpoints", self.checkpoints, CHECKPOINTS)
        if isinstance(self.curvature, Operator | Harmonic) and self.normalize != "none":
            raise UsageError(
                f"{self.name}: normalize={self.normalize!r} needs H^-1 of every training row, and {self.curvature} "
                "would have to be solved for each of them. Take normalize='none', or a Kronecker curvature."
            )
        if self.checkpoints == "segments" and not (isinstance(self.curvature, Kronecker) and self.normalize == "none"):
            raise UsageError(
                f"{self.name}: segments (SOURCE) work on the eigenvalues of a Kronecker curvature, not normalised"
            )
        if self.checkpoints == "segments" and isinstance(self.curvature, Kronecker):
            its = self.curvature
            if unused := [name for name in ("damping", "terms", "query_rank") if getattr(its, name)]:
                raise UsageError(
                    f"{self.name}: segments (SOURCE) have the length of the training for a damping and keep every "
                    f"direction whole: leave {' and '.join(unused)} out"
                )
        if isinstance(self.curvature, EXACT) and self.retain:
            raise UsageError(f"{self.name}: retain is for curvatures of rows; {self.curvature} takes whole gradients")

    @property
    def exact(self) -> bool:
        """The scores are taken on whole gradients, kept as factors; so they are without a sketch or a curvature."""
        plain = self.curvature is None and self.sketch is None and not self.retain
        return plain or isinstance(self.curvature, EXACT)

    @property
    def of_rows(self) -> Curvature | None:
        """The curvature, where it is one of sketched rows.

        Raises:
            UsageError: it is measured on whole gradients.
        """
        if isinstance(self.curvature, EXACT):
            raise UsageError(
                f"{self.name}: {self.curvature} is measured on whole gradients, and an index holds sketched rows. Use "
                "`uj.score`, or trace with logra or trackstar."
            )
        return self.curvature

    @property
    def label(self) -> str:
        """The name, and the sketch the scores were really computed in."""
        return self.name if self.sketch is None else f"{self.name}, {self.sketch}"

    def unit(self, measurement: Measurement) -> str:
        """Nats need an inverse curvature, no normalisation, and a measurement in nats."""
        calibrated = self.normalize == "none" and self.curvature is not None and measurement.unit == "nats"
        return NATS if calibrated else RELATIVE


def said(method: Method, damping: Any) -> str:
    """The label, with the damping where one was chosen on the way."""
    return method.label if damping is None else f"{method.label}, {damping}"


class Scores(NamedTuple):
    """`values` `[N, Q]` in the order of the training rows; positive = proponent of the failure. `unit`: see task.py.
    `how`: what was chosen on the way (the curvature, its damping and the evidence for it)."""

    values: np.ndarray
    method: str
    unit: str
    how: Mapping[str, Any] = MappingProxyType({})


def training_sites(task: Task, params: Any, data: Any, check: bool = True) -> Sites:
    """`followed_sites` of a loss whose rows are to be scored.

    Raises:
        UsageError: rows are packed: a score belongs to a document, and an index has one entry a row.
    """
    if task.segments is not None:
        raise UsageError(
            "tracing takes one document a row, and this task packs several (segments). Pass the documents one by one "
            "with a task without segments; `uj.collect` takes packed rows."
        )
    return followed_sites(task, params, data, check)


def followed_sites(task: Task, params: Any, data: Any, check: bool = True) -> Sites:
    """The sites of a loss, proven on the first rows; bad parameters and rows are refused before compiling."""
    row.check_finite(params, "parameters")
    row.count(data)
    row.check_finite(data, "training rows")
    found = _followed(task, params, data, None, "the task's loss", "one training row")
    if check:
        verify(task, found, params, jax.tree.map(lambda x: x[:4], data))
    return found


def query_sites(found: Sites, measurement: Measurement, params: Any, queries: Any) -> Sites:
    """The sites of a measurement, laid out as the training loss's.

    Raises:
        ShapeError: the measurement cannot be applied to these queries.
    """
    row.count(queries)
    row.check_finite(queries, "queries")
    what = f"the measurement {measurement.name!r}"
    return _followed(measurement.as_task(), params, queries, found, what, "one query")


def _followed(task: Task, params: Any, rows: Any, like: Sites | None, what: str, one: str) -> Sites:
    try:
        return sites(task, params, row.example_spec(rows), like=like)
    except UimError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[1:])}", rows)
        raise ShapeError(
            f"{what} cannot be applied to {one} of {shapes}: {error!r}. "
            "Rows and queries are a pytree of arrays [N, ...]; one of them must look like what the function takes."
        ) from error


@functools.lru_cache(maxsize=32)
def row_program(found: Sites, reference: Sites, sketch: AnySketch | None):
    """Compiled `(params, batch, drawn) -> (losses [B], rows [B, D])`; `reference` fixes the columns."""

    def program(params: Any, batch: Any, drawn: Any):
        losses, factors = capture(found, params, batch)
        return losses, sketching.rows(found, sketch, drawn, factors, reference)

    return jax.jit(program)


def query_rows(
    found: Sites, measurement: Measurement, params: Any, queries: Any, sketch: AnySketch | None, each: bool,
    together: int = 0,
) -> Any:  # fmt: skip
    """`grad f` of each query, `[Q, D]`; or of their mean, `[1, D]`, which asks what caused them together. So many
    queries are in memory at once as `together` says, or `TOGETHER`."""
    asked = query_sites(found, measurement, params, queries)
    program, drawn = row_program(asked, found, sketch), sketching.drawn(found, sketch)
    vectors = _some_at_a_time(lambda rows: program(params, rows, drawn)[1], queries, together or TOGETHER)
    finite(vectors, f"gradients of the measurement {measurement.name!r}")
    return vectors if each else vectors.mean(0, keepdims=True)


class Span(NamedTuple):
    """What rows to retain explain: an orthonormal `basis` `[R, D]` of their gradients, float64."""

    basis: np.ndarray


def retained(found: Sites, sketch: AnySketch | None, params: Any, retain: Any) -> Span:
    """The span of the gradients of the rows to retain, `TOGETHER` of them in memory at once."""
    row.check_finite(retain, "rows to retain")
    program, drawn = row_program(found, found, sketch), sketching.drawn(found, sketch)
    return span_of(_some_at_a_time(lambda rows: program(params, rows, drawn)[1], retain, TOGETHER))


def _some_at_a_time(made: Callable[[Any], Any], rows: Any, most: int) -> Any:
    """`made(rows)` `[N, D]`, for at most so many rows at once; one program serves all of them."""
    count = row.count(rows)
    if count <= most:
        return made(rows)
    return jnp.concatenate([made(batch.rows)[: int(batch.mask.sum())] for batch in row.batches(rows, most)])


def span_of(rows: Any) -> Span:
    """An orthonormal basis of rows (unit rows; directions under 1e-4 are noise), from their Gram matrix: there are far
    fewer rows than columns."""
    rows = np.asarray(rows, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    strength, mix = np.linalg.eigh(rows @ rows.T)  # squares of the singular values
    strong = strength > 1e-8 * strength.max(initial=0.0)
    return Span((mix[:, strong] / np.sqrt(strength[strong])).T @ rows)


def without(vectors: Any, method: Method, span: Span | None) -> Any:
    """The question's gradients less what the rows to retain explain, where the method asks for that.

    Raises:
        UsageError: it asks for that and got no such rows.
    """
    if not method.retain:
        return vectors
    if span is None:
        raise UsageError(
            f"{method.name} keeps what the model does right: pass retain=rows like the training rows, held out and "
            "clean (a few per class or topic; 30 to 200 in all)"
        )
    return remove_span(vectors, span)


def remove_span(vectors: Any, span: Span) -> Any:
    """`v - V V^T v` for the basis V."""
    wide = np.asarray(vectors, np.float64)
    for _ in range(2):  # the second pass takes out what rounding left of the weak directions
        wide = wide - (wide @ span.basis.T) @ span.basis
    return jnp.asarray(wide, jnp.float32)


def finite(values: Any, what: str) -> None:
    fine = np.isfinite(values).all() if isinstance(values, np.ndarray) else _finite(values)
    if not bool(fine):
        raise NonFiniteError(f"{what} hold NaN or infinity; the parameters are finite, so look at the loss itself")


_finite = jax.jit(lambda values: jnp.isfinite(values).all())


def directions(method: Method, inverse: Any, vectors: Any) -> Any:
    """The vector each training row is multiplied with: `- H^-1 grad f`, over the question's `length`."""
    solved = vectors if method.of_rows is None else method.of_rows.solve(inverse, vectors, power=-1.0)
    return -solved / length(method, inverse, vectors)[:, None]


def length(method: Method, inverse: Any, vectors: Any) -> Any:
    """`[Q]`: what a question is divided by: its whitened norm for unit methods, its norm for updates, else 1."""
    if method.normalize == "unit":
        return jnp.maximum(whitened_norm(method, inverse, vectors), 1e-30)
    if method.normalize == "update":
        return jnp.maximum(jnp.linalg.norm(vectors, axis=1), 1e-30)
    return jnp.ones(len(vectors), vectors.dtype)


def row_scale(method: Method, inverse: Any, unit_rows: Any, norms: Any) -> Any:
    """What multiplies `<direction, unit row>`: the row's norm, or one over the unit row's whitened (or solved) norm.

    A row without any gradient caused nothing and scores 0.
    """
    if method.normalize == "none":
        return norms
    found = whitened_norm(method, inverse, unit_rows, -1.0 if method.normalize == "update" else -0.5)
    return jnp.where(norms > 0, 1.0 / jnp.maximum(found, 1e-30), 0.0)


def whitened_norm(method: Method, inverse: Any, rows: Any, power: float = -0.5) -> Any:
    """`|H^-1/2 g|` `[B]`, or of another power."""
    half = rows if method.of_rows is None else method.of_rows.solve(inverse, rows, power=power)
    return jnp.linalg.norm(half, axis=1)
