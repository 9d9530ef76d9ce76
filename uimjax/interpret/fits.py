"""Is there room for an index? Its batches on a device, its shards in memory and on disk: asked before it is begun."""

import contextlib
from pathlib import Path
from typing import Any

from uimjax import machine, room, store
from uimjax import rows as row
from uimjax.errors import NoRoomError
from uimjax.interpret.fill import Maker
from uimjax.interpret.index import SHARDS
from uimjax.store.coding import DTYPES, Coding, Shapes

HELD = 3  # float32 copies of a shard's rows: its batches, all of them joined, and what is being coded
BESIDE = 16  # bytes of a row beside its vector: id, loss and norm


def check(maker: Maker, data: Any, root: Path, more: bool = False) -> room.Need:
    """What a batch needs. `more`: the rows come to an index that is there.

    Raises:
        NoRoomError: a batch does not fit the device, or all shards the disk.
    """
    described = maker.described
    need = room.check(
        lambda size: (maker.program, *maker.inputs(data, size)),
        described["batch_size"],
        "a batch",
        described["devices"],
    )
    check_disk(maker, row.count(data), root, more)
    return need


def check_shard(shard_rows: int, width: int) -> None:
    """Raises NoRoomError where the memory does not hold a shard while it is made."""
    size, free = HELD * 4 * width, machine.host_memory()
    if size * shard_rows > free:
        raise NoRoomError(
            f"shards of {shard_rows} rows of {width} numbers take {room.gib(size * shard_rows)} of memory while they "
            f"are made, and {room.gib(free)} are free: shard_rows={free // size} fit"
        )


def check_disk(maker: Maker, rows: int, root: Path, more: bool = False) -> None:
    """Raises NoRoomError where so many rows do not fit a folder, with what does."""
    free = machine.disk(root) + (0 if more else _written(root))
    if (wanted := rows * on_disk(maker.coding, maker.shapes)) > free:
        codings = [name for name in DTYPES if rows * on_disk(Coding(name), maker.shapes) <= free]
        most = free // on_disk(maker.coding, maker.shapes)
        cure = f"coding={codings[0]!r} fits" if codings else "a smaller sketch is wanted"
        raise NoRoomError(
            f"{rows} rows as {maker.coding} take {room.gib(wanted)} in {root}, and {room.gib(free)} are free there: "
            f"{cure}, or {most} rows"
        )


def _written(root: Path) -> int:
    """Bytes of shards that are there; other processes may be at work."""
    total = 0
    for path in (root / SHARDS).glob("[0-9]*.parquet"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def on_disk(coding: Coding, shapes: Shapes) -> int:
    """Bytes of a row."""
    return store.row_bytes(coding, shapes) + BESIDE
