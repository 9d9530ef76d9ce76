"""An index copied: to a URL, from one, or between folders; every file checked, the manifest last."""

from pathlib import Path
from typing import Any

from uimjax import store
from uimjax.errors import CorruptError, MismatchError
from uimjax.interpret.index import JOURNAL, MANIFEST, PRICE, SHARDS, open_index
from uimjax.progress import Progress, quiet
from uimjax.store.base import atomic, make_folder


def copy_index(source: str | Path, out: str | Path, progress: Progress = quiet) -> int:
    """Copy a finished index; how many shards were written. Those that are there, byte for byte, are not written again,
    so a copy that was stopped goes on. A reader finds no index until all of it is there.

    Raises:
        MissingFileError, CorruptError: of the source; a shard that differs from its digest is not copied.
        MismatchError: another index is there. OutputError: it cannot be written to, or not be reached.
    """
    held, to = open_index(source), store.place(out)
    if (to / MANIFEST).exists() and (to / MANIFEST).read_bytes() != (held.folder / MANIFEST).read_bytes():
        raise MismatchError(f"{to} holds another index; choose another place, or remove that one")
    if isinstance(to, Path):
        make_folder(make_folder(to) / SHARDS)
    written = 0
    for entry in progress(held.entries, "copying", unit="shards"):
        path, target = held.folder / SHARDS / entry.file, to / SHARDS / entry.file
        if target.exists() and target.stat().st_size == entry.size and _right(target.read_bytes(), entry):
            continue
        if not _right(data := path.read_bytes(), entry):
            raise CorruptError(
                f"{path} differs from what was written; repair the index first. Nothing was copied of it."
            )
        _put(target, data)
        written += 1
    for name in (PRICE, JOURNAL, MANIFEST):
        if (held.folder / name).exists():
            _put(to / name, (held.folder / name).read_bytes())
    return written


def _right(data: bytes, entry: store.Entry) -> bool:
    return len(data) == entry.size and store.digest_bytes(data) == entry.xxh3


def _put(target: Any, data: bytes) -> None:
    if not isinstance(target, Path):
        return target.write_bytes(data)
    with atomic(target) as temporary:
        temporary.write_bytes(data)
    return None
