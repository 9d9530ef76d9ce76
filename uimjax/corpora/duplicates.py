"""Documents that nearly repeat one another, over a whole corpus: MinHash and locality-sensitive hashing (extra `text`).

Two documents are joined where the share of runs of five words that both have, of all that either has (Jaccard), is
estimated at the threshold or more (Broder 1997); a group is all that are joined, over however many links.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from uimjax.corpora.prepared import Prepared
from uimjax.errors import CorruptError, UsageError
from uimjax.progress import Progress, quiet
from uimjax.store.base import atomic

GRAM = 5  # words of a shingle
PERMUTATIONS = 128  # hashes a document: the estimate's standard error is below .045
SEED = 1
MISSES = (0.02, 0.98)  # candidates too many cost a comparison, one that is missed is lost
WORD = re.compile(r"\w+")


def shingles(text: str) -> set[tuple[str, ...]]:
    """The distinct runs of `GRAM` words, lower-cased; a shorter text is one run."""
    words = WORD.findall(text.lower())
    return {tuple(words[k : k + GRAM]) for k in range(max(1, len(words) - GRAM + 1))}


def check_installed() -> None:
    """Raises UsageError: datasketch is not installed."""
    try:
        import datasketch  # noqa: F401  # whether it can be
    except ImportError as error:
        raise UsageError("near duplicates take datasketch: pip install 'uimjax[text]'") from error


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
    """`[N]`: of each text the number of the first one of its group, its own where it repeats none. A kibibyte a text is
    held, and its places in the tables of hashes.

    Raises:
        UsageError: datasketch is not installed, or a threshold that is none.
    """
    if not 0 < threshold < 1:
        raise UsageError(f"near duplicates are as alike as {threshold}; a share between 0 and 1 was wanted")
    check_installed()
    from datasketch import MinHash, MinHashLSH

    near = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=MISSES)
    held: list[MinHash] = []
    first: list[int] = []
    for number, text in enumerate(texts):
        made = MinHash(num_perm=PERMUTATIONS, seed=SEED)
        made.update_batch(["\x1f".join(run).encode() for run in shingles(text)])
        found: Any = near.query(made)  # the numbers that were put in
        like = [other for other in found if held[other].jaccard(made) >= threshold]
        near.insert(number, made)
        held.append(made)
        first.append(number)
        roots = {_root(first, other) for other in (number, *like)}
        for root in roots:
            first[root] = min(roots)
    return np.array([_root(first, number) for number in range(len(first))], np.int64)


def _root(first: list[int], number: int) -> int:
    while first[number] != number:
        first[number] = first[first[number]]
        number = first[number]
    return number
