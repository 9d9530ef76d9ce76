"""What a text shares with others word for word: the longest run of characters, by a suffix array.

Beside a score of gradients this tells copying from influence: a completion that stands in a document, with what came
before it, may be copied from there; a document that shares no run was found by what the model learned.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from uimjax.errors import UsageError

PART = 64 << 20  # bytes of text that one suffix array is of: it takes four times as many
BETWEEN = b"\xff"  # stands in no UTF-8 text, so no run goes from one document into the next
LISTED = 5  # documents that a copy is said to stand in


class Shared(NamedTuple):
    """The longest run of characters that two texts share, and where it begins in either; "" where they share none."""

    run: str
    start: int
    other: int


class Copied(NamedTuple):
    """The longest end of a text that stands word for word in documents: itself, how often, and in which (the first
    `LISTED`, by number); "" where nothing stands there that is as long as was asked for."""

    run: str
    times: int
    documents: list[int]


def longest_shared(text: str, document: str) -> Shared:
    """The longest common substring; of several the first in the text.

    >>> longest_shared("the cat sat", "a cat sits")
    Shared(run=' cat s', start=3, other=1)
    """
    suffixes = _Suffixes(document.encode("utf-8", "replace"))
    best = Shared("", 0, 0)
    for start in range(len(text)):
        if len(text) - start <= len(best.run):
            break
        here = text[start:].encode("utf-8", "replace")
        at = suffixes.first(here)
        for near in map(int, suffixes.order[max(at - 1, 0) : at + 1]):  # the longest prefix is that of a neighbour
            run = here[: _alike(here, suffixes.text[near : near + len(here)])].decode("utf-8", "ignore")
            if len(run) > len(best.run):
                best = Shared(run, start, near)
    return best._replace(other=len(suffixes.text[: best.other].decode()))


def copies(texts: Iterable[tuple[int, str]], asked: Sequence[tuple[str, str]], part: int = PART) -> list[Copied]:
    """Of each question `(before, said)`: the longest end of `before + said` that holds all of `said` and stands in one
    of the numbered texts, word for word; how often, and where.

    The texts are gone over once, `part` bytes at a time. As in infini-gram (Liu et al. 2024, arXiv 2401.17377), of
    characters.

    Raises:
        UsageError: nothing was said.

    >>> copies([(0, "he said no."), (1, "and he said no, twice he said no")], [("Then he ", "said no")])
    [Copied(run=' he said no', times=2, documents=[1])]
    """
    if empty := [k for k, (_, said) in enumerate(asked) if not said]:
        raise UsageError(f"question {empty[0]} has no completion to look for")
    found = [Copied("", 0, [])] * len(asked)
    for suffixes in _parts(texts, part):
        for k, (before, said) in enumerate(asked):
            found[k] = _joined(found[k], _ending(suffixes, before, said))
    return found


def _joined(one: Copied, two: Copied) -> Copied:
    if len(one.run) != len(two.run):
        return max(one, two, key=lambda its: len(its.run))
    both = list(dict.fromkeys([*one.documents, *two.documents]))
    return Copied(one.run, one.times + two.times, both[:LISTED])


class _Suffixes:
    """A suffix array of bytes: `order[k]` is where the k-th smallest suffix begins. `starts`, `numbers`: documents."""

    def __init__(self, text: bytes, starts: Sequence[int] = (0,), numbers: Sequence[int] = (0,)):
        from pydivsufsort import divsufsort  # compiled; most methods need none of it

        self.text, self.starts, self.numbers = text, starts, numbers
        self.order: Any = divsufsort(text)

    def first(self, pattern: bytes, after: bool = False) -> int:
        """How many suffixes are smaller than the pattern; `after`: or begin with it."""
        size, cut = len(pattern), bisect.bisect_right if after else bisect.bisect_left
        return cut(self.order, pattern, key=lambda at: self.text[at : at + size])

    def document(self, at: int) -> int:
        return self.numbers[bisect.bisect_right(self.starts, at) - 1]


def _parts(texts: Iterable[tuple[int, str]], most: int) -> Iterator[_Suffixes]:
    held, starts, numbers, size = [], [], [], 0
    for number, text in texts:
        plain = text.encode("utf-8", "replace")
        if held and size + len(plain) > most:
            yield _Suffixes(BETWEEN.join(held), starts, numbers)
            held, starts, numbers, size = [], [], [], 0
        held.append(plain)
        starts.append(size)
        numbers.append(number)
        size += len(plain) + 1
    if held:
        yield _Suffixes(BETWEEN.join(held), starts, numbers)


def _alike(one: bytes, two: bytes) -> int:
    return next((k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _ending(suffixes: _Suffixes, before: str, said: str) -> Copied:
    """If an end stands there, so does every shorter one: the longest is found by halving."""

    def pattern(taken: int) -> bytes:
        return (before[len(before) - taken :] + said).encode("utf-8", "replace")

    def stands(taken: int) -> bool:
        bytes_ = pattern(taken)
        at = suffixes.first(bytes_)
        return at < len(suffixes.order) and suffixes.text[(s := int(suffixes.order[at])) : s + len(bytes_)] == bytes_

    if not stands(0):
        return Copied("", 0, [])
    taken = bisect.bisect_left(range(1, len(before) + 1), True, key=lambda n: not stands(n))
    wanted = pattern(taken)
    low, high = suffixes.first(wanted), suffixes.first(wanted, after=True)
    places = sorted(int(at) for at in suffixes.order[low:high])
    where = list(dict.fromkeys(suffixes.document(at) for at in places))
    return Copied(wanted.decode(), high - low, where[:LISTED])
