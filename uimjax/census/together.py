"""Which groups of people a corpus writes about near which attributes: counts of documents, shares with intervals.

In each document an attribute counts for a group, and for an axis, once, where a term of either stands within `window`
words of the other (Garg et al. 2018 and Rudinger et al. 2017 count alike). Of attribute a and an axis of groups, n_a
documents have any group of the axis near a, and n_ag of them group g. Its share n_ag / n_a is held against the share
over all other attributes of the set, (N_g - n_ag) / (N - n_a): two-sided by Fisher's exact test, all tests of a card
together at a false discovery rate of 5% (Benjamini & Hochberg 1995), and said where the difference is at least .1 as
well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from uimjax.corpora.wording import Words, runs_of, words_of
from uimjax.errors import ConfigError, MissingFileError

SHIPPED = Path(__file__).parent / "terms.yaml"
LONGEST = 3  # words of a term
FILTER = 16  # bits of the table that most words do not pass
LEAST = 10  # documents of an attribute near an axis, below which nothing is tested
RATE = 0.05  # of false discoveries
COLUMNS = ("axis", "group", "set", "attribute", "documents", "of", "share", "low", "high", "others", "p", "skewed")
DIFFERENCE = 0.1  # of shares, below which nothing is said


@dataclass(frozen=True)
class Terms:
    """`groups`: `(axis, group)`s; `attributes`: `(set, attribute)`s; `of` each by its terms: word hashes by length."""

    window: int
    groups: tuple[tuple[str, str], ...]
    attributes: tuple[tuple[str, str], ...]
    tables: tuple[tuple[np.ndarray, np.ndarray], ...]  # of terms of 1, 2, 3 words: hashes in order, and whose they are
    whole: tuple[str, ...] = ()  # axes whose terms do not count as a part of a longer term

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(axis for axis, _ in self.groups))


class Near(NamedTuple):
    """Counts of documents: `of_groups` `[G]`, `of_attributes` `[A]`; near each other `pairs` `[A, G]`, and `on_axes`
    `[A, X]` with any group of an axis."""

    of_groups: np.ndarray
    of_attributes: np.ndarray
    pairs: np.ndarray
    on_axes: np.ndarray


def read_terms(path: Path = SHIPPED) -> Terms:
    """Term lists as `terms.yaml` has them.

    Raises:
        MissingFileError. ConfigError: what is not of that form, a term that is too long or stands in two places.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there (looked in {path.absolute().parent}); --terms takes such a file, "
                               f"as {SHIPPED}")  # fmt: skip
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(held, dict) or set(held) - {"window", "whole", "groups", "attributes"} or not held.get("groups"):
        raise ConfigError(f"{path}: a mapping of window, whole, groups and attributes was wanted")
    window = held.get("window", 10)
    if not isinstance(window, int) or window < 1:
        raise ConfigError(f"{path}: window: {window!r} words; a whole number from 1 was wanted")
    groups = _named(path, held, "groups")
    attributes = _named(path, held, "attributes")
    whole, axes = tuple(held.get("whole") or ()), {axis for axis, _ in groups}
    if not set(whole) <= axes:
        raise ConfigError(f"{path}: whole: {', '.join(map(str, whole))}; axes of the groups were wanted")
    tables = _tables(path, [*groups.values(), *attributes.values()])
    return Terms(window, tuple(groups), tuple(attributes), tables, whole)


def _named(path: Path, held: Mapping[str, Any], key: str) -> dict[tuple[str, str], list[str]]:
    found = {}
    for outer, inner in (held.get(key) or {}).items():
        if not isinstance(inner, dict):
            raise ConfigError(f"{path}: {key}.{outer}: names with lists of terms were wanted")
        for name, terms in inner.items():
            if not isinstance(terms, list) or not terms or not all(isinstance(t, str) and t.strip() for t in terms):
                raise ConfigError(f"{path}: {key}.{outer}.{name}: a list of terms was wanted (in quotes where YAML "
                                  "reads yes, no or a number)")  # fmt: skip
            found[str(outer), str(name)] = terms
    return found


