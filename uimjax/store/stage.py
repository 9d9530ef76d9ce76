"""Stages of a run: skipped when their artefacts are there and both inputs and bytes are the same."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uimjax.errors import CorruptError, MissingFileError
from uimjax.store.base import make_folder
from uimjax.store.digest import digest_file, digest_text
from uimjax.store.manifest import read_manifest, write_manifest


def stage_key(*parts: Any) -> str:
    """What a stage follows from: choices and the keys of the stages before it."""
    return digest_text(json.dumps(parts, sort_keys=True, default=str))


def run_stage(folder: Path, name: str, key: str, files: Sequence[str], work: Callable[[], None]) -> bool:
    """Do `work`, which writes `files`, unless `stage-NAME.json` vouches for them. True where work was done."""
    record = make_folder(folder) / f"stage-{name}.json"
    if _holds(folder, record, key, files):
        return False
    record.unlink(missing_ok=True)
    work()
    write_manifest(record, {"stage": name, "key": key, "files": {f: digest_file(folder / f) for f in files}})
    return True


def _holds(folder: Path, record: Path, key: str, files: Sequence[str]) -> bool:
    try:
        held = read_manifest(record)
    except (MissingFileError, CorruptError):
        return False
    same = held["key"] == key and set(held["files"]) == set(files)
    return same and all((folder / f).exists() and digest_file(folder / f) == held["files"][f] for f in files)
