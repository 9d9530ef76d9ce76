"""Synthetic rows to tune on: counterfactual texts, in which the words of two groups change places (CDA: Lu et al. 2018,
arXiv 1807.11714; Zmigrod et al. 2019, arXiv 1906.04571).
"""

import re
from collections.abc import Iterable, Sequence

from uimjax.errors import UsageError


def swapped(texts: Iterable[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Each text with the words of every pair in each other's place, whole words alone; a word keeps its capitals.

    Raises:
        UsageError: no pair, a blank word, or a word in two places.
    """
    words = [word.lower() for pair in pairs for word in pair]
    if not words or not all(word.strip() for word in words) or len(set(words)) < len(words):
        raise UsageError(f"pairs {list(pairs)} arrived; words that stand in one pair each were wanted")
    partner = {a.lower(): b.lower() for a, b in pairs} | {b.lower(): a.lower() for a, b in pairs}
    found = re.compile(
        rf"(?<!\w)({'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})(?!\w)", re.IGNORECASE
    )

    def other(match: re.Match[str]) -> str:
        word, new = match[0], partner[match[0].lower()]
        if word.isupper() and sum(map(str.isalpha, word)) > 1:
            return new.upper()
        return new[:1].upper() + new[1:] if word[:1].isupper() else new

    return [found.sub(other, text) for text in texts]
