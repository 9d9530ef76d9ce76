"""DFR: the worst group rises, and its parts are what they are said to be."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.mitigate.test_heads import spurious
from uimjax.errors import DataError, NonFiniteError, ShapeError, UsageError
from uimjax.mitigate.balancing import balanced, dfr, logits, worst_group


def test_balanced_groups_lift_the_worst_one(rng):
    x, y, groups = spurious(rng, 3000)
    held, test = spurious(np.random.default_rng(3), 800), spurious(np.random.default_rng(4), 3000, 0.5)
    plain = LogisticRegression().fit(x, y).predict(test[0])
    made = dfr(*held)
    found = logits(made, test[0]).argmax(1)
    assert worst_group(found, *test[1:]) > worst_group(plain, *test[1:]) + 0.1
    assert made.strength in (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    assert made.worst.shape == (7,)
    again = dfr(*held)
    np.testing.assert_array_equal(again.w, made.w)


def test_one_refit_of_all_equal_groups_is_a_plain_regression(rng):
    """Groups of one size: a balanced draw is every row."""
    x = rng.normal(size=(80, 3))
    y = np.repeat([0, 1], 40)
    x[:, 0] += y
    groups = np.tile([0, 1], 40) + 2 * y
    made = dfr(x, y, groups, strengths=(0.3,), refits=1)
    z = (x - x.mean(0)) / x.std(0)
    kept = balanced(groups, np.random.default_rng(0))
    assert sorted(kept) == list(range(80))
    twin = LogisticRegression(C=0.3, l1_ratio=1.0, solver="liblinear", random_state=0).fit(z, y)
    np.testing.assert_allclose(made.w[:, 1], twin.coef_[0], rtol=0.05, atol=1e-3)
    np.testing.assert_allclose(
        logits(made, x)[:, 1] - logits(made, x)[:, 0], twin.decision_function(z), rtol=0.1, atol=0.05
    )


def test_three_classes(rng):
    y = rng.integers(3, size=400)
    x = rng.normal(size=(400, 4)) + 2.5 * np.eye(3, 4)[y]
    made = dfr(x, y, y, refits=3, strengths=(1.0, 0.1))
    assert made.w.shape == (4, 3)
    assert worst_group(logits(made, x).argmax(1), y, y) > 0.8


def test_a_balanced_draw_has_as_many_of_each(rng):
    groups = np.repeat([0, 1, 2], [50, 7, 20])
    kept = balanced(groups, rng)
    assert np.bincount(groups[kept]).tolist() == [7, 7, 7]
    assert len(set(kept)) == 21


def test_what_is_wrong_is_refused(rng):
    x, y, groups = spurious(rng, 200)
    with pytest.raises(ShapeError, match="groups"):
        dfr(x, y, groups[1:])
    with pytest.raises(DataError, match="1 classes arrived"):
        dfr(x, np.zeros(200, int), groups)
    with pytest.raises(DataError, match="group 9 has 1 rows"):
        dfr(x, y, np.where(np.arange(200) == 0, 9, groups))
    with pytest.raises(UsageError, match="refits=0"):
        dfr(x, y, groups, refits=0)
    x[3, 0] = np.inf
    with pytest.raises(NonFiniteError, match="row 3"):
        dfr(x, y, groups)
