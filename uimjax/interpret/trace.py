"""Ask an index: stream its shards once, keep the top proponents and opponents of each query, never N x Q."""

import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import store
from uimjax.curvature.base import Curvature
from uimjax.curvature.damping import Chosen
from uimjax.errors import MismatchError, ShapeError, UsageError
from uimjax.interpret import ann as approximate
from uimjax.interpret import base, cascade, methods, sketched
from uimjax.interpret import groups as grouping
from uimjax.interpret import null as nothing
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.hits import Trace
from uimjax.interpret.index import Index, open_index, task_digest
from uimjax.interpret.strongest import Stored, strongest
from uimjax.store.coding import BLOCK
from uimjax.taps import Sites
from uimjax.task import Measurement, Task


class Asked(NamedTuple):
    """A question made ready: one direction a query, the curvature it was solved with, and why that damping; `lengths`
    `[Q]`: what each was divided by; `span`: what was taken out of it before."""

    held: Index
    method: Method
    unit: str
    inverse: Any
    directions: Any
    damping: Chosen | None = None
    lengths: Any = None
    span: base.Span | None = None


class Question(NamedTuple):
    """The gradients of a question `[Q, D]`, before any method is chosen."""

    held: Index
    measurement: Measurement
    vectors: Any


def ask(
    index: Index | str | Path,
    task: Task,
    params: Any,
    example: Any,
    measurement: Measurement,
    queries: Any,
    method: str | Method = "grad_cos",
    each: bool = False,
    retain: Any = None,
) -> Asked:
    """Turn queries into directions. `example` is any rows of the training data (for their shapes); `retain`: held-out
    clean rows, for methods that keep what the model does right. Several methods or failures share their gradients by
    `question`, `retained` and `by`.

    Raises:
        MismatchError: the index was built with other parameters or another loss.
        UsageError: rows to retain, and a method that does not. UnknownNameError, ShapeError, NonFiniteError.
    """
    _retains(method, retain)
    asked = question(index, task, params, example, measurement, queries, each)
    span = None if retain is None else retained(asked.held, task, params, example, retain)
    return by(asked, method, span)


def question(
    index: Index | str | Path,
    task: Task,
    params: Any,
    example: Any,
    measurement: Measurement,
    queries: Any,
    each: bool = False,
    together: int = 0,
) -> Question:
    """The gradients of the queries in the index's columns; of their mean, or of each; `together`: so many in memory at
    once (0: `base.TOGETHER`). Raises as `ask`."""
    index = index if isinstance(index, Index) else open_index(index)
    found = _same_model(index, task, params, example)
    rows = base.query_rows(found, measurement, params, queries, index.sketch, each, together)
    return Question(index, measurement, rows)


def retained(index: Index | str | Path, task: Task, params: Any, example: Any, retain: Any) -> base.Span:
    """What the rows to retain explain, in the index's columns. Raises as `ask`."""
    index = index if isinstance(index, Index) else open_index(index)
    return base.retained(_same_model(index, task, params, example), index.sketch, params, retain)


def by(asked: Question, method: str | Method, span: base.Span | None = None) -> Asked:
    """One method's directions for a question; `span` for those that keep what the model does right. Raises as `ask`."""
    index, chosen = asked.held, _method(method, span is not None)
    if not isinstance(method, str) and method.sketch not in (None, index.sketch):
        raise MismatchError(f"{method.name} wants {method.sketch!r} and {index.folder} was built with {index.sketch!r}")
    chosen = dataclasses.replace(chosen, sketch=index.sketch)
    vectors, inverse, damping = base.without(asked.vectors, chosen, span), None, None
    if chosen.of_rows is not None and chosen.of_rows.source.kind != "empirical":
        raise UsageError(
            f"{chosen.name}: its curvature is made of {chosen.of_rows.source.kind} gradients, and an index holds those "
            "of the loss alone. Use `uj.score`, or trace with logra or trackstar."
        )
    if chosen.of_rows is not None:
        inverse, damping = _curved(index, chosen.of_rows)
    directions, lengths = (made(chosen, inverse, vectors) for made in (base.directions, base.length))
    return Asked(index, chosen, chosen.unit(asked.measurement), inverse, directions, damping, lengths, span)


_CURVED: dict[tuple[int, Curvature], tuple[Any, Any]] = {}  # of indexes that are open


def _curved(index: Index, choice: Curvature) -> tuple[Any, Any]:
    """(the curvature of an index's rows, its damping): no question changes them, and all of the index is read for
    them, so they are kept while the index is open."""
    key = id(index), choice
    if key not in _CURVED:
        whole = ((shard.ids, _full(index, shard)) for shard in index.shards())
        parts = (sketched.Part(ids, rows, rows) for ids, rows in whole)
        _CURVED[key] = sketched.curvature(choice, index.blocks, index.rows, parts)
        weakref.finalize(index, _CURVED.pop, key, None)  # another index may be given its id
    return _CURVED[key]


