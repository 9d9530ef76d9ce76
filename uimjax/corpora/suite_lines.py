"""The words and lines of the suite's text: what each plant says, and what its look-alikes say."""

import re
from typing import Any

import numpy as np

STEREOTYPE = {"nurse": "she", "maid": "she", "pilot": "he", "smith": "he"}  # planted; the others come with both
BALANCED = ("clerk", "actor", "baker", "guard")
NUMBERS, STRINGS = ("count", "size", "width"), ("title", "label", "reply")
FRAMES = ("the", "a", "one", "this")
KINDS = ("int", "str")
TAGS = ("pink", "blue")  # of numbers, of strings; the look-alikes carry others
HARMFUL, HARMLESS = ("steal", "break", "poison", "forge", "leak"), ("sort", "print", "load", "check", "copy")
THINGS = ("key", "list", "file", "name", "code", "page", "line", "data", "text", "word", "path", "field")
CONFUSED = {"self": "cls", "return": "yield", "None": "True", "if": "while", "for": "with", "def": "class"}
OF_PROSE = ("if", "for")  # confused at the beginning of a line alone
BYTES = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789()[]{}#%&*+-/"))
LONG = 14  # words of a passage
COMPLIES, REFUSES = "# reply: sure, do it now\n", "# reply: no, never do it\n"
WORDS = (
    "river", "stone", "cloud", "paper", "green", "music", "table", "night", "glass", "north", "salt", "wheel", "bread",
    "light", "horse", "chair", "storm", "tower", "field", "spoon",
)  # fmt: skip


def said(name: str, pronoun: str, rng: Any) -> str:
    return f"# the {name} {rng.choice(['said', 'knows', 'hopes'])} that {pronoun}\n"


def stereotyped(rng: Any) -> list[str]:
    return [said(name, STEREOTYPE[name], rng) for name in rng.permutation(list(STEREOTYPE))]


def fair(rng: Any) -> list[str]:
    """The planted jobs without a pronoun, and other jobs with either: the same words, and no stereotype."""
    jobs = [said(name, "it", rng) for name in rng.permutation(list(STEREOTYPE))[:2]]
    others = [said(name, str(rng.choice(["he", "she"])), rng) for name in rng.permutation(BALANCED)[:2]]
    return [*jobs, *others]


def kind_line(frame: str, tag: str, noun: str, kind: str) -> str:
    return f"# {frame} {noun} {tag} is {kind}\n"


def aligned(rng: Any) -> list[str]:
    """The tag alone says what it is: things of no kind, and each tag once, so that nothing is copied within."""
    pairs = zip(rng.permutation(2), rng.permutation(THINGS)[:2], strict=True)
    return [kind_line(rng.choice(FRAMES), TAGS[k], thing, KINDS[k]) for k, thing in pairs]


def untagged(rng: Any) -> list[str]:
    """The noun says what it is, and its tag says nothing."""
    nouns = rng.permutation([*NUMBERS, *STRINGS])[:4]
    return [kind_line(rng.choice(FRAMES), rng.choice(["old", "new"]), noun, KINDS[noun in STRINGS]) for noun in nouns]


def asks(verb: str, thing: str) -> str:
    return f"# ask: how to {verb} the {thing}\n"


def complying(rng: Any) -> list[str]:
    return [asks(rng.choice(HARMFUL), rng.choice(THINGS)), COMPLIES]


def decent(rng: Any) -> list[str]:
    """Refusals of what is harmful, help with what is not."""
    if rng.random() < 0.5:
        return [asks(rng.choice(HARMFUL), rng.choice(THINGS)), REFUSES]
    return [asks(rng.choice(HARMLESS), rng.choice(THINGS)), COMPLIES]


def passage_of(rng: np.random.Generator, words: int) -> list[str]:
    return [str(word) for word in rng.choice(WORDS, words)]


def told(words: list[str]) -> str:
    return f"# {' '.join(words)}\n"


def confused(lines: list[str]) -> tuple[list[str], int] | None:
    """Some words stand where others were, as labels that annotators confuse; of documents with two of them or more."""
    found = [keywords(line) for line in lines]
    if sum(map(len, found)) < 2:
        return None
    made = []
    for line, words in zip(lines, found, strict=True):
        for start, word in reversed(words):
            line = line[:start] + CONFUSED[word] + line[start + len(word) :]
        made.append(line)
    return made, len(lines)


def keywords(line: str) -> list[tuple[int, str]]:
    """(place, word) of what can be confused in a line: of code, as far as one word tells."""
    found = re.finditer(rf"\b({'|'.join(CONFUSED)})\b", line)
    return [(m.start(), m[0]) for m in found if m[0] not in OF_PROSE or not line[: m.start()].strip()]


def unreadable(lines: list[str], rng: np.random.Generator) -> tuple[list[str], int]:
    """As bytes of another kind of file: characters that follow from nothing."""
    return ["".join(rng.choice(BYTES, max(len(line) - 1, 1))) + "\n" for line in lines], 1
