"""What a trace found: the strongest rows of each query, as arrays and as an Arrow table with the rows' metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uimjax.errors import ShapeError, UsageError
from uimjax.interpret.null import Null
from uimjax.store.base import atomic

COLUMNS = ("query", "side", "rank", "row_id", "score", "p")  # of a trace's table


def check_columns(metadata: pa.Table) -> None:
    """Raises UsageError where metadata have a column of a trace's own."""
    if taken := set(metadata.column_names) & set(COLUMNS):
        raise UsageError(f"metadata has columns {sorted(taken)}, which a trace has itself; rename them")


class Trace(NamedTuple):
    """For each query, best first: `proponents` `[Q, k]` row ids and their positive-end scores, `opponents` likewise.
    `how`: what was done beside (re-ranking). `null`: what questions without content find, if they were asked."""

    proponents: np.ndarray
    proponent_scores: np.ndarray
    opponents: np.ndarray
    opponent_scores: np.ndarray
    method: str
    unit: str
    how: Mapping[str, Any] = {}
    null: Null | None = None

    def table(self, metadata: pa.Table | Mapping[str, Any] | None = None) -> pa.Table:
        """One line a hit: `query`, `side`, `rank` from 1, `row_id`, `score`, with a null band `p`, and the columns of
        `metadata` (one entry a training row) for that row. Positive scores are of proponents: see `uimjax.task`.

        Raises:
            ShapeError: metadata of fewer rows than were found. UsageError: one of its columns has a name of ours.
        """
        queries, k = self.proponents.shape
        sides = {
            "proponent": (self.proponents, self.proponent_scores),
            "opponent": (self.opponents, self.opponent_scores),
        }
        ids, scores = (np.concatenate([side[j].ravel() for side in sides.values()]) for j in range(2))
        columns = {
            "query": np.tile(np.repeat(np.arange(queries, dtype=np.int32), k), 2),
            "side": np.repeat(list(sides), queries * k),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), 2 * queries),
            "row_id": ids,
            "score": scores.astype(np.float32),
        }
        if self.null is not None:
            ends = ((self.proponent_scores, 1), (self.opponent_scores, -1))
            columns["p"] = np.concatenate([self.null.p(x, side).ravel() for x, side in ends])
        made = pa.table(columns).filter(pa.array(ids >= 0))
        if metadata is None:
            return made
        known: pa.Table = metadata if isinstance(metadata, pa.Table) else pa.table(dict(metadata))
        check_columns(known)
        rows = made["row_id"]
        if len(made) and known.num_rows <= (last := max(rows.to_pylist())):
            raise ShapeError(
                f"metadata holds {known.num_rows} rows, and row {last} was found; one a training row was wanted"
            )
        for name, column in zip(known.column_names, known.take(rows.combine_chunks()).columns, strict=True):
            made = made.append_column(name, column)
        return made

    def to_pandas(self, metadata: pa.Table | Mapping[str, Any] | None = None) -> Any:
        return self.table(metadata).to_pandas()

    def to_parquet(self, path: str | Path, metadata: pa.Table | Mapping[str, Any] | None = None) -> None:
        """Atomic; method and unit stand in the file's metadata."""
        said = {"method": self.method, "unit": self.unit, "sign": "positive: a proponent of the failure"}
        with atomic(Path(path)) as temporary:
            pq.write_table(self.table(metadata).replace_schema_metadata(said), temporary)

    def sql(self, query: str, metadata: pa.Table | Mapping[str, Any] | None = None) -> pa.Table:
        """A question in SQL to the table named `trace` (DuckDB).

        Raises:
            UsageError: DuckDB is not installed.
        """
        try:
            import duckdb
        except ImportError as error:
            raise UsageError("SQL takes DuckDB: pip install 'uimjax[sql]', or use .table() with pyarrow") from error
        with duckdb.connect() as base:
            base.register("trace", self.table(metadata))
            return base.sql(query).to_arrow_table()
