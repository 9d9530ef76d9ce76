"""Documents that nearly repeat one another, over a whole corpus: MinHash and locality-sensitive hashing (extra `text`).

Two documents are joined where the share of runs of five words that both have, of all that either has (Jaccard), is
estimated at the threshold or more (Broder 1997); a group is all that are joined, over however many links. Signatures
lie on disk, so eight bytes a document are held, and what one band of them takes.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uimjax.corpora.prepared import Prepared
from uimjax.corpora.wording import Words, runs_of, scrambled, words_of
from uimjax.errors import CorruptError, UsageError
from uimjax.progress import Progress, quiet
from uimjax.store.base import atomic

GRAM = 5  # words of a shingle
PERMUTATIONS = 128  # hashes a document: the estimate's standard error is below .045
SEED = 1
MISSES = (0.02, 0.98)  # candidates too many cost a comparison, one that is missed is lost
NEAR = 8  # documents of one bucket that are all compared; of more, each with the next ones and with the first
AT_ONCE = 4 << 20  # documents of one band, sorted in memory
WORD = re.compile(r"\w+")
BLOCK = 4 << 20  # characters that are sketched together


def shingles(text: str) -> set[tuple[str, ...]]:
    """The distinct runs of `GRAM` words, lower-cased; a shorter text is one run."""
    words = WORD.findall(text.lower())
    return {tuple(words[k : k + GRAM]) for k in range(max(1, len(words) - GRAM + 1))}


def check_installed() -> None:
    """Raises UsageError: rensa is not installed."""
    try:
        import rensa  # noqa: F401  # whether it can be
    except ImportError as error:
        raise UsageError("near duplicates take rensa: pip install 'uimjax[text]'") from error


def groups(corpus: Prepared, threshold: float, progress: Progress = quiet) -> np.ndarray:
    """`near_duplicates` of a prepared corpus, kept beside it."""
    path = corpus.folder / f"near-{threshold:g}.npy"
    if not path.exists():
        texts = progress(corpus.every_text(), "comparing documents", unit="documents")
        found = near_duplicates((text for _, text in texts), threshold)
        with atomic(path) as temporary, temporary.open("wb") as out:
            np.save(out, found)
    held = np.load(path)
    documents = corpus.manifest["documents"]
    if held.shape != (documents,):
        raise CorruptError(f"{path} is of {len(held)} documents and the corpus has {documents}; remove it")
    return held


def near_duplicates(texts: Iterable[str], threshold: float = 0.8) -> np.ndarray:
    """`[N]`: of each text the number of the first one of its group, its own where it repeats none.

    Raises:
        UsageError: rensa is not installed, or a threshold that is none.
    """
    check_threshold(threshold)
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all"
        with path.open("ab") as out:
            for block in _blocks(texts):
                out.write(signatures(words_of(block)).tobytes())
        return joined([path], threshold)


def check_threshold(threshold: float) -> None:
    """Raises UsageError."""
    if not 0 < threshold < 1:
        raise UsageError(f"near duplicates are as alike as {threshold}; a share between 0 and 1 was wanted")


def signatures(words: Words) -> np.ndarray:
    """`[D, 128]` uint32: the smallest hash of each text's shingles, by 128 hash functions (rensa)."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

    runs = runs_of(words, GRAM)
    if len(words.starts) == 1:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    made: Any = RMinHash.digest_matrix_from_flat_token_hashes(runs.hashes, runs.starts.astype(np.uint64), PERMUTATIONS,
                                                              SEED)  # fmt: skip
    return np.array(made.to_rows(), np.uint32)


def joined(parts: Sequence[Path], threshold: float) -> np.ndarray:
    """`[N]` as `near_duplicates`, from files of `signatures`, one after the other."""
    held = _Signatures(parts)
    first = np.arange(held.count)
    bands, rows = bands_of(threshold)
    for band in range(bands):
        for one, two in _candidates(held, slice(band * rows, (band + 1) * rows)):
            apart = first[one] != first[two]
            for a, b in zip(one[apart].tolist(), two[apart].tolist(), strict=True):
                low, high = sorted((_root(first, a), _root(first, b)))
                if low != high and (held.row(a) == held.row(b)).mean() >= threshold:
                    first[high] = low
        first = _flat(first)
    held.close()
    return first


