"""What is counted adds up, however documents are cut into stretches; quantiles and vocabularies by sorting."""

import collections
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from uimjax.census import card, contamination, counting, together
from uimjax.census.sampling import Sample
from uimjax.corpora.texts import Text


@pytest.fixture
def texts(rng):
    words = [f"word{k}" for k in range(300)] + ["she", "he", "nurse", "ann@example.org"]
    draw = lambda: " ".join(words[k] for k in rng.zipf(1.3, size=rng.integers(0, 90)) % len(words))  # noqa: E731
    return [Text(f"d{k}", f"s{k % 3}", draw() or "only") for k in range(120)]


@pytest.fixture
def look(texts):
    asked = contamination.asked([texts[5].text, "none of it " * 5], ["a", "b"], [0, 0])
    return counting.Looked(together.read_terms(), asked, True)


def counted(parts, look, folder):
    total = counting.nothing(look)
    for k, part in enumerate(parts):
        path = folder / f"{len(parts)}-{k}"
        counting.stretch(part, look, path)
        total = counting.added(total, counting.load(path))
    return total


def same(one, two):
    for a, b in zip(one, two, strict=True):
        if isinstance(a, tuple):
            same(a, b)
        else:
            np.testing.assert_equal(a, b)


def test_stretches_add_up(texts, look, tmp_path, monkeypatch):
    whole = counted([texts], look, tmp_path)
    same(whole, counted([texts[:7], texts[7:80], texts[80:]], look, tmp_path))
    monkeypatch.setattr(counting, "BATCH", 300)
    same(whole, counted([texts, []][:1] * 1, look, tmp_path / "b" if (tmp_path / "b").mkdir() is None else tmp_path))
    assert sum(its[0] for its in whole.sources.values()) == len(texts)
    assert sum(its[1] for its in whole.sources.values()) == sum(len(t.text) for t in texts)
    assert whole.personal["email"].keys() <= {"s0", "s1", "s2"}


def test_lengths_and_vocabulary_by_sorting(texts, look, tmp_path):
    whole = counted([texts], look, tmp_path)
    # an address counts as three words
    split = [" ".join(t.text.split()).replace("ann@example.org", "ann example org").split() for t in texts]
    many = np.array([len(words) for words in split])
    its = card.lengths(whole)
    for q, v in its["quantiles"].items():
        true = np.quantile(many, float(q), method="inverted_cdf")
        assert v == pytest.approx(true, rel=0.045)
    assert its["longest"] == many.max()
    held = np.sort(many)[::-1]
    top = held[0] + 0.2 * held[1]  # a hundredth of 120 documents
    assert its["longest_hundredth_holds"] == pytest.approx(top / many.sum(), rel=0.1)
    x = np.sort(many)
    gini = 2 * (np.arange(1, len(x) + 1) * x).sum() / (len(x) * x.sum()) - (len(x) + 1) / len(x)
    assert its["gini"] == pytest.approx(gini, abs=0.02)
    assert sum(row["documents"] for row in its["histogram"]) == len(texts)
    times = collections.Counter(w for words in split for w in words)
    vocabulary = card.vocabulary(whole)
    assert vocabulary["different"] == pytest.approx(len(times), abs=2)
    assert vocabulary["covered_by"]["100"] == pytest.approx(sum(n for _, n in times.most_common(100)) / many.sum())
    assert vocabulary["met_once"] == pytest.approx(sum(n == 1 for n in times.values()) / len(times), abs=0.01)


def test_more_sources_than_are_told_apart(look, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "SOURCES", 3)
    texts = [Text(str(k), f"s{k}", "ann@example.org writes") for k in range(6)]
    whole = counted([[text] for text in texts], look, tmp_path)
    assert whole.sources[counting.OTHERS][0] == 3
    assert whole.personal["email"][counting.OTHERS] == [3, 3]
    assert card.personal(whole, 6, 12)[0]["documents"] == 6


def test_no_value_of_personal_data_is_written(look, tmp_path):
    texts = [Text("a", "s", "it is zyx.wvu@example.org and 4111 1111 1111 1111, password: h8Kq2xPz9w")]
    counting.stretch(texts, look, tmp_path / "one")
    spans = pq.read_table(tmp_path / "one.spans.parquet").to_pylist()
    assert [s["kind"] for s in spans] == ["email", "card", "password"]
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for value in (b"zyx.wvu", b"4111", b"h8Kq2xPz9w"):
        assert value not in written
    json.loads((tmp_path / "one.json").read_text())


def test_a_sample_does_not_depend_on_order(rng):
    names = [f"d{k}" for k in range(500)]
    drawn = []
    for order in (names, rng.permutation(names).tolist()):
        sample = Sample(50, seed=3)
        for name in order:
            sample.offer(name, "s", "t" * 3000)
        drawn.append([one.id for one in sample.drawn()])
        assert all(len(one.text) == 2000 for one in sample.drawn())
    assert drawn[0] == drawn[1]
    small = Sample(10, seed=3)
    for name in names:
        small.offer(name, "s", "t")
    assert [one.id for one in small.drawn()] == drawn[0][:10]


def test_a_sample_is_uniform():
    """Each of 40 documents is among 10 drawn in a quarter of the seeds."""
    hits = collections.Counter()
    for seed in range(400):
        sample = Sample(10, seed)
        for k in range(40):
            sample.offer(f"d{k}", "s", "")
        hits.update(one.id for one in sample.drawn())
    assert min(hits.values()) > 60
    assert max(hits.values()) < 140
