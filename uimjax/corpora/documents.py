"""Documents: windows of whole lines of source files, and their rows of tokens with path, line and column.

A window holds as many whole lines as fit into a row; a line that is too long by itself is cut into several windows of
the same line. Lines end at "\\n" alone, so line numbers are those an editor shows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.corpora.base import Rows
from uimjax.corpora.tokenizer import Encoded, Tokenizer
from uimjax.errors import DataError, MissingFileError, ShapeError
from uimjax.store import digest_text


class Document(NamedTuple):
    """`text` stands in file `path` from line `line` (1-based), column `column` (0-based) on."""

    path: str
    line: int
    text: str
    column: int = 0


class Source(NamedTuple):
    """A whole text file."""

    path: str
    text: str


class Places(NamedTuple):
    """Characters `[start, stop)` of its document's text of each token, `[N, T]`; -1 at the mark and padding."""

    start: np.ndarray
    stop: np.ndarray


class TextCorpus(NamedTuple):
    """Documents to train on, documents of OTHER files to test on, the tokenizer, and the length T of a row."""

    name: str
    train: tuple[Document, ...]
    test: tuple[Document, ...]
    tokenizer: Tokenizer
    length: int


def lines_of(text: str) -> list[str]:
    """Lines with their newline, split at "\\n" alone (not at form feeds or other marks that Python also splits at)."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def windows(source: Source, tokenizer: Tokenizer, length: int) -> list[Document]:
    """Cut a file into documents of at most `length - 1` tokens (one position is the mark)."""
    found: list[Document] = []
    lines = lines_of(source.text)
    held, used, first = [], 0, 1
    for number, (line, code) in enumerate(zip(lines, tokenizer.encode(lines), strict=True), start=1):
        size = len(code.ids)
        if held and used + size > length - 1:
            found.append(Document(source.path, first, "".join(held)))
            held, used = [], 0
        if not held:
            first = number
        if size > length - 1:
            found += [Document(source.path, number, line[a:b], a) for a, b in _pieces(code, length - 1)]
            continue
        held.append(line)
        used += size
    if held:
        found.append(Document(source.path, first, "".join(held)))
    return [d for d in found if d.text.strip()]


def _pieces(code: Encoded, size: int) -> list[tuple[int, int]]:
    """Character ranges of a long line, cut between tokens and never inside a character."""
    cuts, last = [0], int(code.stop[-1])
    at = size
    while at < len(code.ids):
        while at and code.start[at] < code.stop[at - 1]:  # inside a character of several tokens
            at -= 1
        if code.start[at] <= cuts[-1]:
            raise DataError(f"a row of {size} tokens cannot hold one character of a text; use longer rows")
        cuts.append(int(code.start[at]))
        at += size // 2  # a piece encoded by itself may merge differently: half a row is always enough
    return list(zip(cuts, [*cuts[1:], last], strict=True))


def fitting(lines: Sequence[str], tokenizer: Tokenizer, length: int) -> int:
    """How many of the first lines fit into a row of so many tokens, behind the mark."""
    sizes = np.cumsum([len(code.ids) for code in tokenizer.encode(list(lines))])
    return int(np.searchsorted(sizes, length - 1, side="right"))


def encode(documents: Sequence[Document], tokenizer: Tokenizer, length: int) -> tuple[Rows, Places]:
    """`{"tokens": [N, T], "counted": [N, T]}` and the places. The mark stands first; padding counts for nothing.

    Raises:
        ShapeError: a document of more than T - 1 tokens.
    """
    tokens = np.full((len(documents), length), tokenizer.mark, np.int32)
    counted = np.zeros((len(documents), length), np.float32)
    start, stop = (np.full((len(documents), length), -1, np.int32) for _ in range(2))
    split = [lines_of(d.text) for d in documents]
    codes = iter(tokenizer.encode([line for lines in split for line in lines]))
    for row, lines in enumerate(split):
        at, character = 1, 0
        for line in lines:
            code = next(codes)
            end = at + len(code.ids)
            if end > length:
                d = documents[row]
                raise ShapeError(f"{d.path}, line {d.line}: more than {length - 1} tokens; cut it with `windows`")
            tokens[row, at:end], counted[row, at:end] = code.ids, 1.0
            start[row, at:end], stop[row, at:end] = code.start + character, code.stop + character
            at, character = end, character + len(line)
    return {"tokens": tokens, "counted": counted}, Places(start, stop)


def line_at(document: Document, character: int) -> tuple[int, int]:
    """(line, column) in the file of a character of the document's text."""
    before = document.text[:character]
    down = before.count("\n")
    column = character - (before.rfind("\n") + 1)
    return document.line + down, column + (document.column if not down else 0)


def digest_documents(corpus: TextCorpus) -> str:
    """Of every document before planting: path, line, column and text."""
    return digest_text(json.dumps([*corpus.train, *corpus.test]))


def read_folder(folder: str | Path) -> list[Source]:
    """Every file of a folder and its subfolders as UTF-8 text, by name; hidden files are left out.

    Raises:
        MissingFileError: no such folder, or nothing in it. DataError: a file that is not UTF-8 text.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingFileError(f"{root} is not a folder (looked in {root.absolute().parent}). Check the config.")
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts):
            continue
        try:
            found.append(Source(clean(str(name)), path.read_bytes().decode("utf-8")))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text ({error}); convert it, or move it out of {root}") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise MissingFileError(f"{root} holds no text files")
    return found


def check_sources(name: str, found: Any) -> list[Source]:
    """Sources from what the reader's own function returned: pairs of a path and a text.

    Raises:
        ShapeError: something else arrived.
    """
    made = []
    for k, pair in enumerate(found if isinstance(found, list | tuple) else [found]):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ShapeError(f"{name}, item {k}: {type(pair).__name__} arrived; a pair (path, text) was wanted")
        made.append(Source(*map(clean, pair)))
    return made


def clean(text: str) -> str:
    """Lone surrogates, which no UTF-8 holds (odd file names have them), as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
