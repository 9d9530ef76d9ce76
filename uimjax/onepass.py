"""One forward and backward pass over a batch, every output that is wanted of it."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import factors as algebra
from uimjax import sketch as sketching
from uimjax.curvature import Curvature
from uimjax.errors import ShapeError, UnknownNameError, UsageError
from uimjax.sketch import AnySketch, Sketch
from uimjax.taps import Sites, axes_of, each_example, owners, positions, tokens
from uimjax.task import Task

OUTPUTS = ("loss", "norm", "leaf_norms", "sketch", "factors", "gradients", "curvature", "signals")
APART = ("loss", "norm", "leaf_norms", "sketch", "gradients")  # what single positions and tokens have
PER = ("example", "position", "token")


def collect(
    task: Task,
    params: Any,
    batch: Any,
    want: Iterable[str] = ("loss", "norm"),
    *,
    sketch: AnySketch | None = None,
    curvature: Curvature | None = None,
    mask: Any = None,
    per: Literal["example", "position", "token"] = "example",
) -> dict[str, Any]:
    """The outputs wanted of one batch, `[B, ...]`, by one compiled program; a further output adds its own arithmetic.

    - `loss` `[B]` nats; `norm` `[B]`, exact; `leaf_norms` `{path: [B]}`, each parameter's
    - `sketch` `[B, D]` (`sketch`, rank 16 unless given); `factors` and `gradients` as `uj.factors` and
      `uj.per_example_gradients` give them
    - `curvature`: what the batch adds to a curvature of its sketches, for `curvature.add(state, ..., rows)`; rows whose
      `mask` `[rows]` or `[B]` is False (padding) add nothing
    - `signals` `{"margin", "probability", "correct"}` `[B]` of classifiers: z_y - max_{k != y} z_k, softmax(z)_y, and
      whether y is the largest (arXiv 2009.10795, 2001.10528)

    With packed rows (`task.segments`) an example is a document, and B is rows x `task.documents`. `per` takes rows
    apart further, for losses `[T]`: every output is then `[B, T, ...]` (B rows), of

    - "position": what of the row's gradient runs through position t, `a_t (x) g_t`. Free of charge; a parameter whose
      use has no positions is refused.
    - "token": the gradient of token t's loss. T backward passes.

    Both add up to the row's gradient over t, and differ where a token's loss depends on earlier positions.

    Raises:
        UnknownNameError: an output that nobody has. UsageError: `signals` without the task's outputs and label, a
        choice without the output it is for, or an output that has no meaning for `per`. ShapeError: the loss is a
        scalar, and `per` asks for more. As `uj.factors` for parameters, rows and loss.

    >>> import jax.numpy as jnp, uimjax as uj
    >>> task = uj.Task(lambda w, x: jnp.sum(jnp.square(x @ w)))
    >>> found = uj.collect(task, jnp.ones((2, 3)), jnp.ones((4, 2)), want=("norm", "sketch"))
    >>> found["norm"].shape, found["sketch"].shape
    ((4,), (4, 6))
    """
    wanted = tuple(dict.fromkeys([want] if isinstance(want, str) else want))
    _check(task, wanted, sketch, curvature, mask, per)
    found = algebra.proven(task, params, batch)
    axes = axes_of(task, found, params, batch) if per == "position" else None
    if per == "token" and not found.program.out_avals[0].shape:
        raise ShapeError("the loss of one row is a scalar; per='token' wants one entry a token, [T]")
    chosen = (sketch or Sketch()) if {"sketch", "curvature"} & set(wanted) else None
    count = jax.tree.leaves(batch)[0].shape[0]
    if mask is not None and len(mask) not in (count, count * max(task.documents, 1)):
        raise ShapeError(f"a mask of {len(mask)} entries arrived for {count} rows; one a row or document was wanted")
    drawn = sketching.drawn(found, chosen)
    if per != "example":
        return _apart(task, found, axes, wanted, chosen, per)(params, batch, drawn)
    return _program(task, found, wanted, chosen, curvature)(params, batch, drawn, mask)


def _check(task: Task, wanted: tuple[str, ...], sketch: Any, curvature: Any, mask: Any, per: str) -> None:
    """Refuse what has no answer before anything is followed or compiled."""
    for name in wanted:
        if name not in OUTPUTS:
            raise UnknownNameError("output", name, OUTPUTS)
    if "signals" in wanted and (task.outputs is None or task.label is None):
        raise UsageError("signals need logits and a class: give the task outputs(params, example) and label(example)")
    if curvature is None and "curvature" in wanted:
        raise UsageError("which curvature? pass curvature=uimjax.curvature.projected() or another")
    for name, choice, uses in (("sketch", sketch, ("sketch", "curvature")), ("curvature", curvature, ("curvature",))):
        if choice is not None and not set(uses) & set(wanted):
            raise UsageError(f"{name}={choice} is for the output {' or '.join(uses)}, and want={wanted} has none")
    if mask is not None and "curvature" not in wanted:
        raise UsageError("a mask changes the output curvature alone; leave it out, or cut the padding off the results")
    if per not in PER:
        raise UnknownNameError("way to take rows apart", per, PER)
    if per != "example" and not set(wanted) <= set(APART):
        raise UsageError(f"per={per!r} gives {', '.join(APART)}; want={wanted} asks for more")
    if mask is not None and np.ndim(mask) != 1:
        raise ShapeError(f"a mask of shape {np.shape(mask)} arrived; one entry a row was wanted")
    if task.segments is not None and "signals" in wanted:
        raise UsageError("signals are of the classes of whole rows, and packed rows hold documents; ask without them")


@functools.lru_cache(maxsize=32)
def _apart(task: Task, found: Sites, axes: Any, wanted: tuple[str, ...], sketch: AnySketch | None, per: str):
    """Compiled: the outputs of every position, or of every token's loss, `[B, T, ...]`."""

    def finish(drawn: Any, factors: Any) -> dict[str, Any]:
        made = _of_factors(found, sketch, drawn, factors)
        return {name: made[name]() for name in wanted if name != "loss"}

    def program(params: Any, batch: Any, drawn: Any) -> dict[str, Any]:
        counted = None if task.segments is None else owners(task, batch).any(1)
        if per == "token":
            losses, made = tokens(found, params, batch, functools.partial(finish, drawn), counted)
        else:
            losses, factors = positions(found, axes, params, batch, counted)
            made = jax.tree.map(lambda x: x.reshape(*losses.shape, *x.shape[1:]), finish(drawn, factors))
        return {name: losses if name == "loss" else made[name] for name in wanted}

    return jax.jit(program)


