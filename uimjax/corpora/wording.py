"""Words of many texts as numbers, without a Python object a word: what counts, compares and looks up starts here.

A word is a run of letters, digits, underscores and other signs of its script, in small letters. Scripts that write no
spaces (Chinese, Japanese kana; Hangul too) give a word a sign. Two words are taken for one with a chance of 2^-64.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

PIECE = 2 << 20  # bytes hashed at once: eight times as many are held
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers have inverses modulo 2^64
ORDER = 0xD1342543DE82EF95  # of words in a run
BREAKS = re.compile(
    "[\u00a0-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u2000-\u206f\u3000-\u3004\u3008-\u303f\uff00-\uff0f]"
)  # spaces and punctuation beyond ASCII
WORD_BYTES = np.array([bytes([b]).isalnum() or b == 0x5F or b >= 0x80 for b in range(256)])
ALONE = np.array([0xE3 <= b <= 0xED for b in range(256)])  # first bytes of U+3000 to U+DFFF, three bytes each


class Words(NamedTuple):
    """`hashes` `[n]` uint64 of all words in order; text d has those from `starts[d]` to `starts[d + 1]`, `[D + 1]`."""

    hashes: np.ndarray
    starts: np.ndarray


def words_of(texts: Sequence[str]) -> Words:
    """Of each text its words. `len(texts)` is D.

    >>> words_of(["The cat", "the CAT sat"]).starts.tolist()
    [0, 2, 5]
    """
    hashes, counts = [], np.zeros(len(texts), np.int64)
    for numbers, pieces in _batches(texts):
        found, many = _hashed(pieces)
        hashes.append(found)
        np.add.at(counts, numbers, many)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Words(np.concatenate(hashes) if hashes else np.zeros(0, np.uint64), starts)


def runs_of(words: Words, length: int) -> Words:
    """All runs of so many words of each text, as numbers; a shorter text is one run, and so is an empty one."""
    many = np.diff(words.starts)
    text = np.repeat(np.arange(len(many)), many)
    padded = np.zeros(len(words.hashes) + len(many) * length, np.uint64)  # zeros add nothing to a short one
    padded[np.arange(len(text)) + length * text] = words.hashes
    mixed = np.zeros(max(len(padded) - length + 1, 0), np.uint64)
    for k in range(length):
        mixed += padded[k : k + len(mixed)] * np.uint64(pow(ORDER, k + 1, 1 << 64))
    counts = np.maximum(many - length + 1, 1)
    begin = words.starts[:-1] + length * np.arange(len(many))
    starts = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(starts[-1]) + np.repeat(begin - starts[:-1], counts)
    return Words(scrambled(mixed[places]), starts)


def scrambled(x: np.ndarray) -> np.ndarray:
    """Numbers whose every bit depends on every bit (the last steps of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


TABLE = scrambled(np.arange(1, 257, dtype=np.uint64) * BASE)  # of each byte
POWERS = np.multiply.accumulate(np.full(PIECE + 1, BASE))
INVERSE = np.multiply.accumulate(np.full(PIECE + 1, np.uint64(pow(int(BASE), -1, 1 << 64))))


def _batches(texts: Sequence[str]) -> Iterator[tuple[list[int], list[bytes]]]:
    """Pieces of texts, together no longer than `PIECE`: (which text each is of, the pieces)."""
    numbers: list[int] = []
    pieces: list[bytes] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _cut(BREAKS.sub(" ", text).lower().encode("utf-8", "replace")):
            if size + len(piece) + 1 > PIECE:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
            numbers.append(number)
            pieces.append(piece)
            size += len(piece) + 1
    if pieces:
        yield numbers, pieces


def _cut(data: bytes) -> Iterator[bytes]:
    """At the last space or line end before each limit; a longer word is cut as well."""
    while len(data) >= PIECE:
        at = max(data.rfind(b" ", 1, PIECE - 1), data.rfind(b"\n", 1, PIECE - 1))
        at = at if at > 0 else PIECE - 1
        while at > 1 and data[at] & 0xC0 == 0x80:  # inside a sign
            at -= 1
        yield data[:at]
        data = data[at:]
    yield data


def _hashed(pieces: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all words, how many each piece has)."""
    data = np.frombuffer(b"\n".join([*pieces, b""]), np.uint8)
    word = WORD_BYTES[data]
    own = ALONE[data]  # a sign that is a word of its own begins one, and the next begins behind its three bytes
    begins = word & ~np.concatenate([[False], word[:-1]])
    begins |= own
    begins[3:] |= own[:-3] & word[3:]
    ends = word & ~np.concatenate([word[1:], [False]])
    ends[:-1] |= word[:-1] & begins[1:]
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    sums = np.concatenate([np.zeros(1, np.uint64), np.add.accumulate(TABLE[data] * POWERS[: len(data)])])
    found = scrambled((sums[last + 1] - sums[first]) * INVERSE[first])
    borders = np.cumsum([len(piece) + 1 for piece in pieces])
    return found, np.diff(np.searchsorted(first, borders), prepend=0)
