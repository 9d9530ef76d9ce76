"""The page of presets, and the baselines every one of them has to beat."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import factors as algebra
from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax.curvature import projected
from uimjax.curvature.kronecker import Kronecker
from uimjax.errors import BudgetError, UnknownNameError, UsageError
from uimjax.interpret import base, exact, lexical, rerank
from uimjax.interpret.base import Method, Scores
from uimjax.sketch import AnySketch, Sketch
from uimjax.taps import Sites, capture
from uimjax.task import RELATIVE, Measurement, Task

HELD = 4 << 30  # bytes of rows that `score` holds at once for a method with curvature

PRESETS: dict[str, Method] = {
    "grad_dot": Method("grad_dot", normalize="none"),  # TracIn at one checkpoint
    "grad_cos": Method("grad_cos"),
    "retain_cos": Method("retain_cos", retain=True),  # the failure's gradient less what clean rows explain
    "logra": Method("logra", Sketch(16), projected(0.1), normalize="none"),  # arXiv 2405.13954
    "trackstar": Method("trackstar", Sketch(16), projected(0.1)),  # arXiv 2410.17413
    "kfac": Method("kfac", curvature=Kronecker("kfac"), normalize="none"),  # arXiv 1503.05671
    "ekfac": Method("ekfac", curvature=Kronecker("ekfac"), normalize="none"),  # arXiv 2308.03296
    "relatif": Method("relatif", curvature=Kronecker("ekfac"), normalize="self"),  # arXiv 2003.11630
}
BASELINES = ("random", "loss", "grad_norm", "rep_sim", "bm25")


def get(name: str, sketch: AnySketch | None = None) -> Method:
    """A preset by name, with another sketch if one is given.

    Raises:
        UnknownNameError: names the nearest.
    """
    if name not in PRESETS:
        raise UnknownNameError("method", name, [*PRESETS, *BASELINES])
    method = PRESETS[name]
    return dataclasses.replace(method, sketch=sketch) if sketch is not None else method


def score(
    task: Task,
    params: Any,
    data: Any,
    measurement: Measurement,
    queries: Any,
    method: str | Method = "grad_cos",
    *,
    each: bool = False,
    batch_size: int = 256,
    seed: int = 0,
    retain: Any = None,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Scores:
    """Score every training row: `[N, 1]` for the mean of the measurement over the queries, `[N, Q]` with `each`.

    `score_i = - <H^-1 grad f, grad loss_i>`: positive rows are proponents of the failure (see `uimjax.task`). For small
    data, held or streamed in memory; for large data build an index and trace it. `retain`: held-out clean rows like the
    training rows, for methods that keep what the model does right (retain_cos). `method` is a preset, a `Method`, or
    a baseline: random (by `seed`), loss, grad_norm, rep_sim (needs `task.features` and queries whose first part, or
    whole, is an example), bm25 (needs `texts`: those of the rows and of the queries).

    Raises:
        UnknownNameError, NonFiniteError, ShapeError, BudgetError; TapError and its children for the loss itself.
    """
    if isinstance(method, str) and method in BASELINES:
        return _baseline(method, task, params, data, queries, each, batch_size, seed, texts)
    chosen = get(method) if isinstance(method, str) else method
    if chosen.exact:
        return _exact(task, params, data, measurement, queries, chosen, each, batch_size)
    found = base.training_sites(task, params, data)
    vectors = base.query_rows(found, measurement, params, queries, chosen.sketch, each)
    keep = chosen.retain and retain is not None
    vectors = base.without(vectors, chosen, base.retained(found, chosen.sketch, params, retain) if keep else None)
    program, drawn = base.row_program(found, found, chosen.sketch), sketching.drawn(found, chosen.sketch)
    inverse, held = None, None
    if chosen.of_rows is not None:
        need = row.count(data) * vectors.shape[1] * 4
        if need > HELD:
            raise BudgetError(f"{need / 2**30:.0f} GiB of rows would be held; build an index and trace it instead")
        held = [program(params, b.rows, drawn)[1][: int(b.mask.sum())] for b in row.batches(data, batch_size)]
        state = chosen.of_rows.init(sketching.columns(found, chosen.sketch))
        inverse = chosen.of_rows.finish(functools.reduce(chosen.of_rows.update, held, state))
    directions = base.directions(chosen, inverse, vectors)

    def scored(block):
        norms = jnp.linalg.norm(block, axis=1)
        unit = block / jnp.maximum(norms, 1e-30)[:, None]
        return (unit @ directions.T) * base.row_scale(chosen, inverse, unit, norms)[:, None]

    scored = jax.jit(scored) if chosen.of_rows is None else scored
    blocks = held if held is not None else _stream(program, params, drawn, data, batch_size)
    values = np.concatenate([np.asarray(scored(block)) for block in blocks])[: row.count(data)]
    base.finite(jnp.asarray(values), f"scores of {chosen.name}")
    return Scores(values, chosen.label, chosen.unit(measurement))


def _exact(task, params, data, measurement, queries, chosen, each, batch_size) -> Scores:
    its = exact.ready(task, params, data, measurement, queries, chosen, batch_size)
    values, how = exact.streamed(its, params, data, queries, chosen, each, batch_size), its.how
    if each and its.terms:
        values, measured = rerank.rerank(its, params, data, queries, chosen, values)
        how = how | {"terms": measured}
    base.finite(values, f"scores of {chosen.name}")
    return Scores(values, f"{chosen.label}, {how['damping']}", chosen.unit(measurement), how)


def _stream(program: Any, params: Any, drawn: Any, data: Any, batch_size: int):
    for batch in row.batches(data, batch_size):
        yield program(params, batch.rows, drawn)[1]


# ---------------------------------------------------------------- baselines


def _baseline(name, task, params, data, queries, each, batch_size, seed, texts) -> Scores:
    count, asked = row.count(data), row.count(queries) if each else 1
    if name == "random":
        return Scores(np.random.default_rng(seed).normal(size=(count, asked)), name, RELATIVE)
    if name == "bm25":
        if texts is None:
            raise UsageError("bm25 compares words: pass texts=(texts of the training rows, texts of the queries)")
        values = lexical.bm25(*texts)
        return Scores(values if each else values.mean(1, keepdims=True), name, RELATIVE)
    if name == "rep_sim":
        return Scores(_rep_sim(task, params, data, queries, each, batch_size), name, RELATIVE)
    values = _mapped(
        _row_numbers(task, base.training_sites(task, params, data, check=False), name), params, data, batch_size
    )
    return Scores(np.repeat(values[:, None], asked, 1), name, "nats" if name == "loss" else "norm of the gradient")


@functools.lru_cache(maxsize=16)
def _row_numbers(task: Task, found: Sites, name: str):
    if name == "loss":
        return jax.jit(lambda params, rows: jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(rows))
    return jax.jit(lambda params, rows: algebra.norm(found, capture(found, params, rows)[1]))


def _mapped(program: Callable, params: Any, data: Any, batch_size: int) -> np.ndarray:
    parts = [np.asarray(program(params, b.rows))[: int(b.mask.sum())] for b in row.batches(data, batch_size)]
    return np.concatenate(parts)


def _rep_sim(task: Task, params: Any, data: Any, queries: Any, each: bool, batch_size: int) -> np.ndarray:
    if task.features is None:
        raise UsageError("rep_sim compares representations: give the task features(params, example) -> [D]")

    def unit(params, rows):
        found = jax.vmap(lambda r: task.features(params, r).ravel())(rows)  # pyright: ignore[reportOptionalCall]
        return found / jnp.maximum(jnp.linalg.norm(found, axis=1, keepdims=True), 1e-30)

    program = jax.jit(unit)
    bad = queries[0] if isinstance(queries, tuple) else queries  # of a contrast, the failing half
    asked = np.asarray(program(params, bad))
    values = _mapped(program, params, data, batch_size) @ asked.T
    return values if each else values.mean(1, keepdims=True)