@functools.lru_cache(maxsize=32)
def _program(task: Task, found: Sites, wanted: tuple[str, ...], sketch: AnySketch | None, curvature: Curvature | None):
    def program(params: Any, batch: Any, drawn: Any, mask: Any) -> dict[str, Any]:
        losses, factors = each_example(task, found, params, batch)
        of_factors = _of_factors(found, sketch, drawn, factors)
        made = of_factors | {
            "loss": lambda: losses,
            "factors": lambda: factors,
            "curvature": lambda: _added(found, sketch, curvature, of_factors["sketch"](), mask),
            "signals": lambda: jax.vmap(lambda r: signals(task.outputs(params, r), task.label(r)))(batch),  # type: ignore[misc]  # checked before
        }
        return {name: made[name]() for name in wanted}

    return jax.jit(program)


def _of_factors(found: Sites, sketch: AnySketch | None, drawn: Any, factors: Any) -> dict[str, Callable[[], Any]]:
    """What follows from factors alone, each made once and only if it is asked for."""
    sums = functools.cache(lambda: algebra.leaf_norms(found, factors))
    return {
        "norm": lambda: jnp.sqrt(sum(sums().values())),
        "leaf_norms": lambda: {path: jnp.sqrt(square) for path, square in sums().items()},
        "sketch": functools.cache(lambda: sketching.rows(found, sketch, drawn, factors)),
        "gradients": lambda: algebra.dense(found, factors),
    }


def _added(found: Sites, sketch: Any, curvature: Any, rows: Any, mask: Any) -> Any:
    if mask is not None:  # of rows, or of the documents in them
        rows = jnp.where(jnp.repeat(mask, rows.shape[0] // mask.shape[0])[:, None], rows, 0)
    return curvature.batch(sketching.columns(found, sketch), rows)


def signals(logits: Any, label: Any) -> dict[str, Any]:
    """Margin, probability and correctness of one example's logits `[C]`."""
    return {
        "margin": margin(logits, label),
        "probability": jax.nn.softmax(logits)[label],
        "correct": jnp.argmax(logits) == label,
    }


def margin(logits: Any, label: Any) -> Any:
    """z_y - max_{k != y} z_k of one example's logits `[C]`: positive where the answer is right."""
    others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
    return logits[label] - jnp.max(others)