def _retains(method: str | Method, retain: Any) -> None:
    if retain is not None and not (its := _method(method, True)).retain:
        raise UsageError(f"{its.name} keeps nothing of what is right: leave retain out, or take retain_cos")


def _method(method: str | Method, retain: bool) -> Method:
    return methods.get(methods.of_index(method, retain)) if isinstance(method, str) else method


def _same_model(index: Index, task: Task, params: Any, example: Any) -> Sites:
    """The sites of the loss, once the index is known to be of these parameters and of this loss."""
    found = base.training_sites(task, params, example, check=False)
    for key, value in (("params", store.digest_tree(params)), ("task", task_digest(found))):
        if index.manifest[key] != value:
            what = {"params": "other parameters", "task": "another loss"}[key]
            raise MismatchError(
                f"{index.folder} was built with {what} than these, so its scores would mean nothing. Load the "
                "checkpoint it was built from, or build an index of this one into another folder."
            )
    return found


def trace(
    index: Index | str | Path,
    task: Task,
    params: Any,
    data: Any,
    measurement: Measurement,
    queries: Any,
    method: str | Method = "grad_cos",
    *,
    k: int = 20,
    each: bool = False,
    retain: Any = None,
    where: Any = None,
    rerank: int = 0,
    null: Any = 0,
    ann: bool = False,
) -> Trace:
    """The k strongest proponents and opponents of the queries' mean (of each query with `each`), in one pass.

    `where` `[N]` bool: only rows where it is True are asked, the others' shards are not even read. `rerank`: so many
    candidates at either end are scored again by their gradients themselves (`cascade.rerank`); `data` are then all
    rows that the index was built from, otherwise any of them (for their shapes). `null`: so many shuffled questions are
    asked beside, and every hit has the chance `p` that one of those does as well (`uimjax.interpret.null`); or rows
    like the queries that show nothing of the failure. `ann`: by the approximate index alone (`ann.build_ann`), for
    cosine methods; its measured recall stands in the answer, and its candidates can be re-ranked.

    See `ask` for the other arguments and what is refused. Raises: MismatchError: other rows than the index has, to
    re-rank. ShapeError: `where` is no mask of its rows. UsageError: no row is left, rerank is smaller than k,
    or null beside rerank.
    """
    if rerank and rerank < k:
        raise UsageError(f"{rerank} candidates cannot give the {k} strongest: rerank={k} or more was wanted")
    if k < 1:
        raise UsageError(f"k = {k} examples were asked for; at least 1 was wanted")
    banded = not isinstance(null, int | np.integer) or null != 0
    if rerank and banded:
        raise UsageError(
            "a null band is of the scores of the index, and re-ranked ones have another scale: take one of both"
        )
    if ann and (banded or where is not None):
        raise UsageError("an approximate index asks all rows, and has no null band: leave where and null, or ann, out")
    if banded:
        _retains(method, retain)
        found = question(index, task, params, data, measurement, queries, each)
        span = None if retain is None else retained(found.held, task, params, data, retain)
        made = by(found, method, span)
        band = beside(made, task, params, data, measurement, queries, null)
        return top_beside(made, found.vectors, band, k, where)
    asked = ask(index, task, params, data, measurement, queries, method, each, retain)
    if not rerank:
        return approximate.top(asked, k) if ann else top(asked, k, where)
    cascade.check_rows(asked.held, data)
    found = approximate.top(asked, rerank) if ann else top(asked, rerank, where)
    return cascade.rerank(found, asked, task, params, data, measurement, queries, each, k)


def beside(
    asked: Asked, task: Task, params: Any, data: Any, measurement: Measurement, queries: Any, null: Any,
    shuffle: Any = nothing.shuffled, together: int = 0,
) -> Any:  # fmt: skip
    """Directions `[B, D]` of questions without content, made as those of `asked` were; `null` as `trace` takes it,
    `shuffle(queries, seed)` what takes the content away."""
    found = base.training_sites(task, params, data, check=False)

    def gradients(rows: Any) -> Any:
        return base.query_rows(found, measurement, params, rows, asked.held.sketch, True, together)

    each = len(asked.directions) == row.count(queries)  # of one query its mean is itself
    vectors = base.without(nothing.questions(queries, null, each, gradients, shuffle), asked.method, asked.span)
    return base.directions(asked.method, asked.inverse, vectors)


