"""The rule for damping on curves of agreement that are known, and the correlation it goes by."""

import numpy as np
import pytest

from uimjax.curvature import damping
from uimjax.curvature.damping import Chosen, choose, correlation

STEP = (np.log10(damping.HIGH) - np.log10(damping.LOW)) / 2**damping.STEPS  # what the bisection leaves open


def rising(start):
    """Agreement that rises over the whole range, and reaches one half at `start`."""
    return lambda value: 1 / (1 + start / value)


@pytest.mark.parametrize("start", [1.5e-4, 3e-2, 1.0, 777.0, 9e3])
def test_the_smallest_damping_that_agrees_is_found(start):
    found = choose(rising(start), 0.5)
    assert found.reached
    assert 0 <= np.log10(found.value / start) <= STEP
    values, agreements = zip(*found.tried, strict=True)
    np.testing.assert_allclose(agreements, [rising(start)(v) for v in values])
    assert len(set(values)) == len(values) == damping.STEPS + 2
    assert dict(found.tried)[found.value] >= 0.5
    assert all(agreement < 0.5 for value, agreement in found.tried if value < found.value)
    assert all(agreement >= 0.5 for value, agreement in found.tried if value >= found.value)


def test_where_every_damping_agrees_the_smallest_is_taken_at_once():
    found = choose(lambda _: 0.9, 0.85)
    assert (found.value, found.reached, len(found.tried)) == (pytest.approx(damping.LOW), True, 1)
    assert str(found) == "damping 0.0001 x mean eigenvalue (halves agree at 0.90, the least that is tried)"
    assert choose(lambda _: 0.85, 0.85).value == pytest.approx(damping.LOW)  # as much as was asked for


def test_where_none_agrees_the_largest_is_taken_and_said_to_fail():
    found = choose(lambda value: 0.3 + 1e-9 * value, 0.85)
    assert (found.value, found.reached, len(found.tried)) == (pytest.approx(damping.HIGH), False, 2)
    assert str(found) == "damping 1e+04 x mean eigenvalue (halves agree at 0.30, the most that is tried)"


def test_an_agreement_that_is_not_a_number_agrees_with_nothing():
    assert not choose(lambda _: np.nan, 0.85).reached


def test_the_choice_reads_as_what_was_done():
    assert str(damping.given(0.1)) == "damping 0.1 x mean eigenvalue (given)"
    assert damping.given(0.1) == Chosen(0.1, (), True)
    assert str(choose(rising(1.0), 0.5)).startswith("damping 1")
    assert set(damping.THRESHOLD) == {"fisher", "ggn", "margin", "empirical"}


def test_correlation_is_the_median_over_queries(rng):
    one, other = rng.normal(size=(2, 20, 5))
    each = [np.corrcoef(one[:, q], other[:, q])[0, 1] for q in range(5)]
    assert correlation(one, other) == pytest.approx(np.median(each), rel=1e-12)
    assert correlation(one, 3 * one + 2) == pytest.approx(1)
    assert correlation(one, -one) == pytest.approx(-1)
    assert correlation(one.astype(np.float32) * 1e-25, other.astype(np.float32)) == pytest.approx(np.median(each))


def test_queries_without_scores_are_left_out(rng):
    one, other = rng.normal(size=(2, 20, 4))
    one[:, 0], other[:, 2] = 0, 7
    each = [np.corrcoef(one[:, q], other[:, q])[0, 1] for q in (1, 3)]
    assert correlation(one, other) == pytest.approx(np.median(each), rel=1e-12)
    assert correlation(np.zeros((20, 4)), other) == 1
