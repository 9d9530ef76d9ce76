"""Languages of a sample of documents (py3langid, extra `text`), and the scripts they are written in."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from uimjax.census.sampling import Drawn, margin
from uimjax.census.together import wilson
from uimjax.errors import UsageError

LOOKED = 400  # characters of a document that are looked at
LETTERS = 20  # of a document, below which its language is not told
SURE = 0.5  # probability, below which it is not told either
UNTOLD = "und"  # as ISO 639-2 has it


def check_installed() -> None:
    """Raises UsageError: py3langid is not installed."""
    try:
        import py3langid  # noqa: F401  # whether it can be
    except ImportError as error:
        raise UsageError("languages take py3langid: pip install 'uimjax[text]' (or --languages False)") from error


def languages(sample: Sequence[Drawn], of: int) -> dict[str, Any]:
    """`languages` by share of the documents, with intervals for all `of` documents; `und` where a text has fewer than
    20 letters or the likeliest language has a probability below one half. `scripts` by share of the letters."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    for one in sample:
        letters = [c for c in one.text[:LOOKED] if c.isalpha()]
        scripts.update(map(script, letters[::8]))
        name, sure = known.classify(one.text[:LOOKED]) if len(letters) >= LETTERS else (UNTOLD, 1.0)
        found[name if sure >= SURE else UNTOLD] += 1
    total = sum(scripts.values()) or 1
    return {
        "looked_at": len(sample), "of": of,
        "languages": [_row(name, n, len(sample), of) for name, n in found.most_common()],
        "scripts": {name: n / total for name, n in scripts.most_common()},
    }  # fmt: skip


def _row(name: str, n: int, looked_at: int, of: int) -> dict[str, Any]:
    low, high = margin(n / looked_at, *wilson(n, looked_at), looked_at, of)
    return {"language": name, "documents": n, "share": n / looked_at, "low": low, "high": high}


def script(letter: str) -> str:
    """The first word of its Unicode name: LATIN, CYRILLIC, CJK ...

    >>> script("a"), script("я")
    ('latin', 'cyrillic')
    """
    return unicodedata.name(letter, "unknown").split(" ")[0].split("-")[0].lower()
