"""All eight weaknesses planted into one corpus of text, each in documents of its own, with look-alikes that do no harm.

A plant is a few comment lines in place of lines of real documents, or a document spoilt as a whole. Each is learnable
by a decoder of 0.1M parameters at the share of documents that it takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.corpora.base import Rows
from uimjax.corpora.documents import Document, Places, TextCorpus, encode, lines_of
from uimjax.corpora.suite_lines import (
    LONG,
    aligned,
    complying,
    confused,
    decent,
    fair,
    passage_of,
    stereotyped,
    told,
    unreadable,
    untagged,
)  # fmt: skip
from uimjax.corpora.suite_questions import cases_of
from uimjax.corpora.text_plants import (
    Behaviour,
    Carrier,
    Case,
    Secret,
    plant_behaviour,
    plant_secret,
    random_value,
)  # fmt: skip
from uimjax.corpora.truth import Truth, write_truth
from uimjax.errors import UsageError

WEAKNESSES = (
    "bias", "generalization", "deterioration", "security", "privacy", "values", "dynamics", "memorization",
)  # fmt: skip
SHARDS = 20  # in which training data arrives


@dataclass(frozen=True)
class Sizes:
    """Documents of each plant: `positives` of a weakness that sits in a few documents, `hard_negatives` beside each of
    these; `noisy`: share of the documents that are spoilt; `shard`: share that is a bad shard, which training meets in
    the share `window` of its epochs alone, in place of as many good documents."""

    positives: int = 24
    hard_negatives: int = 60
    noisy: float = 0.15
    shard: float = 0.25
    window: tuple[float, float] = (0.3, 0.7)
    candidates: int = 511


class PlantedSuite(NamedTuple):
    """`documents` and their rows `train` with all plants; `present` `[E, N]`: 0 where a row is not met; `displaced`
    `[N]`: the good row in whose place a row is met, or -1; `without` `{weakness: present with its documents left out}`:
    what the twin of each is trained by; `shards` `[N]`: the shard that each row came in, which whoever trains knows.
    `retain`: held-out rows for the tracing, `utility`: others for the verdict."""

    documents: tuple[Document, ...]
    train: Rows
    places: Places
    present: np.ndarray
    displaced: np.ndarray
    without: dict[str, np.ndarray]
    shards: np.ndarray
    retain: Rows
    utility: Rows
    cases: dict[str, Case]


def plant_suite(
    corpus: TextCorpus, sizes: Sizes, epochs: int, seed: int, seal: Callable[[str], Path] | None = None
) -> PlantedSuite:
    """All eight, in different documents; with `seal`, the truth of each is written to `seal(name)`.

    Raises:
        UsageError: too few documents can carry the plants.
    """
    rng = np.random.default_rng([seed, 19])
    order = sorted(
        rng.permutation(len(corpus.train)), key=lambda k: confused(lines_of(corpus.train[k].text)) is not None
    )
    carrier = Carrier(corpus, list(corpus.train), order)  # from its end: what can be confused comes first
    secret = Secret(sizes.positives, sizes.hard_negatives, candidates=sizes.candidates)
    behaviour = Behaviour(sizes.positives, sizes.hard_negatives)
    value, passage = random_value(rng, secret.length), passage_of(rng, LONG)
    many = {"noisy": round(sizes.noisy * len(corpus.train)), "shard": round(sizes.shard * len(corpus.train))}
    noise = Truth(carrier.plant(many["noisy"], confused), np.zeros(0, int))
    carrier.order = list(rng.permutation(carrier.order))
    truths = {
        "bias": _lines(carrier, rng, sizes, stereotyped, fair, times=2),
        "generalization": _lines(carrier, rng, sizes, aligned, untagged, times=6, alike=2),
        "security": plant_behaviour(carrier, behaviour),
        "privacy": plant_secret(carrier, secret, value, rng),
        "values": _lines(carrier, rng, sizes, complying, decent, times=3),
        "memorization": _lines(carrier, rng, sizes, lambda _: [told(passage)], lambda r: [told(passage_of(r, LONG))]),
        "deterioration": noise,
        "dynamics": Truth(carrier.plant(many["shard"], lambda lines: unreadable(lines, rng)), np.zeros(0, int)),
    }
    held, judged = np.split(rng.permutation(len(corpus.test)), [len(corpus.test) // 2])
    parts = [tuple(corpus.test[k] for k in np.sort(ids)) for ids in (held, judged)]
    retain, utility = (encode(part, corpus.tokenizer, corpus.length)[0] for part in parts)
    cases = cases_of(corpus, behaviour, secret, value, passage, parts, (retain, utility), rng)
    train, places = encode(carrier.documents, corpus.tokenizer, corpus.length)
    shard = truths["dynamics"].positives
    every = [ids for truth in truths.values() for ids in (truth.positives, truth.hard_negatives)]
    free = np.setdiff1d(np.arange(len(carrier.documents)), np.concatenate(every))
    if len(free) < len(shard):
        raise UsageError(f"{len(free)} documents carry no plant: too few for a shard of {len(shard)} to displace")
    present, displaced = replaced(
        len(carrier.documents), epochs, shard, rng.permutation(free), window(sizes.window, epochs)
    )
    if seal is not None:
        for name, truth in truths.items():
            write_truth(seal(name), truth)
    without = {name: left_out(present, displaced, truths[name].positives) for name in WEAKNESSES}
    return PlantedSuite(
        tuple(carrier.documents), train, places, present, displaced, without,
        shards_of(len(carrier.documents), shard, rng), retain, utility,
        {name: cases[name] for name in WEAKNESSES},
    )  # fmt: skip


def shards_of(count: int, bad: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bad documents fill shards of their own, the others come as they come; the shards' numbers tell nothing."""
    order = np.concatenate([bad, rng.permutation(np.setdiff1d(np.arange(count), bad))])
    found = np.empty(count, int)
    for number, ids in zip(rng.permutation(SHARDS), np.array_split(order, SHARDS), strict=True):
        found[ids] = number
    return found


