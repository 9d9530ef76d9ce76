"""Effects and their intervals: variances by formula, coverage by simulation, strengths by likelihood."""

import os

import numpy as np
import pytest
from scipy import optimize

from uimjax.errors import DataError, UsageError
from uimjax.study import judging
from uimjax.study.effect import Mixed, mean_effect, mixed_model, strengths
from uimjax.study.power import World, designs, power, ratings
from uimjax.study.sheets import Design

NIGHTLY = bool(os.environ.get("UIMJAX_NIGHTLY"))


def test_the_interval_is_that_of_two_way_clusters(rng):
    """Against the sums of Cameron, Gelbach & Miller by hand: without drawing."""
    values = rng.normal(0.3, 1, (12, 30)) + rng.normal(0, 0.5, 12)[:, None] + rng.normal(0, 0.4, 30)
    values[rng.random(values.shape) < 0.3] = np.nan
    told = ~np.isnan(values)
    mean = values[told].mean()
    off = np.where(told, values - mean, 0)
    n, raters, items = told.sum(), *values.shape
    by_rater, by_item = (off.sum(1) ** 2).sum() / n**2, (off.sum(0) ** 2).sum() / n**2
    by_rater, by_item = by_rater * raters / (raters - 1), by_item * items / (items - 1)
    variance = max(by_rater + by_item - (off**2).sum() / n**2, by_rater, by_item)
    found = mean_effect(values, draws=20_000)
    assert found.value == pytest.approx(mean)
    assert found.high - found.low == pytest.approx(2 * 2.201 * variance**0.5, rel=0.04)  # Student's, 11 degrees
    assert (found.raters, found.items, found.ratings) == (12, 30, n)


def test_one_rater_says_nothing_of_others():
    found = mean_effect(np.ones((1, 30)))
    assert found.value == 1.0
    assert not np.isfinite(found.high - found.low)
    with pytest.raises(DataError, match="no rating is left"):
        mean_effect(np.full((3, 3), np.nan))


def covered(world, raters, items, studies, true):
    hits = 0
    for seed in range(studies):
        found = mean_effect(ratings(world, raters, items, np.random.default_rng([seed, 7])), seed=seed, draws=300)
        hits += found.low <= true <= found.high
    return hits


@pytest.mark.parametrize(
    ("world", "raters", "items"),
    [
        (World("pairwise", 0.15, 0.8, 0.6), 8, 25),
        (World("pairwise", 0.05, 0.0, 0.0), 12, 30),
        (World("pairwise", 0.1, 0.5, 0.5, ties=0.2), 15, 40),
    ],
)
def test_the_true_share_lies_in_the_interval(world, raters, items):
    """In 93 of 100 studies at least, whatever raters and outputs add (nightly: of 400)."""
    studies = 400 if NIGHTLY else 60
    true = 0.5 + world.effect * (1 - world.ties)
    hits = covered(world, raters, items, studies, true)
    assert hits >= (0.93 if NIGHTLY else 0.88) * studies, "60 studies of 95% have 53 and more in 99.6% of the cases"


def test_strengths_are_the_likeliest():
    wins = np.array([[0, 30, 25], [10, 0, 20], [15, 20, 0]], float)

    def unlikely(s):
        s = np.concatenate([s, [-s.sum()]])
        return -sum(wins[i, j] * -np.log1p(np.exp(s[j] - s[i])) for i in range(3) for j in range(3) if i != j)

    want = optimize.minimize(unlikely, np.zeros(2)).x
    np.testing.assert_allclose(strengths(wins)[:2], want, atol=0.01)
    assert np.isfinite(strengths([[0, 9], [0, 0]])).all(), "who always wins has a strength"


def test_a_mixed_model_of_balanced_ratings_is_the_anova(rng):
    """Of a whole table REML is the method of moments where no variance is negative: mean, and sums of squares."""
    raters, items = 10, 20
    values = 0.5 + rng.normal(0, 1.0, raters)[:, None] + rng.normal(0, 0.8, items) + rng.normal(0, 0.7, (raters, items))
    found = mixed_model(values)
    assert isinstance(found, Mixed)
    r, i, mean = values.mean(1), values.mean(0), values.mean()
    rest = ((values - r[:, None] - i + mean) ** 2).sum() / ((raters - 1) * (items - 1))
    of_raters = items * ((r - mean) ** 2).sum() / (raters - 1)
    of_items = raters * ((i - mean) ** 2).sum() / (items - 1)
    assert found.value == pytest.approx(mean, abs=1e-6)
    assert found.sd_rest == pytest.approx(rest**0.5, rel=0.01)
    assert found.sd_raters == pytest.approx(((of_raters - rest) / items) ** 0.5, rel=0.02)
    assert found.sd_items == pytest.approx(((of_items - rest) / raters) ** 0.5, rel=0.02)
    assert "at least were wanted" in str(mixed_model(values[:2]))
    assert "at least were wanted" in str(mixed_model(np.ones((5, 5))))


