"""One immutable Parquet file a shard: row id, loss, norm, and unit vectors as a coding packs them, with page CRCs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uimjax.errors import CorruptError, MissingFileError
from uimjax.store.base import atomic
from uimjax.store.coding import DTYPES, SCALE, Coding, Packed, Shapes, stored
from uimjax.store.remote import Place

VERSION = 3


class Shard(NamedTuple):
    """`ids` `[n]` int64, `loss` and `norm` `[n]` float32, `vectors`: packed unit vectors; a row is norm * vector."""

    ids: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    vectors: Packed


def _schema(coding: Coding, shapes: Shapes) -> pa.Schema:
    entries, scales = stored(coding, shapes)
    fields = [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("norm", pa.float32(), nullable=False),
        pa.field("vector", pa.binary(entries * DTYPES[coding.dtype].itemsize), nullable=False),
    ]
    if scales:
        fields.append(pa.field("scale", pa.binary(scales * SCALE.itemsize), nullable=False))
    width = sum(rows * cols for rows, cols in shapes)
    return pa.schema(fields, metadata={"uimjax": str(VERSION), "coding": str(coding), "width": str(width)})


def write_shard(path: Path, shard: Shard, coding: Coding, shapes: Shapes) -> None:
    """The same arrays always give the same bytes."""
    schema, count = _schema(coding, shapes), len(shard.ids)

    def packed(name: str, array: np.ndarray) -> pa.Array:
        buffer = pa.py_buffer(np.ascontiguousarray(array).tobytes())
        return pa.FixedSizeBinaryArray.from_buffers(schema.field(name).type, count, [None, buffer])

    columns = [pa.array(shard.ids), pa.array(shard.loss), pa.array(shard.norm), packed("vector", shard.vectors.numbers)]
    if shard.vectors.scales is not None:
        columns.append(packed("scale", shard.vectors.scales))
    with atomic(path) as temporary:
        pq.write_table(
            pa.table(columns, schema=schema),
            temporary,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def read_shard(path: Place, count: int, coding: Coding, shapes: Shapes) -> Shard:
    """Read with every page's CRC verified. `count` and the rest come from the journal and the manifest, and are
    compared with the file's header before any data are read.

    Raises:
        MissingFileError: a shard that the journal lists is gone.
        CorruptError: the bytes or the header differ; the file is named.
    """
    try:
        if isinstance(path, Path) and not path.exists():
            raise MissingFileError("")
        source = path if isinstance(path, Path) else pa.BufferReader(path.read_bytes())
    except MissingFileError:
        told = f"{path} is listed in the journal and is not there. Run `uimjax index repair`."
        raise MissingFileError(told) from None
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        header, schema = file.metadata, file.schema_arrow
        if header.num_rows != count or not schema.equals(_schema(coding, shapes), check_metadata=True):
            raise CorruptError(f"{path}: {header.num_rows} rows of {schema}; {count} rows of {coding} were wanted")
        table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise CorruptError(f"{path} is damaged: {error}. Run `uimjax index repair` to recompute it.") from error
    entries, scales = stored(coding, shapes)

    def numbers(name: str, dtype: np.dtype, width: int) -> np.ndarray:
        held = table[name].combine_chunks()
        return np.frombuffer(held.buffers()[1], dtype, count=count * width).reshape(count, width)

    ids, loss, norm = (table[name].to_numpy() for name in ("row_id", "loss", "norm"))
    vectors = numbers("vector", DTYPES[coding.dtype], entries)
    return Shard(ids, loss, norm, Packed(vectors, numbers("scale", SCALE, scales) if scales else None))
