"""The journal of an index: one line a finished shard, each with its own checksum, appended and synced."""

import fcntl
import json
import os
from pathlib import Path
from typing import NamedTuple

from uimjax.errors import CorruptError, OutputError
from uimjax.store.digest import digest_text


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


def _decode(line: str, path: Path, number: int) -> Entry:
    check, _, body = line.partition(" ")
    if digest_text(body)[:16] != check:
        raise CorruptError(
            f"{path}, line {number}: the checksum does not match. Remove the index folder and build it again."
        )
    return Entry(**json.loads(body))


class Journal:
    """An open, locked journal. A torn last line (a crash while appending) is cut off on opening."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}. Choose another folder with --out.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise OutputError(f"{path.parent} is being written by another process; wait for it to end.") from error
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
    def read(path: Path) -> list[Entry]:
        """The entries of a journal that nobody writes any more."""
        data = path.read_bytes() if path.exists() else b""
        return _parse(data[: data.rfind(b"\n") + 1], path)


def _parse(data: bytes, path: Path) -> list[Entry]:
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path} is not text: {error}. Remove the index folder and build it again.") from error
    return [_decode(line, path, number) for number, line in enumerate(lines, start=1)]