def bands_of(threshold: float) -> tuple[int, int]:
    """(bands, rows a band) with the least weighted chance of a candidate too many and of a miss: a pair of similarity s
    shares a band with 1 - (1 - s^r)^b (Leskovec, Rajaraman & Ullman, chapter 3).

    >>> bands_of(0.8)[0] * bands_of(0.8)[1] <= PERMUTATIONS
    True
    """
    s = (np.arange(1000) + 0.5) / 1000
    best, cost = (1, 1), np.inf
    for rows in range(1, PERMUTATIONS + 1):
        for bands in range(1, PERMUTATIONS // rows + 1):
            missed = (1 - s**rows) ** bands
            now = MISSES[0] * (1 - missed)[s < threshold].sum() + MISSES[1] * missed[s >= threshold].sum()
            if now < cost:
                best, cost = (bands, rows), now
    return best


class _Signatures:
    """Files of signatures as one: by columns for bands, by row for comparisons. Nothing is mapped into memory."""

    def __init__(self, parts: Sequence[Path]):
        self.files = [os.open(path, os.O_RDONLY) for path in parts]
        self.width = 4 * PERMUTATIONS
        sizes = [os.fstat(file).st_size // self.width for file in self.files]
        self.begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.count = int(self.begins[-1])

    def row(self, number: int) -> np.ndarray:
        part = int(np.searchsorted(self.begins, number, side="right")) - 1
        at = (number - int(self.begins[part])) * self.width
        return np.frombuffer(os.pread(self.files[part], self.width, at), np.uint32)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, some at a time."""
        size = (8 << 20) // self.width * self.width
        for file in self.files:
            at = 0
            while data := os.pread(file, size, at):
                yield np.frombuffer(data, np.uint32).reshape(-1, PERMUTATIONS)
                at += len(data)

    def close(self) -> None:
        for file in self.files:
            os.close(file)


def _candidates(held: _Signatures, columns: slice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of documents that agree in a band."""
    shares = -(-held.count // AT_ONCE)
    for share in range(shares):
        numbers, keys, at = [], [], 0
        for block in held.blocks():
            key = _key(block[:, columns])
            mine = np.flatnonzero(key % np.uint64(shares) == share)
            numbers.append(at + mine)
            keys.append(key[mine])
            at += len(block)
        number, key = np.concatenate(numbers), np.concatenate(keys)
        order = np.argsort(key, kind="stable")
        number, key = number[order], key[order]
        for apart in range(1, NEAR):
            same = np.flatnonzero(key[apart:] == key[:-apart])
            if not len(same):
                break
            yield number[same], number[same + apart]
        new = np.concatenate([[True], key[1:] != key[:-1]])
        head = np.flatnonzero(new)[np.cumsum(new) - 1]  # of each, where its bucket begins
        far = np.flatnonzero(np.arange(len(key)) - head >= NEAR)
        yield number[head[far]], number[far]


def _key(values: np.ndarray) -> np.ndarray:
    """One number for the values of a band, `[D, r]` to `[D]`."""
    found = np.zeros(len(values), np.uint64)
    for k in range(values.shape[1]):
        found = scrambled(found + values[:, k].astype(np.uint64) + np.uint64(1))
    return found


def _flat(first: np.ndarray) -> np.ndarray:
    """Every document points at the first of its group."""
    while not np.array_equal(deeper := first[first], first):
        first = deeper
    return first


def _root(first: np.ndarray, number: int) -> int:
    while first[number] != number:
        first[number] = first[first[number]]
        number = int(first[number])
    return number


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block, size = [], 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= BLOCK:
            yield block
            block, size = [], 0
    yield block
