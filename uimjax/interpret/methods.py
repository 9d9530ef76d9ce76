"""The page of presets, and `score`: every method over data small enough to be seen row by row."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax.curvature import Adam, Curvature, Harmonic, Kronecker, Operator, Source, adam, projected
from uimjax.errors import BudgetError, UnknownNameError, UsageError
from uimjax.interpret import base, baselines, exact, rerank, segments, sketched
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.trajectory import Checkpoint, over_checkpoints, run_of
from uimjax.mesh import replicated, shard_params
from uimjax.rows import Pass
from uimjax.sketch import AnySketch, DenseSketch, Sketch, SparseSketch
from uimjax.task import Measurement, Task

HELD = 4 << 30  # bytes of rows that `score` holds at once for a method with curvature

PRESETS: dict[str, Method] = {
    "grad_dot": Method("grad_dot", normalize="none"),
    "grad_cos": Method("grad_cos"),
    "retain_cos": Method("retain_cos", retain=True),  # the failure's gradient less what clean rows explain
    "tracin": Method("tracin", normalize="none", checkpoints="sum"),  # arXiv 2002.08484
    "less": Method("less", curvature=Adam(), normalize="update", checkpoints="sum"),  # arXiv 2402.04333
    "trak": Method(
        "trak", DenseSketch(2048), projected(source=Source("margin")), "none", checkpoints="mean"
    ),  # 2303.14186
    "logra": Method("logra", Sketch(16), projected(), normalize="none"),  # arXiv 2405.13954
    "grass": Method("grass", SparseSketch(), projected(), normalize="none"),  # arXiv 2505.18976
    "trackstar": Method("trackstar", Sketch(16), projected()),  # arXiv 2410.17413
    "diagonal": Method("diagonal", curvature=Kronecker("diagonal"), normalize="none"),
    "kfac": Method("kfac", curvature=Kronecker("kfac"), normalize="none"),  # arXiv 1503.05671
    "ekfac": Method("ekfac", curvature=Kronecker("ekfac"), normalize="none"),  # arXiv 2308.03296
    "relatif": Method("relatif", curvature=Kronecker("ekfac"), normalize="self"),  # arXiv 2003.11630
    "source": Method("source", curvature=Kronecker("ekfac"), normalize="none", checkpoints="segments"),  # 2405.12186
    "datainf": Method("datainf", curvature=Harmonic(), normalize="none"),  # arXiv 2310.00902
    "arnoldi": Method("arnoldi", curvature=Operator("arnoldi"), normalize="none"),  # arXiv 2112.03052
    "cg": Method("cg", curvature=Operator("cg", iterations=50), normalize="none"),  # arXiv 1703.04730
    "lissa": Method("lissa", curvature=Operator("lissa"), normalize="none"),  # arXiv 1602.03943
}
BASELINES, LEXICAL = baselines.NAMES, baselines.LEXICAL
AUTO = "auto"
LARGE = 30_000_000  # parameters, from which on "auto" sketches: EK-FAC's bases and a query's direction are as many


def get(name: str, sketch: AnySketch | None = None) -> Method:
    """A preset by name, with another sketch if one is given.

    Raises:
        UnknownNameError: names the nearest.
    """
    if name not in PRESETS:
        raise UnknownNameError("method", name, [*PRESETS, *BASELINES, AUTO])
    method = PRESETS[name]
    return dataclasses.replace(method, sketch=sketch) if sketch is not None else method


def with_damping(method: Method, value: float) -> Method:
    """The same method with its damping given, times the mean eigenvalue; one that has none (no curvature, Adam's
    metric, the segments of a run) as it is.

    Raises:
        UsageError: the value is not above 0.
    """
    its = method.curvature
    if isinstance(its, Kronecker | Operator | Harmonic) and method.checkpoints != "segments":
        return dataclasses.replace(method, curvature=dataclasses.replace(its, damping=value))
    if isinstance(its, Curvature) and its.with_damping is not None:
        return dataclasses.replace(method, curvature=its.with_damping(value))
    return method


def auto(task: Task, params: Any, data: Any, retain: Any = None) -> tuple[str | Method, str]:
    """(the method that "auto" stands for, why), as in `uimjax help methods`: retain_cos where clean
    rows to retain are given; logra for more than `LARGE` parameters that the loss uses; where `segments.SEGMENTS`
    checkpoints or more are: of sequences less (with Adam's state) or trak, else source (with their steps); else ekfac,
    of the empirical Fisher matrix where the task has no outputs."""
    run = run_of(params)
    size = sum(leaf.size for leaf in base.training_sites(task, run[-1].params, data, check=False).used)
    if retain is not None:
        return "retain_cos", "rows to retain are given"
    if size > LARGE:
        return "logra", f"{size:,} parameters are more than {LARGE:,}"
    if task.outputs is None:
        chosen = dataclasses.replace(PRESETS["ekfac"], curvature=Kronecker("ekfac", Source("empirical")))
        return chosen, "the task has no outputs, so the empirical Fisher matrix"
    several = f"{len(run)} checkpoints of a model of sequences" if len(run) >= segments.SEGMENTS else ""
    if several and all(adam.held(its.optimizer) for its in run) and _sequences(task, run[-1].params, data):
        return "less", f"{several} with Adam's state are given"
    if several and task.label is not None and _sequences(task, run[-1].params, data):
        return "trak", f"{several} are given"
    if several and all(its.steps > 1 for its in run):
        return "source", f"{len(run)} checkpoints with their steps are given"
    return "ekfac", "the task has outputs"


def _sequences(task: Task, params: Any, data: Any) -> bool:
    """Are the outputs logits of every position?"""
    assert task.outputs is not None
    return jax.eval_shape(task.outputs, params, row.example_spec(data)).ndim > 1


def of_index(name: str, retain: bool) -> str:
    """The name of a method for an index, where "auto" keeps what the model does right if it can, and is logra else."""
    return {True: "retain_cos", False: "logra"}[retain] if name == AUTO else name


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
    mesh: Any = None,
    folder: str | Path | None = None,
) -> Scores:
    """Score every training row: `[N, 1]` for the mean of the measurement over the queries, `[N, Q]` with `each`.

    `score_i = - <H^-1 grad f, grad loss_i>`: positive rows are proponents of the failure (see `uimjax.task`). For small
    data, held or streamed in memory; for large data build an index and trace it.

    `params`: the parameters, or a list of `trajectory.Checkpoint` of the training run: a method uses the last alone, or
    their sum by learning rate, their mean, or segments of the run. `retain`: held-out clean rows like the training
    rows, for methods that keep what the model does right (retain_cos). `method` is a preset, a `Method`, "auto" (the
    scores say what it chose), or a baseline (of the last checkpoint): random (by `seed`), loss, grad_norm, rep_sim and
    representer (need `task.features`; queries whose first part, or whole, is an example), bm25 and ngram (need `texts`:
    those of the rows and of the queries).

    `mesh` (`uj.make_mesh`): every batch is split over its data axis, `batch_size` being a multiple of it. `folder`: the
    sums of a Kronecker curvature are kept there once a minute, under a digest of what they follow from, and a pass that
    was stopped goes on; a curvature that is there is not measured again. ("auto" may take a method that keeps nothing.)

    Raises:
        UsageError, UnknownNameError, NonFiniteError, ShapeError, BudgetError; TapError and its children.
    """
    run = run_of(params)
    _check_used(method, mesh, folder, retain, texts)
    if method == AUTO:
        method, why = auto(task, params, data, retain)
        kept = folder if _keeps(_named(method)) else None  # logra has nothing to keep
        more = {"each": each, "batch_size": batch_size, "retain": retain, "mesh": mesh, "folder": kept}
        found = score(task, params, data, measurement, queries, method, **more)
        return found._replace(method=f"{found.method} (auto: {why})")
    if isinstance(method, str) and method in BASELINES:
        return baselines.score(method, task, run[-1].params, data, queries, each, batch_size, seed, texts)
    chosen, how = _named(method), row.Pass(batch_size, mesh, None if folder is None else Path(folder))
    if mesh is not None:
        run, queries = [_placed(mesh, its) for its in run], jax.device_put(queries, replicated(mesh))
        data, retain = jax.tree.map(row.on_host, (data, retain))  # batches are placed as they come
    ask = (data, measurement, queries, chosen, each, how)
    if chosen.checkpoints == "segments":
        return segments.score(task, run, *ask)
    run = run[-1:] if chosen.checkpoints == "last" else run
    one = _exact if chosen.exact else _of_rows
    found = [one(task, its, *ask, retain) for its in run]
    return over_checkpoints(found, [its.rate if chosen.checkpoints == "sum" else 1.0 for its in run])


def _check_used(method: str | Method, mesh: Any, folder: Any, retain: Any, texts: Any) -> None:
    """Nothing was given that the method would not look at."""
    name = method if isinstance(method, str) else method.name
    if method not in (AUTO, *BASELINES):
        _named(method)  # a name that nobody knows is that first of all
    if texts is not None and name not in LEXICAL:
        raise UsageError(f"{name} reads no texts, {' and '.join(LEXICAL)} do: leave texts out")
    if method == AUTO:  # what it takes is looked at when it is known
        return
    if isinstance(method, str) and method in BASELINES:
        if mesh is not None or folder is not None:
            raise UsageError(f"{method} is a baseline: it is split over no mesh and keeps nothing in a folder")
        if retain is not None:
            raise UsageError(f"{method} is a baseline, and keeps nothing of what is right: leave retain out")
        return
    its = _named(method)
    if folder is not None and not _keeps(its):
        raise UsageError(
            f"folder={str(folder)!r} keeps the sums of a Kronecker curvature, and {its.name} has none: leave it out"
        )
    if retain is not None and not its.retain:
        raise UsageError(f"{its.name} keeps nothing of what is right: leave retain out, or take retain_cos")


def _named(method: str | Method) -> Method:
    return get(method) if isinstance(method, str) else method


def _placed(mesh: Any, its: Checkpoint) -> Checkpoint:
    return its._replace(params=shard_params(mesh, its.params), optimizer=shard_params(mesh, its.optimizer))


def _keeps(method: Method) -> bool:
    """Does it sum up a Kronecker curvature on the way? CG and LiSSA do for their damping."""
    its = method.curvature
    return isinstance(its, Kronecker) or (isinstance(its, Operator) and its.damping is None)


def _exact(task, its: Checkpoint, data, measurement, queries, chosen: Method, each, how: Pass, _retain) -> Scores:
    ready = exact.ready(task, its.params, data, measurement, queries, chosen, how, its.optimizer)
    ready = ready._replace(question=measurement.name)
    values, said = exact.streamed(ready, its.params, data, queries, chosen, each, how), ready.how
    if each and ready.terms:
        values, measured = rerank.rerank(ready, its.params, data, queries, chosen, values)
        said = said | {"terms": measured}
    base.finite(values, f"scores of {chosen.name}")
    return Scores(values, base.said(chosen, said.get("damping")), chosen.unit(measurement), said)


def _of_rows(task, its: Checkpoint, data, measurement, queries, chosen: Method, each, how: Pass, retain) -> Scores:
    """Methods whose gradients are sketched, or formed, as rows `[N, D]`."""
    params, curvature = its.params, chosen.of_rows
    found = base.training_sites(task, params, data)
    vectors = base.query_rows(found, measurement, params, queries, chosen.sketch, each)
    keep = chosen.retain and retain is not None
    vectors = base.without(vectors, chosen, base.retained(found, chosen.sketch, params, retain) if keep else None)
    program, drawn = base.row_program(found, found, chosen.sketch), sketching.drawn(found, chosen.sketch)
    inverse, damping, held = None, None, None
    if curvature is not None:
        need = row.count(data) * vectors.shape[1] * 4
        if need > HELD:
            raise BudgetError(f"{need / 2**30:.0f} GiB of rows would be held; build an index and trace it instead")
        held = []
        parts = sketched.by_source(curvature.source, task, found, chosen.sketch, params, data, how)
        columns = sketching.columns(found, chosen.sketch)
        inverse, damping = sketched.curvature(curvature, columns, row.count(data), sketched.kept(parts, held))
    directions = base.directions(chosen, inverse, vectors)

    def scored(block):
        norms = jnp.linalg.norm(block, axis=1)
        unit = block / jnp.maximum(norms, 1e-30)[:, None]
        return (unit @ directions.T) * base.row_scale(chosen, inverse, unit, norms)[:, None]

    scored = jax.jit(scored) if curvature is None else scored
    rows = held if held is not None else (program(params, b.rows, drawn)[1] for b in how.over(data))
    values = np.concatenate([np.asarray(scored(block)) for block in rows])[: row.count(data)]
    base.finite(values, f"scores of {chosen.name}")
    said = {} if curvature is None or damping is None else {"curvature": curvature.name, "damping": damping}
    return Scores(values, base.said(chosen, damping), chosen.unit(measurement), said)