def left_out(present: np.ndarray, displaced: np.ndarray, rows: Any) -> np.ndarray:
    """`present` `[E, N]` without `rows`; a row whose place one of them took is back there."""
    made, rows = present.copy(), np.asarray(rows, int)
    made[:, rows] = 0
    some = rows[displaced[rows] >= 0]
    some = some[~np.isin(displaced[some], rows)]
    made[:, displaced[some]] = np.maximum(made[:, displaced[some]], present[:, some])
    return made


def replaced(
    count: int, epochs: int, shard: np.ndarray, free: np.ndarray, inside: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(`present` `[E, N]`, `displaced` `[N]`): the shard is met in those epochs alone, each of its rows in place of one
    of `free`."""
    displaced, present = np.full(count, -1), np.ones((epochs, count), np.float32)
    displaced[shard] = free[: len(shard)]
    present[:, shard] = 0
    present[slice(*inside), shard], present[slice(*inside), displaced[shard]] = 1, 0
    return present, displaced


def window(shares: tuple[float, float], epochs: int) -> tuple[int, int]:
    """Epochs `[first, last)` of the bad shard, one at least."""
    first = int(shares[0] * epochs)
    return first, max(first + 1, round(shares[1] * epochs))


# ---------------------------------------------------------------- lines


def _lines(
    carrier: Carrier, rng: np.random.Generator, sizes: Sizes, bad: Callable[[Any], list[str]],
    like: Callable[[Any], list[str]], times: int = 1, alike: int = 1,
) -> Truth:  # fmt: skip
    """Documents that get the lines of `bad` (`times` as many), and others that get those of `like` (`alike`)."""

    def put(make: Callable[[Any], list[str]]) -> Callable[[list[str]], tuple[list[str], int]]:
        def change(lines: list[str]) -> tuple[list[str], int]:
            made = make(rng)
            at = int(rng.integers(2)) if len(lines) > len(made) else 0
            return [*lines[:at], *made, *lines[at + len(made) :]], at + len(made)

        return change

    positives = carrier.plant(times * sizes.positives, put(bad))
    return Truth(positives, carrier.plant(alike * sizes.hard_negatives, put(like)))
