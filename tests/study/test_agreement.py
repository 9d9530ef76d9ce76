"""Agreement: published values, irrCAC's and krippendorff's on real votes, and definitions by loops over raters."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from uimjax.errors import DataError
from uimjax.study.agreement import agreement

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: four raters, twelve units
UNITS = [[1, 1, 0, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1],
         [2, 2, 2, 2], [0, 5, 5, 5], [0, 0, 1, 1], [0, 0, 3, 0]]  # fmt: skip


def counts_of(units, classes):
    return np.array([[sum(v == c for v in unit) for c in range(1, classes + 1)] for unit in units])


def test_published_values():
    found = agreement(counts_of(UNITS, 5))
    assert found.alpha[0] == pytest.approx(0.743, abs=5e-4), "Krippendorff 2011"
    assert found.gwet[0] == pytest.approx(0.77544, abs=5e-6), "irrCAC 0.4.4"
    assert found.percent[0] == pytest.approx(0.81818, abs=5e-6), "irrCAC 0.4.4"
    assert (found.items, found.ratings) == (11, 40)
    ordered = agreement(counts_of(UNITS, 5), ordinal=True)
    assert ordered.alpha[0] == pytest.approx(0.815, abs=5e-4), "Krippendorff 2011, ordinal"
    assert ordered.gwet[0] == pytest.approx(0.914, abs=5e-4), "irrCAC 0.4.4, quadratic weights"
    for its in (found, ordered):
        for value, low, high in (its.percent, its.alpha, its.gwet):
            assert low < value < high


def by_loops(units, classes, ordinal):
    """(percent, alpha, AC) from pairs of raters."""
    rated = [[v for v in unit if v] for unit in units]
    several = [unit for unit in rated if len(unit) > 1]
    weight = lambda a, b: 1 - ((a - b) / (classes - 1)) ** 2 if ordinal else float(a == b)  # noqa: E731
    percent = np.mean([np.mean([a == b for a, b in itertools.permutations(u, 2)]) for u in several])
    observed = np.mean([np.mean([weight(a, b) for a, b in itertools.permutations(u, 2)]) for u in several])
    pi = np.mean([[np.mean([v == c for v in u]) for c in range(1, classes + 1)] for u in rated], axis=0)
    total = sum(weight(a, b) for a in range(classes) for b in range(classes))
    chance = total / (classes * (classes - 1)) * sum(p * (1 - p) for p in pi)
    values = [v for u in several for v in u]
    times = {c: values.count(c) for c in set(values)}

    def distance(a, b):
        if not ordinal:
            return float(a != b)
        a, b = min(a, b), max(a, b)
        between = sum(n for c, n in times.items() if a <= c <= b)
        return (between - (times[a] + times[b]) / 2) ** 2

    n = len(values)
    seen = sum(distance(a, b) / (len(u) - 1) for u in several for a, b in itertools.permutations(u, 2)) / n
    by_chance = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (n * (n - 1))
    return percent, 1 - seen / by_chance, (observed - chance) / (1 - chance)


@pytest.mark.parametrize("ordinal", [False, True])
def test_definitions_by_pairs_of_raters(rng, ordinal):
    units = [[int(v) for v in rng.integers(0, 5, size=4)] for _ in range(30)]
    units = [unit for unit in units if any(unit)]
    found = agreement(counts_of(units, 4), ordinal, draws=0)
    want = by_loops(units, 4, ordinal)
    np.testing.assert_allclose([found.percent[0], found.alpha[0], found.gwet[0]], want, rtol=1e-10)


def test_order_of_items_changes_nothing(rng):
    counts = rng.integers(0, 4, size=(40, 3))
    one, two = agreement(counts, draws=0), agreement(counts[rng.permutation(40)], draws=0)
    for a, b in zip(one[:3], two[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_intervals_cover(rng):
    """The interval over items holds the figure of very many items, in 90 of 100 draws of 60 at least."""

    def drawn(n):
        sure = rng.beta(0.6, 0.6, size=n)
        heads = rng.binomial(5, sure)
        return np.stack([heads, 5 - heads], 1)

    true = agreement(drawn(40_000), draws=0)
    hits = np.zeros(3)
    for seed in range(100):
        found = agreement(drawn(60), seed=seed, draws=200)
        hits += [low <= t[0] <= high for t, (_, low, high) in zip(true[:3], found[:3], strict=True)]
    assert (hits >= 90).all(), hits


def test_real_votes(reference_data):
    """Against irrCAC 0.4.4 (AC1, percent) and krippendorff 0.9.0 on these votes, run apart (it wants an old NumPy)."""
    table = pq.read_table(reference_data / "text_davidson_hate" / "labeled_data.parquet")
    votes = np.stack([table[k].to_numpy() for k in ("hate_speech", "offensive_language", "neither")], 1)
    found = agreement(votes, draws=20)
    assert found.gwet[0] == pytest.approx(0.76227, abs=5e-6)
    assert found.percent[0] == pytest.approx(0.81161, abs=5e-6)
    assert found.alpha[0] == pytest.approx(0.5427989975742871, abs=1e-12)
    held = json.loads((reference_data / "labels_cleanlab_errors" / "mnist_mturk.json").read_text())
    turk = np.array([[one["mturk"][k] for k in ("given", "guessed", "neither")] for one in held])
    found = agreement(turk, draws=20)
    assert found.gwet[0] == pytest.approx(0.68252, abs=5e-6)
    assert found.percent[0] == pytest.approx(0.74344, abs=5e-6)
    assert found.alpha[0] == pytest.approx(0.2973878413110417, abs=1e-12)
    both = pq.read_table(reference_data / "labels_cifar10n" / "cifar10n.parquet")
    labels = np.stack([both["clean_label"].to_numpy(), both["random_label1"].to_numpy()], 1)
    found = agreement((labels[:, :, None] == np.arange(10)).sum(1), draws=5)
    assert found.gwet[0] == pytest.approx(0.80851, abs=5e-6)
    assert found.percent[0] == pytest.approx(0.82766, abs=5e-6)
    assert found.alpha[0] == pytest.approx(0.8084903009058553, abs=1e-9)


def test_what_is_no_table_of_votes_is_refused():
    with pytest.raises(DataError, match=r"counts \[3\]"):
        agreement(np.array([1, 2, 3]))
    with pytest.raises(DataError, match="of float64 arrived"):
        agreement(np.ones((3, 2)))
    with pytest.raises(DataError, match="no item of 2 has two ratings"):
        agreement(np.array([[1, 0], [0, 1]]))
