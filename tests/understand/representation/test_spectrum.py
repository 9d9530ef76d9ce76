"""Numbers of the singular values: against the formulas spelled out, by both ways, and what they refuse."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from uimjax.errors import NonFiniteError, ShapeError
from uimjax.understand.representation.moments import moments_of
from uimjax.understand.representation.spectrum import spectrum_of, spectrum_of_moments

NUMBERS = ("sve", "lsvr", "effective_rank", "rankme", "participation_ratio", "stable_rank")


def by_the_book(x, centred):
    """From the eigenvalues of the rows' kernel, sum by sum."""
    x = x - x.mean(0) if centred else x
    values = np.linalg.eigvalsh(x @ x.T)[::-1][: min(x.shape)]
    sigma = [math.sqrt(max(value, 0)) for value in values]
    p = [s / sum(sigma) for s in sigma]
    sve = -sum(q * math.log(q) for q in p if q)
    return {
        "sve": sve,
        "lsvr": -math.log(p[0]),
        "effective_rank": math.exp(sve),
        "rankme": math.exp(-sum((q + 1e-7) * math.log(q + 1e-7) for q in p)),
        "participation_ratio": sum(s**2 for s in sigma) ** 2 / sum(s**4 for s in sigma),
        "stable_rank": sum(s**2 for s in sigma) / sigma[0] ** 2,
    }


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(60, 7), (6, 20)])
def test_both_ways_follow_the_formulas(rng, shape, centred):
    x = rng.exponential(size=shape)
    wanted = by_the_book(x, centred)
    for found in (spectrum_of(x, centred), spectrum_of_moments(moments_of(x), centred)):
        assert len(found.singular_values) == min(shape)
        assert found.singular_values.tolist() == sorted(found.singular_values, reverse=True)
        for name in NUMBERS:
            np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=1e-6, err_msg=name)


def test_equal_directions_are_counted(rng):
    frame = np.linalg.qr(rng.normal(size=(50, 5)))[0] @ np.eye(5, 9)
    found = spectrum_of(frame)
    for name in ("effective_rank", "participation_ratio", "stable_rank"):
        np.testing.assert_allclose(getattr(found, name), 5, rtol=1e-12)
    np.testing.assert_allclose(found.lsvr, math.log(5), rtol=1e-12)
    assert spectrum_of(frame[:, :1]).lsvr == 0


def test_rotation_scale_and_order_change_nothing(rng):
    x = rng.normal(size=(40, 6)) * np.arange(1, 7)
    turned = 3 * x[rng.permutation(40)] @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(spectrum_of(turned), name), getattr(spectrum_of(x), name), rtol=1e-11)


def test_centring_takes_the_mean_off(rng):
    x = rng.normal(size=(40, 6))
    np.testing.assert_allclose(
        spectrum_of(x + 100, True).singular_values, spectrum_of(x, True).singular_values, rtol=1e-10
    )
    assert spectrum_of(x + 100).effective_rank < 2


def test_shapes_of_features_without_the_constant_ones(rng):
    x = np.concatenate([rng.exponential(size=(30, 3)), np.full((30, 2), 0.1)], 1)
    for found in (spectrum_of(x), spectrum_of_moments(moments_of(np.split(x, 3)))):
        np.testing.assert_allclose(found.skewness, np.abs(stats.skew(x[:, :3])).mean(), rtol=1e-10)
        np.testing.assert_allclose(found.kurtosis, stats.kurtosis(x[:, :3]).mean(), rtol=1e-10)
        assert found.constant == 2


def test_constant_features_are_one_direction_and_none_when_centred():
    x = np.full((100_000, 3), 0.1)
    for made in (spectrum_of, lambda x, centred=False: spectrum_of_moments(moments_of(x), centred)):
        found = made(x)
        np.testing.assert_allclose(found.effective_rank, 1, rtol=1e-6)
        assert found.constant == 3
        assert np.isnan(found.skewness)
        assert np.isnan(found.kurtosis)
        with pytest.raises(NonFiniteError, match="all singular values are zero"):
            made(x, centred=True)


def test_a_constant_feature_adds_no_direction_when_centred(rng):
    x = rng.normal(size=(50, 2))
    wide = np.concatenate([x, np.full((50, 1), 1e9)], 1)
    for found in (spectrum_of(wide, True), spectrum_of_moments(moments_of(wide), True)):
        np.testing.assert_allclose(found.singular_values, [*spectrum_of(x, True).singular_values, 0], atol=1e-12)


def test_arrays_of_jax_in_low_precision(rng):
    x = jnp.asarray(rng.normal(size=(30, 4)), jnp.bfloat16)
    assert spectrum_of(x).sve == spectrum_of(np.asarray(x, np.float64)).sve


def test_what_is_refused(rng):
    with pytest.raises(NonFiniteError, match="all singular values are zero"):
        spectrum_of(np.zeros((5, 2)))
    with pytest.raises(ShapeError, match=r"shape \[5\] arrived"):
        spectrum_of(np.zeros(5))
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        spectrum_of(np.array([[np.inf, 1.0]]))
    with pytest.raises(ShapeError, match="stack single rows or batches first"):
        spectrum_of(iter([rng.normal(size=(5, 2))]))


@pytest.mark.parametrize("unit", [1e-200, 1e-90, 1e90, 1e200])
def test_the_unit_of_features_changes_nothing(unit, rng):
    from uimjax.understand.representation.dimension import two_nn

    x = rng.normal(size=(60, 4))
    one, other = spectrum_of(x), spectrum_of(x * unit)
    np.testing.assert_allclose(other.singular_values / unit, one.singular_values, rtol=1e-12)
    assert other[1:] == pytest.approx(one[1:], rel=1e-12)
    assert two_nn(x * unit) == pytest.approx(two_nn(x), rel=1e-12)