def test_power_rises_and_is_five_percent_of_nothing():
    few, many = (power(World("pairwise", 0.1), r, 30, draws=60) for r in (4, 24))
    assert few.power < many.power
    nothing = power(World("pairwise", 1e-9, 0.4, 0.4), 10, 30, draws=200)
    assert nothing.power <= 0.06, "one side of a 95% interval: 2.5%, and chance"
    found, best = designs(World("likert", 0.8, 0.3, 0.3, 1.0), [4, 12], [10, 30], draws=40)
    assert len(found) == 4
    assert best in found
    assert best.power >= 0.8
    assert designs(World("pairwise", 0.01), [3], [5], draws=40)[1] is None


def test_worlds_that_cannot_be_are_refused():
    for world, says in (
        (World("pairwise", 0.6), "between 0 and 0.5"), (World("likert", 5.0), "between 0 and 4"),
        (World("ranking"), "one of pairwise, likert"), (World(raters=-1), "--rater-sd -1"), (World(ties=1.0), "--ties"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            power(world, 5, 5, draws=20)
    with pytest.raises(UsageError, match="two of either at least"):
        power(World(), 1, 5)


def test_where_all_say_the_same_the_interval_is_not_a_point():
    rows = [judging.Rating(f"r{r}", "", f"i{i}", ("before", "traced"), 0.0) for r in range(6) for i in range(9)]
    its = judging.judge(Design(), rows, {})["effects"]["traced"]
    assert its["value"] == its["high"] == 1.0
    assert 0.5 < its["low"] < 0.7, "six raters"
    for side, points in (("before", 3.0), ("traced", 4.0)):
        rows += [judging.Rating(f"r{r}", "", f"i{i}", (side,), points) for r in range(2) for i in range(2)]
    scale = judging.judge(Design("likert"), [row for row in rows if len(row.arms) == 1], {})["effects"]["traced"]
    assert scale["value"] == 1.0
    assert scale["low"] < 0 < scale["high"], "two raters alone"
    assert power(World("pairwise", 0.45), 2, 2, draws=60).power < 0.2, "nor does `power` take that for a proof"


def test_what_is_simulated_has_the_effect_that_was_asked_for(rng):
    for world, true in (
        (World("pairwise", 0.2, ties=0.5), 0.7),
        (World("likert", 2.0), 2.0),
        (World("likert", 0.4), 0.4),
    ):
        assert ratings(world, 400, 400, rng).mean() == pytest.approx(true, abs=0.06)


def test_arms_that_were_not_rated_and_single_raters():
    rows = [judging.Rating(f"r{r}", "a" if r else "b", f"i{i}", ("before", "traced"), float(r == 0))
            for r in range(8) for i in range(6)]  # fmt: skip
    found = judging.judge(Design(arms=("before", "traced", "random"), groups=("a", "b")), rows, {})
    assert found["effects"]["random"]["says"] == "not told"
    assert "from_others" not in found["groups"]["b"]["effects"]["traced"], "of one rater nothing is said of others"


def test_a_question_that_asks_for_the_worse_is_turned_round():
    rows = [judging.Rating(f"r{r}", "", f"i{i}", ("before", "traced"), 1.0) for r in range(6) for i in range(9)]
    usual, turned = (judging.judge(Design(asks_worse=worse, question="?"), rows, {}) for worse in (False, True))
    assert usual["effects"]["traced"]["says"] == "worse"
    assert turned["effects"]["traced"]["says"] == "better"
    assert turned["strengths"]["traced"] > 0


@pytest.mark.parametrize("checks", [(6, 9), (10, 15), (2, 3), (20, 30)])
def test_two_in_three_checks_are_enough(checks):
    rows = [judging.Rating(f"r{r}", "", "i", ("before", "traced"), 1.0) for r in range(2)]
    assert judging.judge(Design(), rows, {"r0": checks})["left_out"] == []
    assert judging.judge(Design(), rows, {"r0": (checks[0] - 1, checks[1])})["left_out"] == ["r0"]
