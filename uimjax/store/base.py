"""Atomic files: a reader sees the old bytes or the new bytes, never a part. And reading ahead."""

import contextlib
import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from uimjax.errors import OutputError

TEMPORARY = ".tmp-"
Item = TypeVar("Item")
Found = TypeVar("Found")


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    """A name of this writer's own: another process may write the same file."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")


def intended(name: str) -> str | None:
    """What a temporary file was to be called (older ones have no writer in their name); None if it is none."""
    found = re.fullmatch(rf"{re.escape(TEMPORARY)}(?:[0-9a-f]{{8}}-)?(.+)", name)
    return found and found[1]


@contextlib.contextmanager
def atomic(path: Path, first: bool = False) -> Iterator[Path]:
    """A temporary name to write to; on success it is synced and renamed to `path`, on failure removed. `first`: what
    another process has put there by then stays.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if not (first and _linked(temporary, path)):
            temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. What was there before is intact."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _linked(temporary: Path, path: Path) -> bool:
    """Another file has that name, or this one has it too now. Where the file system knows no links, there is a moment
    between looking and renaming in which another process may write as well."""
    try:
        path.hardlink_to(temporary)
    except OSError:
        return path.exists()
    return True


def make_folder(folder: Path) -> Path:
    """Create a folder that can be written to.

    Raises:
        OutputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder / "probe")
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}. Choose another folder with --out."
        ) from error
    return folder


def ahead(items: Iterable[Item], read: Callable[[Item], Found], most: int = 2) -> Iterator[Found]:
    """`read(item)` of each, in order; while one is looked at the next are read, at most so many of them."""
    with ThreadPoolExecutor(most) as pool:
        waiting: deque[Future[Found]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
