"""Documents as the original runs keep them: token ids, mapped from disk. Megatron's `.bin` with its `.idx`, and plain
arrays of ids (`.bin`, `.npy`) in which a token ends each document.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uimjax.corpora.texts import BLOCK, Note, Skipped
from uimjax.errors import CorruptError, MissingFileError, UnknownNameError, UsageError

KINDS = (".bin", ".npy")
MAGIC = b"MMIDIDX\x00\x00"
CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}  # of Megatron
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")
STEP = 1 << 22  # ids looked at together


class Kept(NamedTuple):
    """One document: its `id` (FILE:number, from 1), where it is from, and its tokens."""

    id: str
    source: str
    tokens: np.ndarray


@dataclass(frozen=True)
class Raw:
    """How plain arrays of ids are read: their `dtype` ("" for a `.npy` that says so itself), and the token that `end`s
    a document, its last one."""

    dtype: str = ""
    end: int | None = None

    def __post_init__(self):
        if self.dtype and self.dtype not in DTYPES:
            raise UnknownNameError("dtype of tokens", self.dtype, DTYPES)


def read_kept(path: Path, raw: Raw, note: Note, name: str) -> Iterator[list[Kept]]:
    """Documents of a file, some at a time; empty ones are handed to `note`. `name`: what the file is called.

    Raises:
        CorruptError: the index or the file is cut short. MissingFileError, UsageError: how to read it is not known.
    """
    ids, bounds = _megatron(path) if path.with_suffix(".idx").is_file() else _plain(path, raw)
    block: list[Kept] = []
    for number, (start, stop) in enumerate(bounds, start=1):
        if stop == start:
            note(Skipped(str(path), number, "empty"))
            continue
        block.append(Kept(f"{name}:{number}", name, np.asarray(ids[start:stop])))
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _megatron(path: Path) -> tuple[np.ndarray, Iterator[tuple[int, int]]]:
    """(all ids, where documents begin and end), as Megatron-LM's indexed datasets keep them: after the head the sizes
    of sequences (int32), their places in bytes (int64), and the sequence that each document begins with (int64)."""
    index = path.with_suffix(".idx")
    held = index.read_bytes()
    head = struct.Struct("<9sQBQQ")
    if len(held) < head.size or held[:9] != MAGIC:
        raise CorruptError(f"{index} is no index of Megatron (it begins with {held[:9]!r})")
    _, version, code, count, documents = head.unpack_from(held)
    if version != 1 or code not in CODES:
        raise CorruptError(f"{index}: version {version} and dtype {code}; version 1 and {sorted(CODES)} were wanted")
    if len(held) < head.size + 12 * count + 8 * documents:
        raise CorruptError(f"{index} is cut short: {len(held)} bytes for {count} sequences, {documents} documents")
    sizes = np.frombuffer(held, np.int32, count, head.size).astype(np.int64)
    places = np.frombuffer(held, np.int64, count, head.size + 4 * count)
    firsts = np.frombuffer(held, np.int64, documents, head.size + 12 * count)
    dtype = np.dtype(CODES[code])
    if path.stat().st_size % dtype.itemsize:
        raise CorruptError(f"{path}: {path.stat().st_size} bytes are no whole number of {dtype}; it is cut short")
    if not documents or firsts[0] != 0 or firsts[-1] != count or (np.diff(firsts) < 0).any():
        raise CorruptError(f"{index}: its documents do not cover its {count} sequences in order")
    ids = np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
    starts = places // dtype.itemsize
    if count and int((starts + sizes).max()) > len(ids):
        raise CorruptError(f"{path} is cut short: {len(ids)} tokens, and {index.name} places some beyond")
    ends = np.concatenate([[0], np.cumsum(sizes)])
    if count and not np.array_equal(starts, ends[:-1]):
        raise CorruptError(f"{index}: its sequences do not lie one after the other; copy the dataset into a new one")
    return ids, ((int(ends[a]), int(ends[b])) for a, b in zip(firsts[:-1], firsts[1:], strict=True))


def _plain(path: Path, raw: Raw) -> tuple[np.ndarray, Iterator[tuple[int, int]]]:
    with path.open("rb") as held:
        named = held.read(6) == b"\x93NUMPY"
    if named:
        try:
            ids = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise CorruptError(f"{path} cannot be read: {error}") from error
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UsageError(f"{path} holds {ids.dtype}{list(ids.shape)}; token ids [N] were wanted")
    elif not raw.dtype:
        raise UsageError(
            f"{path} is a plain array, of a dtype that it does not say, and has no {path.stem}.idx beside it: "
            f"--token_dtype uint16 (or {', '.join(name for name in DTYPES if name != 'uint16')})"
        )
    else:
        size = np.dtype(raw.dtype).itemsize
        if path.stat().st_size % size:
            raise CorruptError(f"{path}: {path.stat().st_size} bytes are no whole number of {raw.dtype}")
        ids = np.memmap(path, raw.dtype, "r") if path.stat().st_size else np.zeros(0, raw.dtype)
    if raw.end is None:
        raise MissingFileError(
            f"{path} does not say where a document ends: --end_token ID (the tokenizer's <|endoftext|>, for instance)"
        )
    return ids, _bounds(ids, raw.end)


def _bounds(ids: np.ndarray, end: int) -> Iterator[tuple[int, int]]:
    start = 0
    for first in range(0, len(ids), STEP):
        for at in np.flatnonzero(np.asarray(ids[first : first + STEP]) == end):
            yield start, first + int(at) + 1
            start = first + int(at) + 1
    if start < len(ids):
        yield start, len(ids)
