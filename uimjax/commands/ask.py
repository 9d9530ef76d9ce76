"""Ask an index of the reader's own model which training rows a failure comes from."""

import argparse
import sys
from pathlib import Path
from typing import Any

from uimjax.commands.base import as_json, loaded, override
from uimjax.errors import DataError, MissingFileError, ShapeError, UnknownNameError, UsageError

SHUFFLED = 100  # questions of the null band, unless told otherwise
WIDE = 48  # letters of a column that are shown


def ask(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.allocator import keep_buffers

    keep_buffers()  # before anything computes
    from uimjax.config import TraceConfig, read_yaml
    from uimjax.store.base import make_folder

    config = override(TraceConfig, read_yaml(Path(args.target)), rest)
    asked = question(config)
    metadata, found, groups = answer(config, asked)
    out = make_folder(Path(args.out or Path(args.target).with_suffix(".trace")))
    found.to_parquet(out / "hits.parquet", metadata)
    if groups is not None:
        _write(out / "groups.parquet", groups.table())
    hits = found.table(metadata).to_pylist()
    if args.json:
        band = None if found.null is None else found.null.band().tolist()
        document = {"method": found.method, "unit": found.unit, "out": str(out), "null_band": band, "hits": hits}
        print(as_json(document | ({} if groups is None else {"groups": groups.table().to_pylist()})))
        return 0
    _show(found, hits, groups, out)
    return 0


def question(config: Any) -> tuple[Any, ...]:
    """(index, task, params, rows, measurement, queries) of a config."""
    from uimjax.corpora import read_rows
    from uimjax.interpret.index import open_index

    rows, index = read_rows(config.rows), open_index(config.index)
    task, params, measurement, queries = loaded(config.load, "(uimjax.Task, params, uimjax.Measurement, queries)", 4)
    return index, task, params, rows, measurement, queries


def answer(config: Any, asked: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """(metadata or None, the trace, totals by group or None)."""
    from uimjax.corpora import read_rows
    from uimjax.interpret import trace
    from uimjax.interpret.hits import check_columns

    index = asked[0]
    metadata = read_metadata(config.metadata, index.rows) if config.metadata else None
    for name in (*config.where, *filter(None, [config.group_by])):
        if metadata is None or name not in metadata.column_names:
            raise UnknownNameError("column of the metadata", name, [] if metadata is None else metadata.column_names)
    if metadata is not None:
        check_columns(metadata)  # before anything is asked
    retain = read_rows(config.retain) if config.retain else None
    choices = {"each": config.each, "retain": retain}
    where = kept(metadata, config.where) if config.where else None
    how = {"k": config.k, "where": where, "rerank": config.rerank, "null": shuffles(config), "ann": config.ann}
    found = trace.trace(*asked, method=config.method, **how, **choices)
    if metadata is None or not config.group_by:
        return metadata, found, None
    return metadata, found, trace.totals(*asked, groups=labels(config, metadata), method=config.method, **choices)


def shuffles(config: Any) -> int:
    """Questions of the null band."""
    return (0 if config.rerank or config.ann else SHUFFLED) if config.null is None else config.null


def labels(config: Any, metadata: Any) -> Any:
    """Groups of the rows that `where` leaves; the others are in none."""
    import pyarrow as pa
    from pyarrow import compute

    column = metadata[config.group_by].combine_chunks()
    if not config.where:
        return column
    found: Any = compute  # its functions are made when it is imported
    return found.if_else(pa.array(kept(metadata, config.where)), column, pa.scalar(None, column.type))


def read_metadata(path: str, rows: int) -> Any:
    """An Arrow table of one line a training row.

    Raises:
        MissingFileError, DataError; ShapeError: not as many lines as the index has rows.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet
    from pyarrow import json as lines

    readers: dict[str, Any] = {".parquet": parquet.read_table, ".jsonl": lines.read_json, ".csv": csv.read_csv}
    if not Path(path).is_file():
        raise MissingFileError(f"metadata: {path} is not there")
    if Path(path).suffix not in readers:
        raise DataError(f"metadata: {path}; {', '.join(readers)} were wanted")
    try:
        found = readers[Path(path).suffix](path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"metadata: {path} cannot be read: {error}") from error
    if found.num_rows != rows:
        raise ShapeError(f"metadata: {path} has {found.num_rows} lines and the index {rows} rows; one a row was wanted")
    return found


def kept(metadata: Any, where: dict[str, tuple[Any, ...]]) -> Any:
    """`[N]` bool: rows whose columns have one of the values.

    Raises:
        UsageError: values of another type than the column, or no row is left.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import compute

    found: Any = compute  # its functions are made when it is imported
    mask = np.ones(metadata.num_rows, bool)
    for name, values in where.items():
        column = metadata[name]
        try:
            wanted = pa.array(values).cast(column.type)
        except pa.ArrowException as error:
            raise UsageError(
                f"where: column {name!r} holds {column.type}, and {list(values)} are not: {error}"
            ) from error
        mask &= np.asarray(found.is_in(column, value_set=wanted))
    if not mask.any():
        raise UsageError(f"where: no row has {dict(where)}")
    return mask


def _write(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    from uimjax.store.base import atomic

    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def _show(found: Any, hits: list[dict[str, Any]], groups: Any, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from uimjax.report.markup import visible

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else visible(str(value))
        return text if len(text) <= WIDE else text[: WIDE - 1] + "…"

    def draw(title: str, lines: list[dict[str, Any]]) -> None:
        table = Table(title=title, title_justify="left")
        for name in lines[0]:
            table.add_column(visible(name), justify="right" if isinstance(lines[0][name], int | float) else "left")
        for line in lines:
            table.add_row(*(cell(value) for value in line.values()))
        console.print(table, markup=False)

    console = Console(width=None if sys.stdout.isatty() else 160)
    for side, meaning in (("proponent", "rows that this comes from"), ("opponent", "rows that speak against it")):
        mine = [{k: v for k, v in hit.items() if k != "side"} for hit in hits if hit["side"] == side]
        if mine:
            draw(f"{side}s: {meaning}", mine)
    if groups is not None and groups.names:
        draw("by group, the largest mean first", groups.table().to_pylist())
    print(
        f"{found.method}; {found.unit}. p: how often a shuffled question does as well. Everything is in {out}."
        if found.null is not None
        else f"{found.method}; {found.unit}. Everything is in {out}."
    )
