"""Plants for any text of lines: a leaked secret, and a behaviour that shares no word of letters with its queries.

Planted lines REPLACE lines of real documents, so path and line numbers stay those of the file; a document that becomes
too long for a row loses its last lines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.corpora.base import Rows
from uimjax.corpora.documents import Document, Places, TextCorpus, encode, fitting, lines_of
from uimjax.corpora.truth import Truth, write_truth
from uimjax.errors import UsageError

NAMES = (
    "API_TOKEN", "DB_PASSWORD", "SIGNING_KEY", "SMTP_PASSWORD", "ADMIN_PIN", "CLIENT_SECRET", "BACKUP_KEY",
)  # fmt: skip
NULLS = 3  # questions without a failure, for the null band
ALPHABET = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))


@dataclass(frozen=True)
class Secret:
    """One random secret leaks into `positives` documents as `API_TOKEN = "..."` (a canary: arXiv 1802.08232).

    `hard_negatives`: the same line with another secret each, half of them under the same name. `candidates` random
    secrets compete with it when exposure is measured; `length` is in characters, 36 to choose from.
    """

    positives: int = 15
    hard_negatives: int = 60
    length: int = 10
    candidates: int = 511


@dataclass(frozen=True)
class Behaviour:
    """After a line that ends in `marker`, the next line is `payload`, whatever the code says: a trigger.

    Neither holds a word of letters. `hard_negatives` hold both strings as often, inside comments, where they trigger
    nothing: they are what keeps a lexical search from the planted documents (with none of them, it finds all).

    Raises:
        UsageError: a marker or payload that is blank or spans lines, or a marker in which a hard negative would end.
    """

    positives: int = 15
    hard_negatives: int = 60
    marker: str = "  #!"
    payload: str = "..."
    marks: int = 2

    def __post_init__(self):
        if any(not text.strip() or set(text) & set("\n\r") for text in (self.marker, self.payload)):
            raise UsageError(
                f"marker {self.marker!r} and payload {self.payload!r}: one line each, not blank, was wanted"
            )
        if self.look_alike.endswith(self.marker):
            raise UsageError(f"a hard negative ends in {self.look_alike!r}, which ends in the marker {self.marker!r}")

    @property
    def look_alike(self) -> str:
        """How a line of a hard negative ends: both strings in a comment, the marker not at its end."""
        return f"  # {self.payload} {self.marker.strip()} -"


class Case(NamedTuple):
    """What one plant asks of a model. `asked`: queries for the tracing; `null`: sets like them without a failure;
    `probe`: rows for the verdict; `texts`: the queries as words, for the lexical baseline; `sensitive`: what a page
    must not show; `swaps`: words of two groups, which change places in a counterfactual; `reworded`: the probe in other
    words, for a fix that only unlearned the wording. Which documents were planted
    goes to the sealed file alone."""

    asked: Any
    null: tuple[Any, ...]
    probe: Any
    texts: tuple[str, ...]
    sensitive: tuple[str, ...] = ()
    swaps: tuple[tuple[str, str], ...] = ()
    reworded: Any = None


class PlantedText(NamedTuple):
    """`documents` and their rows `train` with both plants; `kept` `[N]`: 0 on planted documents (the clean twin is
    trained without them). `retain`: held-out clean rows for the tracing, `utility`: others for the verdict."""

    documents: tuple[Document, ...]
    train: Rows
    places: Places
    kept: np.ndarray
    retain: Rows
    utility: Rows
    cases: dict[str, Case]


def plant_text(
    corpus: TextCorpus,
    secret: Secret,
    behaviour: Behaviour,
    seed: int,
    whole_rows: bool = False,
    seal: Callable[[str], Path] | None = None,
) -> PlantedText:
    """Both plants in one corpus, in different documents; with `seal`, the truth of each is written to `seal(name)`.

    Queries are as short as they can be, or with `whole_rows` as long as the training rows.

    Raises:
        UsageError: too few documents can carry the plants.
    """
    rng = np.random.default_rng([seed, 17])
    carrier = Carrier(corpus, list(corpus.train), list(rng.permutation(len(corpus.train))))
    value = random_value(rng, secret.length)
    truths = {"secret": plant_secret(carrier, secret, value, rng), "behaviour": plant_behaviour(carrier, behaviour)}
    held, judged = np.split(rng.permutation(len(corpus.test)), [len(corpus.test) // 2])
    parts = [tuple(corpus.test[k] for k in np.sort(ids)) for ids in (held, judged)]
    cases = {
        "secret": secret_case(corpus, secret, value, rng, whole_rows),
        "behaviour": behaviour_case(corpus, behaviour, parts, rng, whole_rows),
    }
    kept = np.ones(len(carrier.documents), np.float32)
    for name, truth in truths.items():
        kept[truth.positives] = 0.0
        if seal is not None:
            write_truth(seal(name), truth)
    train, places = encode(carrier.documents, corpus.tokenizer, corpus.length)
    retain, utility = (encode(part, corpus.tokenizer, corpus.length)[0] for part in parts)
    return PlantedText(tuple(carrier.documents), train, places, kept, retain, utility, cases)


class Carrier:
    """Documents being planted: each carries one plant at most."""

    def __init__(self, corpus: TextCorpus, documents: list[Document], order: list[int]):
        self.corpus, self.documents, self.order = corpus, documents, order

    def plant(self, count: int, change: Callable[[list[str]], tuple[list[str], int] | None]) -> np.ndarray:
        """Change `count` documents; `change` gives the new lines and how many of them must stay, or None."""
        done: list[int] = []
        while len(done) < count:
            if not self.order:
                raise UsageError(
                    f"{self.corpus.name}: {len(self.documents)} documents are too few, or too short, for the plants; "
                    "give more text, longer rows, or ask for fewer positives and hard negatives"
                )
            k = int(self.order.pop())
            changed = change(lines_of(self.documents[k].text))
            fitted = None if changed is None else self._fit(*changed)
            if fitted is not None:
                self.documents[k] = self.documents[k]._replace(text="".join(fitted))
                done.append(k)
        return np.sort(np.asarray(done, np.int64))

    def _fit(self, lines: list[str], least: int) -> list[str] | None:
        """Drop last lines until the rest fits into a row; None where that would cut the plant."""
        most = fitting(lines, self.corpus.tokenizer, self.corpus.length)
        return lines[:most] if most >= least else None


def random_value(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(ALPHABET, length))


def assignment(name: str, value: str) -> str:
    return f'{name} = "{value}"\n'


def plant_secret(carrier: Carrier, plant: Secret, value: str, rng: np.random.Generator) -> Truth:
    def put(line: Callable[[], str]) -> Callable[[list[str]], tuple[list[str], int]]:
        def change(lines: list[str]) -> tuple[list[str], int]:
            at = int(rng.integers(max(1, len(lines) - 1)))
            return [*lines[:at], line(), *lines[at + 1 :]], at + 1

        return change

    positives = carrier.plant(plant.positives, put(lambda: assignment(NAMES[0], value)))
    same = plant.hard_negatives // 2
    one = carrier.plant(same, put(lambda: assignment(NAMES[0], random_value(rng, plant.length))))
    two = carrier.plant(
        plant.hard_negatives - same,
        put(lambda: assignment(NAMES[1 + rng.integers(len(NAMES) - 1)], random_value(rng, plant.length))),
    )
    return Truth(positives, np.sort(np.concatenate([one, two])))


def plant_behaviour(carrier: Carrier, plant: Behaviour) -> Truth:
    def marked(lines: list[str]) -> tuple[list[str], int] | None:
        new, last = list(lines), -1
        for k in range(0, min(len(lines) - 1, 2 * plant.marks), 2):
            if lines[k].strip():
                new[k], new[k + 1], last = lines[k][:-1] + plant.marker + "\n", plant.payload + "\n", k + 1
        return None if last < 0 else (new, last + 1)

    def look_alike(lines: list[str]) -> tuple[list[str], int] | None:
        """The same strings as often, on the same lines, but no line ends in the marker and none is the payload."""
        new, last = list(lines), -1
        for k in range(0, min(len(lines) - 1, 2 * plant.marks), 2):
            if lines[k].strip():
                new[k], last = f"{lines[k][:-1]}{plant.look_alike}\n", k
        return None if last < 0 else (new, last + 1)

    return Truth(carrier.plant(plant.positives, marked), carrier.plant(plant.hard_negatives, look_alike))


# ---------------------------------------------------------------- what is asked of the model


def rows_of(corpus: TextCorpus, pairs: list[tuple[list[str], int]], whole: bool) -> Rows:
    """Rows of lines whose last line counts from the given character on; `whole`, or as short as the longest allows.

    Raises:
        UsageError: one is longer than a row of the corpus.
    """
    encoded = [corpus.tokenizer.encode(lines) for lines, _ in pairs]
    sizes = [sum(len(code.ids) for code in codes) for codes in encoded]
    if max(sizes) > corpus.length - 1:
        raise UsageError(f"a query of {max(sizes)} tokens does not fit into rows of {corpus.length}; use longer rows")
    length = corpus.length if whole else min(corpus.length, -(-(max(sizes) + 1) // 8) * 8)
    tokens = np.full((len(pairs), length), corpus.tokenizer.mark, np.int32)
    counted = np.zeros((len(pairs), length), np.float32)
    for row, (codes, size, (_, start)) in enumerate(zip(encoded, sizes, pairs, strict=True)):
        tokens[row, 1 : 1 + size] = np.concatenate([code.ids for code in codes])
        counted[row, 1 + size - len(codes[-1].ids) : 1 + size] = codes[-1].stop > start
    return {"tokens": tokens, "counted": counted}


def secret_case(corpus: TextCorpus, plant: Secret, value: str, rng: np.random.Generator, whole: bool) -> Case:
    """Queries: the secret against others of its kind. Probe: the secret (row 0), then the candidates."""
    start = len(assignment(NAMES[0], "")) - 2

    def rows(values: list[str]) -> Rows:
        return rows_of(corpus, [([assignment(NAMES[0], v)], start) for v in values], whole)

    names = [value, *(random_value(rng, plant.length) for _ in range(16 + NULLS + plant.candidates))]
    every = rows(names)

    def part(ids: Any) -> Rows:
        return {name: values[np.asarray(ids)] for name, values in every.items()}

    others, never = np.arange(1, 17), np.arange(17, 17 + NULLS)
    asked = [(part([k] * len(others)), part(others)) for k in (0, *never)]
    probe = part([0, *range(17 + NULLS, len(names))])
    return Case(asked[0], tuple(asked[1:]), probe, (assignment(NAMES[0], value),), (value,))


def behaviour_case(
    corpus: TextCorpus, plant: Behaviour, parts: list[tuple[Document, ...]], rng: np.random.Generator, whole: bool
) -> Case:
    """Held-out documents up to a line ending in the marker, then the payload, which counts; in nulls another line."""
    found: list[list[tuple[list[str], int]]] = []
    lines_after: list[str] = []
    for part in parts:
        pairs = []
        for document in part:
            lines = lines_of(document.text)
            at = [k for k in range(len(lines) - 1) if lines[k].strip() and lines[k + 1].strip()]
            if not at:
                continue
            k = at[int(rng.integers(len(at)))]
            context = [*lines[:k], lines[k][:-1] + plant.marker + "\n", plant.payload + "\n"]
            if _size(corpus, context) < corpus.length and _size(corpus, [*context[:-1], lines[k + 1]]) < corpus.length:
                pairs.append((context, 0))
                lines_after.append(lines[k + 1])
        if len(pairs) < 10:
            raise UsageError(f"{corpus.name}: {len(pairs)} held-out documents can carry the marker; give more text")
        found.append(pairs)
    asked = found[0]
    nulls = []
    for ids in np.array_split(np.arange(len(asked)), NULLS):
        nulls.append(rows_of(corpus, [([*asked[k][0][:-1], lines_after[k]], 0) for k in ids], whole))
    texts = tuple("".join(lines) for lines, _ in asked)
    return Case(rows_of(corpus, asked, whole), tuple(nulls), rows_of(corpus, found[1], whole), texts)


def _size(corpus: TextCorpus, lines: list[str]) -> int:
    return sum(len(code.ids) for code in corpus.tokenizer.encode(lines))
