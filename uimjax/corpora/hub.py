"""Documents of a hub's dataset, streamed: `hub:NAME?config=...&split=train&rows=10000`, read by `datasets`.

A folder in NAME's place is read as that library would. Nobody's code is run: it takes data files alone.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from uimjax.corpora.texts import BLOCK, Columns, Note, Text, check_columns, documents
from uimjax.errors import DataError, UnknownNameError, UsageError

PREFIX = "hub:"
OPTIONS = ("config", "split", "rows", "revision")


@dataclass(frozen=True)
class Hub:
    """A dataset by its `name`, which `config` and `split` of it, at most so many `rows` (0: all), and the `revision`
    (branch, tag or commit) that is pinned."""

    name: str
    config: str = ""
    split: str = "train"
    rows: int = 0
    revision: str = ""

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in OPTIONS if getattr(self, name)}
        return PREFIX + self.name + "?" + "&".join(f"{name}={value}" for name, value in given.items())


def parse_hub(reference: str) -> Hub:
    """Of `hub:NAME?...`. Raises UnknownNameError (the nearest option is named), UsageError."""
    name, _, query = reference.removeprefix(PREFIX).partition("?")
    given = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    for key in given:
        if key not in OPTIONS:
            raise UnknownNameError("option of a hub's dataset", key, OPTIONS)
    if not name:
        raise UsageError(f"{reference!r} names no dataset: hub:OWNER/NAME?split=train")
    rows = given.pop("rows", "0")
    if not rows.isdigit():
        raise UsageError(f"{reference}: rows is {rows!r}; a number was wanted")
    return Hub(name, rows=int(rows), **given)


def digest(its: Hub) -> str:
    """What it stands for now: changes with the dataset's files where the hub says so."""
    import datasets

    try:
        made = datasets.load_dataset_builder(its.name, its.config or None, revision=its.revision or None)
    except Exception as error:  # of a network, a hub, a format: the library's own are many
        raise DataError(_cure(its, error)) from error
    return str(made.hash)


def read_hub(its: Hub, columns: Columns, note: Note) -> Iterator[list[Text]]:
    """All documents, some at a time, none of them kept; `note` is told of every row that is none.

    Raises:
        DataError: it is not there, or not to be read. UnknownNameError: no such column.
    """
    import datasets

    try:
        made: Any = datasets.load_dataset(
            its.name, its.config or None, split=its.split, streaming=True, revision=its.revision or None
        )
        rows = iter(enumerate(made.take(its.rows) if its.rows else made, start=1))
        first = next(rows, None)
    except Exception as error:
        raise DataError(_cure(its, error)) from error
    if first is None:
        return
    check_columns(str(its), columns, first[1])
    rows = itertools.chain([first], rows)
    while block := _next(its, rows):
        if found := list(documents(its.name, block, columns, note, its.name)):
            yield found


def _next(its: Hub, rows: Iterator[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    try:
        return list(itertools.islice(rows, BLOCK))
    except Exception as error:
        raise DataError(_cure(its, error)) from error


def _cure(its: Hub, error: Exception) -> str:
    return (
        f"{its} cannot be read ({type(error).__name__}: {error}). Is the name right, and is there a network? Otherwise"
        " download it, and name its files."
    )
