"""Gaps between groups: their definitions, intervals that hold the truth, and what a fair decision has by chance."""

import numpy as np
import pytest
from pyarrow import parquet

from uimjax.audit.fairness import amplification, equalised_odds, parity, worst_group
from uimjax.errors import DataError, ShapeError, UsageError


def decided(rng, count=1200, lift=(0.3, 0.5, 0.6)):
    groups = rng.integers(3, size=count)
    labels = (rng.random(count) < 0.4).astype(int)
    decisions = (rng.random(count) < np.array(lift)[groups] + 0.2 * labels).astype(int)
    return decisions, labels, groups


def test_gaps_are_their_definitions(rng):
    d, y, g = decided(rng)
    names = np.array(["a", "b", "c"])[g]
    rate = lambda kept: d[kept].mean()  # noqa: E731  # short
    found = parity(d, names, draws=50)
    each = {name: rate(names == name) for name in "abc"}
    assert found.by_group == pytest.approx(each)
    assert found.value == pytest.approx(max(each.values()) - min(each.values()))
    odds = equalised_odds(d, y, names, draws=50)
    gaps = [np.ptp([rate((names == name) & (y == k)) for name in "abc"]) for k in (0, 1)]
    assert odds.value == pytest.approx(max(gaps))
    assert odds.by_group["b", 1] == pytest.approx(rate((names == "b") & (y == 1)))
    worst = worst_group(d, y, g, draws=50)
    assert worst.value == pytest.approx(min((d == y)[g == k].mean() for k in range(3)))
    assert worst.mean == pytest.approx((d == y).mean())
    assert amplification(0.5, 0.1, 0.2) == pytest.approx(0.2)


def test_intervals_hold_the_true_gap():
    inside = 0
    for seed in range(60):
        d, _, g = decided(np.random.default_rng(seed))
        found = parity(d, g, draws=200, seed=seed)
        inside += found.low <= 0.3 <= found.high
    assert inside >= 52


def test_a_decision_that_knows_no_groups_has_the_gap_of_chance():
    values, chances = [], []
    for seed in range(60):
        d, y, g = decided(np.random.default_rng(seed), lift=(0.4, 0.4, 0.4))
        found = equalised_odds(d, y, g, draws=40, seed=seed)
        values.append(found.value)
        chances.append(found.chance)
    assert np.mean(values) == pytest.approx(np.mean(chances), rel=0.1)
    assert min(values) > 0


def test_rows_of_a_real_census_are_read_as_they_are(reference_data):
    """The labels' own gap: of the census' rows, 30.6% of men and 10.9% of women earn more than 50,000."""
    held = parquet.read_table(reference_data / "tab_adult" / "adult.parquet").to_pydict()
    sex, income = (next(name for name in held if word in name.lower()) for word in ("sex", "income"))
    y = np.array([">50K" in str(value) for value in held[income]]).astype(int)
    found = parity(y, np.array([str(value).strip() for value in held[sex]]), draws=50)
    assert found.by_group == pytest.approx({"Female": 0.109, "Male": 0.306}, abs=1e-3)
    assert found.chance < 0.01 < found.low


def test_what_is_wrong_is_refused(rng):
    d, y, g = decided(rng, 40)
    with pytest.raises(DataError, match="row 0 has 2"):
        parity(np.where(np.arange(40) == 0, 2, d), g)
    with pytest.raises(DataError, match="two groups"):
        parity(d, np.zeros(40))
    with pytest.raises(ShapeError, match="groups"):
        parity(d, g[1:])
    with pytest.raises(DataError, match="group 2 has no row of label 1"):
        equalised_odds(d, np.where(g == 2, 0, y), g)
    with pytest.raises(UsageError, match="draws=0"):
        parity(d, g, draws=0)
    with pytest.raises(ShapeError, match="each was wanted"):
        worst_group(d, y, g[1:])
