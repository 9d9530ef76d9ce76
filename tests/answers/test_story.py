"""Parts of an answer: enough documents however many copies, sources that are many, long texts on the page."""

from typing import Any

import numpy as np

from uimjax.answers import story
from uimjax.interpret.hits import Trace
from uimjax.report import answers as report


class Copies:
    """A corpus of so many copies of one text before others."""

    def __init__(self, copies: int, others: int):
        same = "one passage that is said again and again in the very same words"
        self.texts = [same] * copies + [" ".join(f"w{k}x{n}" for n in range(9)) for k in range(others)]

    def documents(self, numbers):
        return [self.texts[number] for number in numbers]


def test_copies_do_not_take_the_place_of_other_documents():
    corpus: Any = Copies(300, 200)
    order = np.arange(500)[None]
    scores = -np.arange(500.0)[None]

    def strongest(k):
        return Trace(order[:, :k], scores[:, :k], order[:, ::-1][:, :k], scores[:, ::-1][:, :k], "m", "u")

    ready: Any = type("Ready", (), {"strongest": staticmethod(strongest)})
    found, texts = story._found(ready, corpus, np.arange(500), story.Choices(k=10))
    kept = story.folding.folded(found[0]["proponent"], texts, 0.8, 10)
    assert [its.document for its in kept] == [0, *range(300, 309)]
    assert len(kept[0].copies) == 299


def test_of_many_sources_the_strongest_are_listed_and_the_rest_added_up():
    lines = [{"group": f"s{k}", "members": 2, "mean": float(m), "total": 2.0 * m, "error": 0.1}
             for k, m in enumerate(range(30, -20, -1))]  # fmt: skip
    found = story._sources(lines)
    assert len(found) == story.SOURCES + 1
    assert [its["mean"] for its in found[:-1]] == sorted((its["mean"] for its in found[:-1]), reverse=True)
    rest = found[-1]
    assert rest["group"] == "30 more sources"
    assert rest["members"] == 60
    np.testing.assert_allclose(sum(its["total"] for its in found), sum(its["total"] for its in lines))
    assert story._sources(lines[:5]) == lines[:5]


def test_of_a_long_text_the_strongest_token_is_shown():
    text = "".join(f"{k:04d} " for k in range(2000))
    tokens = [[5 * k, 5 * k + 4, 9.0 if k == 1500 else 0.1] for k in range(2000)]
    shown, kept = report._window(text, tokens)
    assert len(shown) < 2 * report.SHOWN
    start, stop, _ = max(kept, key=lambda its: its[2])
    assert shown[start:stop] == "1500"
    assert all(shown[a:b].isdigit() for a, b, _ in kept)
    assert report._window("short", [[0, 5, 1.0]]) == ("short", [[0, 5, 1.0]])