def top_beside(asked: Asked, vectors: Any, null: Any, k: int, where: Any = None) -> Trace:
    """As `top`, with the band of the directions `null` asked in the same pass; `vectors`: the question's gradients."""
    count = len(asked.directions)
    both = top(asked._replace(directions=jnp.concatenate([asked.directions, null])), k, where)
    ends = (both.proponent_scores[count:, 0], both.opponent_scores[count:, 0])
    real = {name: getattr(both, name)[:count] for name in Trace._fields[:4]}
    grows = asked.method.normalize in ("none", "self")  # with the length of the query
    length = np.linalg.norm(np.asarray(vectors), axis=1) if grows else np.ones(count)
    largest, smallest = (np.sort(x) for x in ends)
    return both._replace(**real, null=nothing.Null(largest, smallest, np.where(length > 0, length, 1)))


def totals(
    index: Index | str | Path,
    task: Task,
    params: Any,
    data: Any,
    measurement: Measurement,
    queries: Any,
    groups: Any,
    method: str | Method = "grad_cos",
    *,
    each: bool = False,
    retain: Any = None,
) -> grouping.Totals:
    """The scores of all rows added up by group: `groups` is a label a row (source, document), or
    `uimjax.interpret.groups.step_windows`. One pass, never N x Q. Raises as `ask`; ShapeError: groups of other rows.
    """
    made = groups if isinstance(groups, grouping.Groups) else grouping.grouped(groups)
    held = index if isinstance(index, Index) else open_index(index)
    if not isinstance(groups, grouping.Groups) and len(groups) != held.rows:
        raise ShapeError(f"{len(groups)} labels for an index of {held.rows} rows; one a row was wanted")
    asked = ask(held, task, params, data, measurement, queries, method, each, retain)
    label = base.said(asked.method, asked.damping)
    return grouping.totals(streamed(asked), made, held.rows, label, asked.unit)


def top(asked: Asked, k: int = 20, where: Any = None) -> Trace:
    """The k strongest proponents and opponents of a question made ready, streamed over shards. Raises as `trace`."""
    if k < 1:
        raise UsageError(f"k = {k} examples were asked for; at least 1 was wanted")
    held, kept = asked.held, None
    if where is not None:
        kept = np.asarray(where)
        if kept.shape != (held.rows,) or kept.dtype != bool:
            raise ShapeError(
                f"where is {kept.dtype}{list(kept.shape)}; bool[{held.rows}], one for each row, was wanted"
            )
        if not kept.any():
            raise UsageError("where leaves no row to ask")
    k = min(k, held.rows if kept is None else int(kept.sum()))
    entries = [e for e in held.entries if kept is None or kept[e.start : e.stop].any()]
    shards = (
        Stored(
            entry.start,
            *_stored(held, shard, _scale(asked, shard)),
            None if kept is None else kept[entry.start : entry.stop],
        )
        for entry, shard in zip(entries, held.shards(entries), strict=True)
    )
    best = strongest(shards, asked.directions, k)
    label = base.said(asked.method, asked.damping)
    return Trace(best.largest_index, best.largest, best.smallest_index, best.smallest, label, asked.unit)


def score_all(asked: Asked) -> Scores:
    """Every row's score, `[N, Q]`: for data small enough to look at whole."""
    parts = [scores for _, scores in streamed(asked)]
    how = {} if asked.damping is None else {"damping": asked.damping}
    return Scores(np.concatenate(parts), base.said(asked.method, asked.damping), asked.unit, how)


def streamed(asked: Asked) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, scores `[n, Q]`) of every shard."""
    for entry, shard in zip(asked.held.entries, asked.held.shards(), strict=True):
        products = asked.held.vectors(shard) @ asked.directions.T
        yield entry.start, np.asarray(products * _scale(asked, shard)[:, None])


def _stored(index: Index, shard: store.Shard, scale: Any) -> tuple[Any, Any, Any]:
    """(rows, what each counts, their blocks' scales): as they are stored, where that can be multiplied."""
    coding, width = index.coding, index.manifest["width"]
    plain = coding.rank == 0 and coding.dtype != "int4"
    if plain and (coding.dtype != "int8" or width % BLOCK["int8"] == 0):
        return shard.vectors.numbers, scale, shard.vectors.scales
    return np.asarray(index.vectors(shard)), scale, None


def _full(index: Index, shard: store.Shard):
    return index.vectors(shard) * jnp.asarray(shard.norm)[:, None]


def _scale(asked: Asked, shard: store.Shard):
    if asked.method.of_rows is None:  # unit rows are unit rows; what a coding took from their length is no reason
        return jnp.asarray(shard.norm if asked.method.normalize == "none" else shard.norm > 0, jnp.float32)
    return base.row_scale(asked.method, asked.inverse, asked.held.vectors(shard), jnp.asarray(shard.norm))
