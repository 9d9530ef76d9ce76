"""One immutable Parquet file a shard: row id, loss, norm, and unit vectors as fixed-size binary with page CRCs."""

from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uimjax.errors import CorruptError, MissingFileError
from uimjax.store.base import atomic

VERSION = 1
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class Shard(NamedTuple):
    """`ids` `[n]` int64, `loss` and `norm` `[n]` float32, `vectors` `[n, D]`: unit length; the row is norm * vector."""

    ids: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    vectors: np.ndarray


def _schema(width: int, dtype: str) -> pa.Schema:
    item = DTYPES[dtype].itemsize
    fields = [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("norm", pa.float32(), nullable=False),
        pa.field("vector", pa.binary(width * item), nullable=False),
    ]
    return pa.schema(fields, metadata={"uimjax": str(VERSION), "dtype": dtype, "width": str(width)})


def write_shard(path: Path, shard: Shard, dtype: str) -> None:
    """The same arrays always give the same bytes."""
    vectors = np.ascontiguousarray(shard.vectors.astype(DTYPES[dtype]))
    count, width = vectors.shape
    schema = _schema(width, dtype)
    buffer = pa.py_buffer(vectors.tobytes())
    packed = pa.FixedSizeBinaryArray.from_buffers(schema.field("vector").type, count, [None, buffer])
    table = pa.table([pa.array(shard.ids), pa.array(shard.loss), pa.array(shard.norm), packed], schema=schema)
    with atomic(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def read_shard(path: Path, count: int, width: int, dtype: str) -> Shard:
    """Read with every page's CRC verified. `count`, `width` and `dtype` come from the journal and the manifest, and are
    compared with the file's header before any data are read.

    Raises:
        MissingFileError: a shard that the journal lists is gone.
        CorruptError: the bytes or the header differ; the file is named.
    """
    if not path.exists():
        raise MissingFileError(f"{path} is listed in the journal and is not there. Build the index again.")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        header, schema = file.metadata, file.schema_arrow
        if header.num_rows != count or not schema.equals(_schema(width, dtype), check_metadata=True):
            raise CorruptError(
                f"{path}: {header.num_rows} rows of {schema}; {count} of width {width} {dtype} were wanted"
            )
        table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise CorruptError(f"{path} is damaged: {error}. Run `uimjax index build` again to recompute it.") from error
    vectors = table["vector"].combine_chunks()
    flat = np.frombuffer(vectors.buffers()[1], DTYPES[dtype], count=count * width)
    ids, loss, norm = (table[name].to_numpy() for name in ("row_id", "loss", "norm"))
    return Shard(ids, loss, norm, flat.reshape(count, width))
