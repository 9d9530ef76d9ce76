"""Groups near attributes: by nested loops over words, and Fisher's test by its sum."""

import math

import numpy as np
import pytest

from uimjax.census import together
from uimjax.census.together import added, count, findings, read_terms
from uimjax.corpora.wording import words_of
from uimjax.errors import ConfigError, MissingFileError

LISTS = """
window: 4
groups:
  gender: {female: [she, old woman], male: [he, man]}
  age: {old: [old man, elderly]}
attributes:
  jobs: {nurse: [nurse], pilot: [pilot, test pilot at]}
"""


@pytest.fixture
def terms(tmp_path):
    path = tmp_path / "terms.yaml"
    path.write_text(LISTS)
    return read_terms(path)


def places(words, terms):
    """First words of terms."""
    return [k for term in terms for k in range(len(words)) if words[k : k + len(term.split())] == term.split()]


def by_hand(texts, window=4):
    groups = {("gender", "female"): ["she", "old woman"], ("gender", "male"): ["he", "man"],
              ("age", "old"): ["old man", "elderly"]}  # fmt: skip
    jobs = {"nurse": ["nurse"], "pilot": ["pilot", "test pilot at"]}
    pairs = np.zeros((2, 3), int)
    for text in texts:
        words = text.split()
        for a, job in enumerate(jobs.values()):
            for g, group in enumerate(groups.values()):
                near = [abs(i - j) <= window for i in places(words, job) for j in places(words, group)]
                pairs[a, g] += any(near)
    return pairs


def test_counts_are_those_of_nested_loops(terms, rng):
    vocabulary = np.array("she he man old woman elderly nurse pilot test at x y z".split())
    texts = [" ".join(vocabulary[rng.integers(len(vocabulary), size=rng.integers(0, 30))]) for _ in range(300)]
    found = count(words_of(texts), terms)
    np.testing.assert_array_equal(found.pairs, by_hand(texts))
    assert found.of_groups[0] == sum("she" in t.split() or "old woman" in t for t in texts)
    parts = added(count(words_of(texts[:100]), terms), count(words_of(texts[100:]), terms))
    for one, two in zip(parts, found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_documents_do_not_reach_into_one_another(terms):
    assert count(words_of(["she", "nurse"]), terms).pairs.sum() == 0
    assert count(words_of(["she nurse"]), terms).pairs[0].tolist() == [1, 0, 0]
    assert count(words_of([]), terms).pairs.sum() == 0
    assert count(words_of(["", "  "]), terms).pairs.sum() == 0


def fisher(a, b, c, d):
    """The sum of all tables with these margins that are as unlikely."""
    rows, column, n = a + b, a + c, a + b + c + d
    chance = lambda x: math.comb(rows, x) * math.comb(n - rows, column - x) / math.comb(n, column)  # noqa: E731
    each = [chance(x) for x in range(max(0, rows + column - n), min(rows, column) + 1)]
    return sum(p for p in each if p <= chance(a) * (1 + 1e-7))


def test_findings_by_hand(terms):
    texts = ["she nurse"] * 30 + ["he nurse"] * 3 + ["she pilot"] * 8 + ["he pilot"] * 32 + ["elderly pilot"] * 2
    found = {(r["attribute"], r["axis"], r["group"]): r for r in findings(count(words_of(texts), terms), terms)}
    nurse = found["nurse", "gender", "female"]
    assert (nurse["documents"], nurse["of"], nurse["others"]) == (30, 33, 0.2)
    assert math.isclose(nurse["p"], fisher(30, 3, 8, 32), rel_tol=1e-9)
    assert nurse["skewed"]
    assert nurse["low"] < 30 / 33 < nurse["high"]
    both = findings(count(words_of(["she nurse he"] * 20), terms), terms)
    assert {(r["group"], r["documents"], r["of"]) for r in both if r["axis"] == "gender"} == {
        ("female", 20, 20), ("male", 20, 20)}, "documents, each once"  # fmt: skip
    assert found["pilot", "age", "old"]["p"] is None, "too few documents for a test"
    assert not found["pilot", "age", "old"]["skewed"]


def test_a_fair_corpus_alarms_seldom(rng):
    """Of 40 corpora without any skew: false discoveries at 5% of all corpora or thereabouts, as none is a true one."""
    terms = read_terms()
    jobs = [terms.attributes[k][1] for k in range(len(terms.attributes)) if terms.attributes[k][0] == "professions"][
        :40
    ]
    plain = [job for job in jobs if "_" not in job]
    alarms = 0
    for _ in range(40):
        drawn = zip(rng.integers(len(plain), size=1500), rng.integers(2, size=1500), strict=True)
        texts = [f"the {plain[j]} said {('she', 'he')[g]} was late" for j, g in drawn]
        alarms += any(row["skewed"] for row in findings(count(words_of(texts), terms), terms))
    assert alarms <= 6, "a false discovery in at most 5% of them, and chance"


def test_a_part_of_a_longer_term_does_not_count_where_it_should_not(tmp_path):
    path = tmp_path / "terms.yaml"
    path.write_text("""
whole: [nationality]
groups: {race: {black: [african american]}, nationality: {african: [african], american: [american]}, age: {old: [old
man]},
  gender: {male: [man]}}
""")
    terms = read_terms(path)
    found = count(words_of(["an african american", "an african", "an old man", "american"]), terms).of_groups
    assert dict(zip(terms.groups, found.tolist(), strict=True)) == {
        ("race", "black"): 1, ("nationality", "african"): 1, ("nationality", "american"): 1, ("age", "old"): 1,
        ("gender", "male"): 1}  # fmt: skip
    path.write_text("whole: [x]\ngroups: {a: {b: [c]}}")
    with pytest.raises(ConfigError, match="whole: x; axes of the groups were wanted"):
        read_terms(path)


def test_the_shipped_lists_are_read():
    terms = read_terms()
    assert {axis for axis, _ in terms.groups} == {"gender", "race_ethnicity", "religion", "nationality", "age"}
    assert len(terms.attributes) > 60


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "a mapping of window, whole, groups and attributes"),
        ("groups: {a: {b: [c]}}\nother: 1", "a mapping of window"),
        ("groups: {a: [b]}", "groups.a: names with lists of terms"),
        ("groups: {a: {b: [yes]}}", "groups.a.b: a list of terms"),
        ("groups: {a: {b: [one two three four]}}", "'one two three four': a term of 1 to 3 words"),
        ("groups: {a: {b: [x], c: [x]}}", "'x' stands there twice"),
        ("window: 0\ngroups: {a: {b: [x]}}", "window: 0 words"),
        ("a: [", "is not YAML"),
    ],
)
def test_lists_of_another_form_are_refused(tmp_path, text, says):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says.replace("[", r"\[").replace(".", r"\.")):
        read_terms(path)
    with pytest.raises(MissingFileError, match="--terms takes such a file"):
        read_terms(tmp_path / "none.yaml")


def test_wilson_covers(rng):
    """The interval of a share holds the true one 95 times in a hundred, and no less than 92."""
    for share in (0.02, 0.3, 0.9):
        held = [
            low <= share <= high for low, high in (together.wilson(int(x), 80) for x in rng.binomial(80, share, 2000))
        ]
        assert np.mean(held) > 0.92
