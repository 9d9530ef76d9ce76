"""Everything that is counted of one stretch of documents, in one pass over its words; what is counted adds up.

Of each stretch five files are kept, the last of them when it is finished: `N.marks` (signatures), `N.parquet`
(documents), `N.spans.parquet` (personal data by place), `N.npz` and `N.json` (counts).
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import parquet

from uimjax.census import contamination, personal, together
from uimjax.census.contamination import Asked, Seen
from uimjax.census.together import Near, Terms
from uimjax.corpora import duplicates
from uimjax.corpora.texts import Text
from uimjax.corpora.wording import words_of
from uimjax.store.base import atomic

TABLE = 20  # bits: words are counted in so many places; of more different ones some share a place
STEPS = 16  # of an octave of lengths
OCTAVES = 40
SOURCES = 10_000  # that are told apart; what comes after is counted as one
OTHERS = "(further sources)"
BATCH = 2 << 20  # characters whose words are looked at together


class Looked(NamedTuple):
    """What is looked for: `terms`, items of evaluation sets, and whether near copies and personal data are."""

    terms: Terms
    asked: Asked
    near: bool


class Counted(NamedTuple):
    """Of documents: `sources` name -> [documents, characters, words]; `lengths` `[640]`: documents by words, 16 bins an
    octave; `longest` words; `words` `[2^20]`: how often each was met; `personal`: kind -> source -> [documents,
    places]."""

    sources: dict[str, list[int]]
    lengths: np.ndarray
    longest: int
    words: np.ndarray
    near: Near
    seen: Seen
    personal: dict[str, dict[str, list[int]]]


def nothing(look: Looked) -> Counted:
    """Of no document."""
    groups, attributes = len(look.terms.groups), len(look.terms.attributes)
    zeros = lambda *shape: np.zeros(shape, np.int64)  # noqa: E731  # counts
    near = Near(zeros(groups), zeros(attributes), zeros(attributes, groups), zeros(attributes, len(look.terms.axes)))
    return Counted({}, np.zeros(STEPS * OCTAVES, np.int64), 0, np.zeros(1 << TABLE, np.int64), near,
                   contamination.nothing(look.asked), {})  # fmt: skip


def added(one: Counted, two: Counted) -> Counted:
    """Of both; `one` came first."""
    sources = {name: list(its) for name, its in one.sources.items()}
    for name, its in two.sources.items():
        name = name if name in sources or len(sources) < SOURCES else OTHERS
        sources[name] = [a + b for a, b in zip(sources.get(name, [0, 0, 0]), its, strict=True)]
    found = {kind: {s: list(its) for s, its in by.items()} for kind, by in one.personal.items()}
    for kind, by in two.personal.items():
        for name, its in by.items():
            held = found.setdefault(kind, {})
            name = name if name in sources else OTHERS
            held[name] = [a + b for a, b in zip(held.get(name, [0, 0]), its, strict=True)]
    return Counted(
        sources, one.lengths + two.lengths, max(one.longest, two.longest), one.words + two.words,
        together.added(one.near, two.near), contamination.joined(one.seen, two.seen), found,
    )  # fmt: skip


def stretch(texts: Sequence[Text], look: Looked, path: Path) -> None:
    """Count a stretch and write its files, named `path` and an ending."""
    total, rows, places = nothing(look), [], []
    with atomic(path.with_suffix(".marks")) as temporary, temporary.open("wb") as marks:
        for batch in _batches(texts):
            counted, some, spans, signed = _of_batch(batch, look)
            total = added(total, counted)
            rows.append(some)
            places += spans
            marks.write(signed)
    with atomic(path.with_suffix(".parquet")) as temporary:
        parquet.write_table(pa.concat_tables(rows), temporary)
    named = pa.schema([("id", pa.string()), ("kind", pa.string()), ("start", pa.int64()), ("stop", pa.int64())])
    with atomic(path.with_suffix(".spans.parquet")) as temporary:
        parquet.write_table(pa.Table.from_pylist(places, named), temporary)
    save(total, path)


def _batches(texts: Sequence[Text]) -> list[list[Text]]:
    batches: list[list[Text]] = [[]]
    size = 0
    for text in texts:
        if size > BATCH:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text.text)
    return [batch for batch in batches if batch]


def _of_batch(texts: Sequence[Text], look: Looked) -> tuple[Counted, pa.Table, list[dict[str, Any]], bytes]:
    words = words_of([one.text for one in texts])
    many = np.diff(words.starts)
    sources: dict[str, list[int]] = {}
    found: dict[str, dict[str, list[int]]] = {}
    spans, of_each = [], []
    for one, n in zip(texts, many.tolist(), strict=True):
        held = sources.setdefault(one.source, [0, 0, 0])
        held[:] = held[0] + 1, held[1] + len(one.text), held[2] + n
        its = personal.spans(one.text)
        spans += [{"id": one.id, "kind": s.kind, "start": s.start, "stop": s.stop} for s in its]
        of_each.append(len(its))
        for kind, times in Counter(s.kind for s in its).items():
            by = found.setdefault(kind, {}).setdefault(one.source, [0, 0])
            by[:] = by[0] + 1, by[1] + times
    places = (words.hashes >> np.uint64(64 - TABLE)).astype(np.int64)
    counted = Counted(
        sources, np.bincount(bins(many), minlength=STEPS * OCTAVES), int(many.max(initial=0)),
        np.bincount(places, minlength=1 << TABLE), together.count(words, look.terms),
        contamination.look(words, [one.id for one in texts], look.asked), found,
    )  # fmt: skip
    table = pa.table({
        "id": [one.id for one in texts], "source": [one.source for one in texts],
        "characters": pa.array([len(one.text) for one in texts], pa.int64()), "words": pa.array(many, pa.int64()),
        "digest": pa.array([xxhash.xxh3_64_intdigest(one.text.strip().encode()) for one in texts], pa.uint64()),
        "personal": pa.array(of_each, pa.int64()),
    })  # fmt: skip
    return counted, table, spans, duplicates.signatures(words).tobytes() if look.near else b""


def bins(words: np.ndarray) -> np.ndarray:
    """Of each length its bin: 0 for none, then 16 an octave, so that an end is 4.4% above a beginning."""
    found = np.floor(np.log2(np.maximum(words, 1)) * STEPS).astype(np.int64) + 1
    return np.where(words > 0, np.minimum(found, STEPS * OCTAVES - 1), 0)


def save(counted: Counted, path: Path) -> None:
    """As `N.npz` and, when all else is written, `N.json`."""
    arrays = {"lengths": counted.lengths, "words": counted.words, **counted.near._asdict()}
    arrays |= {f"seen{k}": runs for k, runs in enumerate(counted.seen.runs)}
    with atomic(path.with_suffix(".npz")) as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, **arrays)
    held = {"sources": counted.sources, "longest": counted.longest, "personal": counted.personal,
            "where": [[item, names] for item, names in counted.seen.where.items()]}  # fmt: skip
    with atomic(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(held))


def load(path: Path) -> Counted:
    """What `save` wrote."""
    held = json.loads(path.with_suffix(".json").read_text())
    with np.load(path.with_suffix(".npz")) as arrays:
        near = Near(*(arrays[name] for name in Near._fields))
        runs = tuple(arrays[f"seen{k}"] for k in range(len(contamination.LENGTHS)))
        return Counted(held["sources"], arrays["lengths"], held["longest"], arrays["words"], near,
                       Seen(runs, {item: names for item, names in held["where"]}), held["personal"])  # fmt: skip
