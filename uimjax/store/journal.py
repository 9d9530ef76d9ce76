"""The journal of an index: one line a finished shard, each with its own checksum, appended and synced."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from uimjax.errors import CorruptError, OutputError
from uimjax.store.base import atomic
from uimjax.store.digest import digest_text
from uimjax.store.remote import Place


class Entry(NamedTuple):
    """A finished shard: rows [start, stop), the file's size and xxh3-128."""

    shard: int
    start: int
    stop: int
    file: str
    size: int
    xxh3: str


def _encode(entry: Entry) -> str:
    body = json.dumps(entry._asdict(), separators=(",", ":"))
    return f"{digest_text(body)[:16]} {body}\n"


def _decode(line: str, path: Place, number: int) -> Entry:
    check, _, body = line.partition(" ")
    if digest_text(body)[:16] != check:
        raise CorruptError(
            f"{path}, line {number}: the checksum does not match. Run `uimjax index repair` with the index's config."
        )
    return Entry(**json.loads(body))


def _lock(file: IO[bytes], path: Path, shared: bool = False) -> None:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OutputError(f"{path.parent} is being written by another process; wait for it to end.") from error


class Journal:
    """An open, locked journal. A torn last line (a crash while appending) is cut off on opening."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}. Choose another folder with --out.") from error
        _lock(self._file, path)
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            self._file.truncate(whole)
        self.entries = _parse(data[:whole], path)

    def append(self, entry: Entry) -> None:
        try:
            self._file.write(_encode(entry).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot append to {self.path}: {error.strerror}. Finished shards are safe.") from error
        self.entries.append(entry)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def salvage(path: Path) -> list[Entry]:
        """The entries whose checksums are right, of a journal that may be damaged."""
        out = []
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return out
        for line in data.split(b"\n"):
            try:
                out.append(_decode(line.decode(), path, 0))
            except (CorruptError, UnicodeDecodeError):
                continue
        return out

    @staticmethod
    @contextlib.contextmanager
    def locked(path: Path, shared: bool = False) -> Iterator[None]:
        """No other process writes it meanwhile, damaged or not; `shared`: those of one job keep others out.

        Raises:
            OutputError: one does.
        """
        with path.open("ab") as held:
            _lock(held, path, shared)
            yield

    @staticmethod
    def busy(path: Path) -> bool:
        """Is a process writing it? Not one that is gone, or never was."""
        try:
            with path.open("rb") as held:
                _lock(held, path, shared=True)
                return False
        except FileNotFoundError:
            return False
        except OutputError:
            return True

    @staticmethod
    def rewrite(path: Path, entries: list[Entry]) -> bool:
        """Put exactly these entries in its place; True where that changed its bytes.

        Raises:
            OutputError: it cannot be written.
        """
        data = "".join(_encode(entry) for entry in entries).encode()
        if path.exists() and path.read_bytes() == data:
            return False
        with atomic(path) as temporary:
            temporary.write_bytes(data)
        return True

    @staticmethod
    def read(path: Place) -> list[Entry]:
        """The entries of a journal that nobody writes any more."""
        data = path.read_bytes() if path.exists() else b""
        return _parse(data[: data.rfind(b"\n") + 1], path)


def _parse(data: bytes, path: Place) -> list[Entry]:
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path} is not text: {error}. Run `uimjax index repair` with its config.") from error
    return [_decode(line, path, number) for number, line in enumerate(lines, start=1)]
