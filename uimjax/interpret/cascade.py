"""Scored again without what the index left out: the candidates of a cheap first pass, by their gradients themselves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import sketch as sketching
from uimjax.errors import MismatchError
from uimjax.interpret import base, methods
from uimjax.interpret.hits import Trace
from uimjax.interpret.index import Index, part
from uimjax.task import Measurement, Task


def check_rows(index: Index, data: Any) -> None:
    """Are these all the rows that the index was built from?

    Raises:
        MismatchError: no.
    """
    count, first = row.count(data), 0
    if count != index.rows:
        raise MismatchError(
            f"re-ranking looks up rows by their ids: all {index.rows} that {index.folder} was built from were wanted, "
            f"and {count} were given"
        )
    for each in index.manifest["parts"]:
        stop = first + each["rows"]
        if part(jax.tree.map(lambda x, a=first, b=stop: x[a:b], data)) != each:
            raise MismatchError(f"rows {first} to {stop - 1} are not those that {index.folder} was built from")
        first = stop


def rerank(
    found: Trace, asked: Any, task: Task, params: Any, data: Any, measurement: Measurement, queries: Any, each: bool,
    k: int, batch_size: int = 64,
) -> Trace:  # fmt: skip
    """The k strongest among the rows of `found`, at either end, by scores taken anew. Methods without a curvature are
    taken on whole gradients; others have a curvature of sketched rows, and are taken on these as they were before they
    were coded. `how["reranked"]` says which, and how many rows were looked at."""
    held: Index = asked.held
    check_rows(held, data)
    ids = np.unique(np.concatenate([found.proponents, found.opponents], 1))
    ids = ids[ids >= 0]
    rows = row.take(data, ids)
    plain = asked.method.of_rows is None and not asked.method.retain
    if plain:
        whole = dataclasses.replace(asked.method, sketch=None)
        values = methods.score(task, params, rows, measurement, queries, whole, each=each, batch_size=batch_size).values
    else:
        values = _sketched(asked, task, params, rows, batch_size)
    strongest = [
        _strongest(sign * values.T, ids, side, k) for sign, side in ((1, found.proponents), (-1, found.opponents))
    ]
    (top, high), (bottom, low) = strongest
    how = {"reranked": {"rows": len(ids), "by": "whole gradients" if plain else "sketched rows before coding"}}
    label = f"{found.method}, re-ranked by {how['reranked']['by']}"
    return Trace(top, high, bottom, -low, label, found.unit, {**found.how, **how})


def _sketched(asked: Any, task: Task, params: Any, rows: Any, batch_size: int) -> np.ndarray:
    """`[n, Q]`, of rows sketched anew."""
    found, sketch = base.training_sites(task, params, rows, check=False), asked.held.sketch
    program, drawn = base.row_program(found, found, sketch), sketching.drawn(found, sketch)
    out = []
    for batch in row.batches(rows, batch_size):
        vectors = program(params, batch.rows, drawn)[1]
        norms = jnp.linalg.norm(vectors, axis=1)
        unit = vectors / jnp.maximum(norms, 1e-30)[:, None]
        scores = (unit @ asked.directions.T) * base.row_scale(asked.method, asked.inverse, unit, norms)[:, None]
        out.append(np.asarray(scores)[batch.mask])
    return np.concatenate(out)


def _strongest(values: np.ndarray, ids: np.ndarray, among: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `[Q, n]` scores of `ids`, the k largest of those among each query's own candidates; ties to the lower id."""
    k = min(k, among.shape[1])
    own = np.stack([np.isin(ids, mine) for mine in among])
    values = np.where(own, values, -np.inf)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(values, order, 1)
    return np.where(np.isneginf(best), -1, ids[order]), best
