"""A uniform sample of documents as they stream by: those with the smallest hashes of their names."""

import heapq
from typing import NamedTuple

import xxhash

LETTERS = 2000  # characters of a document that are kept


class Drawn(NamedTuple):
    """A document of the sample; `label` as text, None where there is none."""

    id: str
    source: str
    text: str
    label: str | None


class Sample:
    """At most `size` documents; which ones depends on their names and the seed, not on their order."""

    def __init__(self, size: int, seed: int = 0):
        self.size, self.seed, self.seen = size, seed, 0
        self._held: list[tuple[int, int, Drawn]] = []

    def offer(self, id: str, source: str, text: str, label: str | None = None) -> None:
        """One more document of the stream."""
        self.seen += 1
        rank = -xxhash.xxh3_64_intdigest(id.encode("utf-8", "replace"), self.seed)
        if len(self._held) == self.size and rank <= self._held[0][0]:
            return
        one = (rank, -self.seen, Drawn(id, source, text[:LETTERS], label))
        if len(self._held) < self.size:
            heapq.heappush(self._held, one)
        else:
            heapq.heapreplace(self._held, one)

    def drawn(self) -> list[Drawn]:
        """By rank, so that of a smaller sample they are the first."""
        return [one for _, _, one in sorted(self._held, key=lambda held: held[:2], reverse=True)]


def margin(share: float, low: float, high: float, looked_at: int, of: int) -> tuple[float, float]:
    """An interval of a share, narrowed by how much of everything was looked at (finite population correction).

    >>> margin(0.5, 0.4, 0.6, 100, 100)
    (0.5, 0.5)
    """
    left = ((of - looked_at) / max(of - 1, 1)) ** 0.5
    return share - (share - low) * left, share + (high - share) * left
