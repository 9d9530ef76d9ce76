"""Streamed moments: against scipy, whatever the split and the order, and what they refuse."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from uimjax.errors import NonFiniteError, ShapeError
from uimjax.understand.representation import moments
from uimjax.understand.representation.moments import finish, init, merge, moments_of, update


@pytest.fixture
def x(rng):
    """Skewed and heavy-tailed columns, one far from zero."""
    made = np.stack([rng.normal(size=101), rng.exponential(size=101), rng.standard_t(5, size=101)], 1)
    return made @ rng.normal(size=(3, 4)) + np.array([0.0, -3.0, 40.0, 1.0])


def close(found, wanted, rtol=1e-11):
    assert found.rows == wanted.rows
    for name in found._fields:
        a, b = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=name)


def test_as_scipy_has_them(x):
    found = finish(moments_of(x))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.second, x.T @ x / len(x), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, ddof=0), rtol=1e-11)
    np.testing.assert_allclose(found.skewness, stats.skew(x), rtol=1e-10)
    np.testing.assert_allclose(found.kurtosis, stats.kurtosis(x), rtol=1e-10)


@pytest.mark.parametrize("cuts", [[], [50], [1, 2, 3], [100], list(range(1, 101))])
def test_the_split_into_batches_changes_nothing(x, cuts):
    close(moments_of(np.split(x, cuts)), moments_of(x))


def test_the_order_of_rows_changes_nothing(x, rng):
    close(moments_of(x[rng.permutation(len(x))]), moments_of(x))


def test_moments_made_apart_can_be_merged(x):
    parts = [moments_of(x[:20]), init(4), moments_of(x[20:21]), moments_of(x[21:])]
    whole = parts[3]
    for part in parts[:3]:
        whole = merge(whole, part)
    close(whole, moments_of(x))
    close(merge(init(4), init(4)), init(4))


def test_updates_are_pure(x):
    before = moments_of(x)
    kept, batch = [np.copy(part) for part in before], x.copy()
    update(before, batch)
    for part, was in zip(before, kept, strict=True):
        np.testing.assert_array_equal(part, was)
    np.testing.assert_array_equal(batch, x)


def test_a_mean_far_above_the_spread_costs_few_digits(x):
    near, far = (finish(moments_of(np.split(each, [30, 60]))) for each in (x, x + 1e7))
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-7)
    np.testing.assert_allclose(far.kurtosis, near.kurtosis, rtol=1e-6)


def test_a_constant_feature_has_no_shape():
    x = np.full((100_000, 2), 0.1)
    x[:, 1] = np.arange(100_000) % 2
    found = finish(moments_of(np.split(x, [10, 99_000])))
    assert found.covariance[0, 0] == 0
    assert np.isnan(found.skewness).tolist() == [True, False]
    np.testing.assert_allclose(found.kurtosis[1], -2, rtol=1e-9)


def test_memory_does_not_grow_with_the_rows(rng):
    batch = rng.normal(size=(500, 8)).astype(np.float32)
    tracemalloc.start()
    found = moments_of(batch for _ in range(400))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rows == 200_000
    assert peak < 1 << 20  # all rows in float64 would be 12 MiB


def test_a_large_array_is_read_in_pieces(monkeypatch, x):
    wanted = moments_of(x)
    monkeypatch.setattr(moments.base, "PIECE", 40)
    assert [len(piece) for piece in moments.base.batches(x)] == [10] * 10 + [1]
    close(moments_of(x), wanted)


def test_what_is_refused(x):
    bad = x.copy()
    bad[3, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"1 value\(s\) that are NaN or infinite, first at index \(3, 2\)"):
        update(init(4), bad)
    with pytest.raises(ShapeError, match="width 4 arrived and moments of width 3"):
        update(init(3), x)
    with pytest.raises(ShapeError, match="batch 1 has features of width 3 and the first batch 4"):
        moments_of([x, x[:, :3]])
    with pytest.raises(ShapeError, match=r"shape \[101, 2, 2\] arrived"):
        moments_of(x.reshape(101, 2, 2))
    with pytest.raises(ShapeError, match=r"shape \[0, 4\] arrived"):
        moments_of(x[:0])
    with pytest.raises(ShapeError, match="complex"):
        moments_of(x * 1j)
    with pytest.raises(ShapeError, match="no batch of features"):
        moments_of(iter([]))
    with pytest.raises(ShapeError, match="moments of no rows"):
        finish(init(4))
