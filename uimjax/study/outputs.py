"""Outputs that people compare: of each prompt what the model said before and after a fix, and with its controls."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uimjax import tables
from uimjax.corpora.documents import clean
from uimjax.errors import DataError, MalformedRowError, MissingFileError, UnknownNameError, UsageError
from uimjax.store import digest_file, place, read_json
from uimjax.store.base import atomic

FILE, HUMAN = "outputs.jsonl", "human.json"
BEFORE, AFTER = "before", "traced"
LONGEST = 20_000  # characters of an output on a sheet


class Output(NamedTuple):
    """`texts`: what each arm says to the `prompt`; `image`: a `data:image/png` that stands above it, or ""."""

    id: str
    prompt: str
    image: str
    texts: dict[str, str]


def write_outputs(path: Path, outputs: Sequence[Output]) -> None:
    """A line an output. Raises OutputError."""
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(one._asdict()) + "\n" for one in outputs))


def read_outputs(path: Path, arms: Sequence[str] = ()) -> list[Output]:
    """Lines `{"id": ..., "prompt": ..., "texts": {"before": ..., "traced": ...}}`; `id` may lack.

    Raises:
        MissingFileError. MalformedRowError: a line of another form, or an id that comes twice. UnknownNameError: an
            output lacks one of `arms`. DataError: nothing there.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; `uimjax study export` takes the folder of a run that was mended, "
                               f"or a file of outputs: {_WANTED}")  # fmt: skip
    found: dict[str, Output] = {}
    for number, line in tables.lines(path):
        one = _output(path, number, line)
        if one.id in found:
            raise MalformedRowError(path, number, f"id {one.id!r} came before")
        for arm in arms:
            if arm not in one.texts:
                raise UnknownNameError(f"arm of {path}, line {number}", arm, one.texts)
        found[one.id] = one
    if not found:
        raise DataError(f"{path} holds no output; {_WANTED}")
    return list(found.values())


_WANTED = '{"id": "q1", "prompt": "...", "texts": {"before": "...", "traced": "..."}}'


def _output(path: Path, number: int, line: dict[str, Any]) -> Output:
    texts = line.get("texts")
    if not isinstance(texts, dict) or len(texts) < 2 or not all(isinstance(t, str) for t in texts.values()):
        raise MalformedRowError(path, number, f"texts of two arms at least were wanted: {_WANTED}")
    image, prompt = line.get("image", ""), line.get("prompt", "")
    if not isinstance(image, str) or (image and not image.startswith("data:image/png;base64,")):
        raise MalformedRowError(path, number, "image: data:image/png;base64,... was wanted")
    if not isinstance(prompt, str):
        raise MalformedRowError(path, number, f"prompt is a {type(prompt).__name__}; text was wanted")
    names = {clean(str(arm)): clean(text)[:LONGEST] for arm, text in texts.items()}
    return Output(clean(str(line.get("id", number))), clean(prompt)[:LONGEST], image, names)


def file_of(source: Path) -> Path:
    """Raises UsageError: several folders of the run hold outputs; MissingFileError: none does."""
    if source.is_file() or (source / FILE).is_file():
        return source if source.is_file() else source / FILE
    inside = sorted(source.glob(f"*/{FILE}")) + sorted(source.glob(f"*/*/{FILE}"))
    if not inside:
        raise MissingFileError(f"{source / FILE} is not there. A run that was mended has one (`uimjax run`, `uimjax "
                               f"mitigate`); or give a file: {_WANTED}")  # fmt: skip
    if len(inside) > 1:
        raise UsageError(f"{source} holds outputs of {len(inside)} failures; name one: "
                         + ", ".join(str(path.parent) for path in inside[:5]))  # fmt: skip
    return inside[0]


def human_of(folder: Path) -> dict[str, Any] | None:
    """What raters said of a run's outputs, if these are still the ones that they saw."""
    path, said = folder / FILE, folder / HUMAN
    if not path.is_file() or not said.is_file():
        return None
    found = read_json(said)
    return found if found["outputs"] == digest_file(place(path)) else None
