"""JSON documents that carry their own digest."""

import json
from pathlib import Path
from typing import Any

from uimjax.errors import CorruptError, MissingFileError
from uimjax.store.base import atomic
from uimjax.store.digest import digest_text
from uimjax.store.remote import Place

_KEY = "xxh3"


def write_json(path: Path, document: Any, first: bool = False) -> None:
    """Readable JSON, written atomically; `first`: what another process has put there by then stays."""
    with atomic(path, first) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Place) -> Any:
    """Raises MissingFileError, or CorruptError where the file is not JSON."""
    if not path.exists():
        raise MissingFileError(f"{path} is not there. Was the stage that writes it run?")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CorruptError(f"{path} is not JSON: {error}. Remove it and run the stage that writes it again.") from error


def write_manifest(path: Path, document: dict[str, Any], first: bool = False) -> None:
    write_json(path, document | {_KEY: _digest(document)}, first)


def read_manifest(path: Place) -> dict[str, Any]:
    """The document, its digest checked.

    Raises:
        MissingFileError, CorruptError
    """
    document = read_json(path)
    if not isinstance(document, dict) or document.pop(_KEY, None) != _digest(document):
        raise CorruptError(
            f"{path} does not match its own digest: it was changed after it was written. Build it again."
        )
    return document


def _digest(document: Any) -> str:
    return digest_text(json.dumps(document, sort_keys=True))
