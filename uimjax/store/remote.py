"""Folders at a URL (s3://, gs://, https://, memory:// ...) through fsspec: read where they are, and copied to and fro.

A `Remote` has the few of `pathlib.Path`'s ways that reading an index takes. Nothing is built there: object stores
cannot append to a journal or lock it.
"""

import io
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from uimjax.errors import MissingFileError, OutputError, UsageError

TRIES = 4  # of a read that the network lost, a second, two and four apart
WAIT_S = 1.0
CLIENTS = ("aiohttp", "botocore", "gcsfs", "google", "azure", "requests", "urllib3")  # whose errors are the network's


class _Stat(NamedTuple):
    st_size: int


class Remote:
    """A file or folder at a URL."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._system, self._path = _opened(self.url)

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Remote":
        return Remote(self.url.rsplit("/", 1)[0])

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        try:
            _again(lambda: self._system.info(self._path), self.url)
        except MissingFileError:
            return False
        return True

    def stat(self) -> _Stat:
        return _Stat(int(_again(lambda: self._system.size(self._path), self.url) or 0))

    def read_bytes(self) -> bytes:
        return _again(lambda: self._system.cat_file(self._path), self.url)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Its bytes, to be read."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, data: bytes) -> None:
        """Raises OutputError: the place does not take it."""
        try:
            _again(lambda: self._system.makedirs(self.parent._path, exist_ok=True), self.url)
            _again(lambda: self._system.pipe_file(self._path, data), self.url)
        except (OutputError, MissingFileError, NotImplementedError) as error:
            raise OutputError(f"cannot write {self.url}: {error or type(error).__name__}") from error


Place = Path | Remote


def place(folder: Any) -> Place:
    """Where a folder is: on disk, or at a URL."""
    if isinstance(folder, Remote):
        return folder
    return Remote(str(folder)) if "://" in str(folder) else Path(folder)


def on_disk(folder: str | os.PathLike[str]) -> Path:
    """A folder that is written to.

    Raises:
        UsageError: it is a URL.
    """
    if "://" in str(folder):
        raise UsageError(
            f"{folder} is a URL, and an index is built, grown and repaired on disk. Give a folder, and then "
            f"`uimjax index copy FOLDER {folder}`."
        )
    return Path(folder)


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            f"{url}: {error}. For https:// pip install 'uimjax[cloud]'; s3fs for s3://, gcsfs for gs://."
        ) from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from error


def _again(call: Any, url: str) -> Any:
    """Tried again where the network failed.

    Raises:
        MissingFileError: there is no such file. OutputError: it cannot be reached.
    """
    for trial in range(TRIES):
        try:
            return call()
        except FileNotFoundError as error:
            raise MissingFileError(f"{url} is not there") from error
        except (PermissionError, IsADirectoryError) as error:
            raise OutputError(f"{url}: {error or 'no permission'}") from error
        except Exception as error:
            if not _of_network(error):
                raise
            if trial == TRIES - 1:
                raise OutputError(
                    f"{url} could not be reached in {TRIES} tries: {error or type(error).__name__}"
                ) from error
            time.sleep(WAIT_S * 2**trial)
    return None


def _of_network(error: Exception) -> bool:
    """The clients' own errors are no OSErrors, and they are not always installed."""
    return isinstance(error, OSError) or type(error).__module__.startswith(CLIENTS)