def _tables(path: Path, lists: Sequence[Sequence[str]]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    tables = []
    flat = [(term, owner) for owner, terms in enumerate(lists) for term in terms]
    lengths = np.diff(words_of([term for term, _ in flat]).starts)
    if wrong := [flat[k][0] for k in np.flatnonzero((lengths < 1) | (lengths > LONGEST))]:
        raise ConfigError(f"{path}: {wrong[0]!r}: a term of 1 to {LONGEST} words was wanted")
    for length in range(1, LONGEST + 1):
        mine = [flat[k] for k in np.flatnonzero(lengths == length)]
        words = words_of([term for term, _ in mine])
        hashes = words.hashes if length == 1 else runs_of(words, length).hashes if mine else words.hashes
        owners = np.array([owner for _, owner in mine], np.int64)
        order = np.argsort(hashes, kind="stable")
        tables.append((hashes[order], owners[order]))
        twice = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(twice):
            raise ConfigError(f"{path}: {mine[order[twice[0]]][0]!r} stands there twice; it can count for one thing")
    return tuple(tables)


def count(words: Words, terms: Terms) -> Near:
    """Of the documents whose words these are."""
    place, owner, text = _met(words, terms)
    many = len(terms.groups)
    group = owner < many
    at, whose = place[group], owner[group]
    pairs = np.zeros((len(terms.attributes), many), np.int64)
    here, attribute, document = place[~group], owner[~group] - many, text[~group]
    low = np.searchsorted(at, here - terms.window)
    high = np.searchsorted(at, here + terms.window, side="right")
    source = np.repeat(np.arange(len(here)), high - low)
    each = np.arange(len(source)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[source]
    same = document[source] == text[group][each]
    source, each = source[same], each[same]
    met = np.unique(np.stack([document[source], attribute[source], whose[each]]), axis=1)
    np.add.at(pairs, (met[1], met[2]), 1)
    axis = np.array([terms.axes.index(name) for name, _ in terms.groups])
    on_axes = np.zeros((len(terms.attributes), len(terms.axes)), np.int64)
    met = np.unique(np.stack([document[source], attribute[source], axis[whose[each]]]), axis=1)
    np.add.at(on_axes, (met[1], met[2]), 1)
    alone = np.unique(np.stack([text, owner]), axis=1)[1]
    every = np.bincount(alone, minlength=many + len(terms.attributes))
    return Near(every[:many], every[many:], pairs, on_axes)


def _met(words: Words, terms: Terms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (by word), owners and documents of all terms, by place. What follows the first word of a longer term is
    part of its place alone."""
    many = np.diff(words.starts)
    text = np.repeat(np.arange(len(many)), many)
    inside = np.zeros(len(text), bool)  # a longer term
    found = [(np.zeros(0, np.int64),) * 3]  # places, owners, words
    for length, (hashes, whose) in enumerate(terms.tables, start=1):
        values, at = words.hashes, np.arange(len(text))
        if length > 1:
            runs = runs_of(words, length)
            values, counts = runs.hashes, np.diff(runs.starts)
            at = np.arange(len(values)) + np.repeat(words.starts[:-1] - runs.starts[:-1], counts)
        place, owner = _looked_up(values, at, hashes, whose)
        found.append((place, owner, np.full(len(place), length)))
        for k in range(length if length > 1 else 0):
            inside[place + k] = True
    place, owner, length = (np.concatenate(parts) for parts in zip(*found, strict=True))
    part = np.array([axis in terms.whole for axis, _ in terms.groups] + [False] * len(terms.attributes))
    kept = ~(part[owner] & inside[place] & (length == 1))
    order = np.flatnonzero(kept)[np.argsort(place[kept], kind="stable")]
    return place[order], owner[order], text[place[order]]


def _looked_up(
    values: np.ndarray, at: np.ndarray, hashes: np.ndarray, whose: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(places, owners) of the values that are among the hashes."""
    if not len(hashes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    passes = np.zeros(1 << FILTER, bool)
    passes[hashes & np.uint64((1 << FILTER) - 1)] = True
    some = np.flatnonzero(passes[values & np.uint64((1 << FILTER) - 1)])
    found = np.minimum(np.searchsorted(hashes, values[some]), len(hashes) - 1)
    hit = hashes[found] == values[some]
    return at[some[hit]], whose[found[hit]]


def added(one: Near, two: Near) -> Near:
    """Of both."""
    return Near(*(a + b for a, b in zip(one, two, strict=True)))


def findings(near: Near, terms: Terms) -> list[dict[str, Any]]:
    """Every (set, attribute, axis, group) with documents: its share, a Wilson interval, the others' share, p, and
    whether it is `skewed`. Those that are come first, by how far the share is from the others'."""
    from scipy import stats

    rows = []
    for axis, members in _by_first(terms.groups).items():
        for name, its in _by_first(terms.attributes).items():
            table, on_axis = near.pairs[np.ix_(its, members)], near.on_axes[its, terms.axes.index(axis)]
            total, columns = on_axis.sum(), table.sum(0)
            for k, a in enumerate(its):
                n = int(on_axis[k])
                for j, g in enumerate(members) if n else ():
                    x, others, of = int(table[k, j]), int(columns[j] - table[k, j]), int(total - n)
                    p = _fisher(x, n, others, of) if n >= LEAST and of else None
                    low, high = wilson(x, n)
                    rows.append({
                        "axis": axis, "group": terms.groups[g][1], "set": name, "attribute": terms.attributes[a][1],
                        "documents": x, "of": n, "share": x / n, "low": low, "high": high,
                        "others": others / of if of else None, "p": p,
                    })  # fmt: skip
    tested = [row for row in rows if row["p"] is not None]
    passed = np.asarray(stats.false_discovery_control([row["p"] for row in tested])) <= RATE if tested else []
    sure = {id(row) for row, yes in zip(tested, passed, strict=True) if yes}
    for row in rows:
        row["skewed"] = id(row) in sure and abs(row["share"] - row["others"]) >= DIFFERENCE
    return sorted(rows, key=lambda r: (not r["skewed"], -abs(r["share"] - (r["others"] or 0)) if r["skewed"] else 0))


def _fisher(x: int, n: int, others: int, of: int) -> float:
    from scipy import stats

    result: Any = stats.fisher_exact([[x, n - x], [others, of - others]])
    return float(result.pvalue)


def wilson(x: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927).

    >>> [round(v, 3) for v in wilson(8, 10)]
    [0.49, 0.943]
    """
    if not n:
        return 0.0, 1.0
    middle = (x + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (x * (n - x) / n + z * z / 4) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _by_first(pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for k, (first, _) in enumerate(pairs):
        found.setdefault(first, []).append(k)
    return found
