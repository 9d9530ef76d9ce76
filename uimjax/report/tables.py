"""Readable tables of a run: scores and loss dynamics as Parquet with checked pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uimjax.corpora import Document
from uimjax.errors import CorruptError, MissingFileError
from uimjax.store.base import atomic


def _write(path: Path, columns: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns), temporary, write_page_checksum=True)


def write_scores(path: Path, scores: dict[str, np.ndarray], count: int) -> None:
    """`row_id` of `count` rows, then a column a method; positive = proponent."""
    _write(path, {"row_id": np.arange(count), **{name: np.asarray(v, np.float64) for name, v in scores.items()}})


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """Raises MissingFileError, CorruptError."""
    if not path.exists():
        raise MissingFileError(f"{path} is not there; run `uimjax trace` first")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise CorruptError(f"{path} is damaged: {error}. Remove it and run `uimjax trace` again.") from error
    return {name: table[name].to_numpy() for name in table.column_names if name != "row_id"}


def write_dynamics(path: Path, loss: np.ndarray, margin: np.ndarray) -> None:
    """Long form: one record an epoch and row; `loss` and `margin` as the row was met (NaN: left out)."""
    epochs, count = loss.shape
    epoch, row = np.divmod(np.arange(epochs * count), count)
    columns = {"epoch": epoch.astype(np.int32), "row_id": row.astype(np.int64)}
    _write(path, columns | {"loss": loss.reshape(-1), "margin": margin.reshape(-1)})


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """The training corpus as it is, plants included: `row_id`, `path`, `line`, `column`, `text`."""
    columns = {name: [getattr(d, name) for d in documents] for name in ("path", "line", "column", "text")}
    _write(path, {"row_id": np.arange(len(documents))} | columns)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """A Parquet file of rows that have these columns, of none too. Raises OutputError."""
    with atomic(path) as temporary:
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in names}), temporary)
