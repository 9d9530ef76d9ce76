"""TwoNN: against whole distance matrices, on known dimensions, with duplicates, and what it refuses."""

import numpy as np
import pytest

from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.understand.representation.dimension import two_nn


def by_distances(x, discard):
    """Both estimates from all N x N distances and a least-squares line without intercept."""
    distances = np.sqrt(np.square(x[:, None] - x[None]).sum(-1))
    nearest = np.sort(distances, 1)[:, 1:3]
    mu = np.sort(nearest[:, 1] / nearest[:, 0])
    n = len(mu)
    kept = min(int(n * (1 - discard)), n - 1)
    rise = [-np.log(1 - i / n) for i in range(1, kept + 1)]
    return np.linalg.lstsq(np.log(mu[:kept, None]), np.array(rise), rcond=None)[0][0], n / np.log(mu).sum()


@pytest.mark.parametrize("discard", [0.1, 0.0, 0.37])
@pytest.mark.parametrize("width", [3, 20])
def test_as_whole_distance_matrices_have_it(rng, width, discard):
    x = rng.normal(size=(200, width))
    found = two_nn(x, discard)
    np.testing.assert_allclose((found.regression, found.likelihood), by_distances(x, discard), rtol=1e-9)
    assert (found.rows, found.duplicates) == (200, 0)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_known_dimensions(rng, d):
    x = np.tanh(rng.uniform(-1, 1, size=(3000, d)) @ rng.normal(size=(d, 12)) / 3)
    found = two_nn(x)
    np.testing.assert_allclose((found.regression, found.likelihood), d, rtol=0.08)


@pytest.mark.parametrize("width", [3, 20])
def test_duplicates_are_dropped_and_counted(rng, width):
    x = rng.normal(size=(100, width))
    x[0, 0] = 0.0
    twice = np.concatenate([x, x[:30], x[:10], x[:1] * np.where(x[:1] == 0, -1.0, 1.0)])  # the last one has -0
    assert np.signbit(twice[-1, 0])
    found = two_nn(twice[rng.permutation(len(twice))])
    assert (found.rows, found.duplicates) == (100, 41)
    np.testing.assert_allclose(found[:2], two_nn(x)[:2], rtol=1e-12)


@pytest.mark.parametrize("width", [3, 20])
def test_shift_scale_rotation_and_order_change_nothing(rng, width):
    x = rng.normal(size=(150, width))
    moved = 1e-3 * x[rng.permutation(150)] @ np.linalg.qr(rng.normal(size=(width, width)))[0] + 1e3
    np.testing.assert_allclose(two_nn(moved)[:2], two_nn(x)[:2], rtol=1e-7)


def test_what_is_refused(rng):
    x = rng.normal(size=(30, 2))
    with pytest.raises(ShapeError, match=r"24 distinct rows \(48 arrived\); at least 25"):
        two_nn(np.concatenate([x[:24], x[:24]]))
    with pytest.raises(NonFiniteError, match="all equally far, as on a grid"):
        two_nn(np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2))
    for discard in (-0.1, 1.0, np.nan):
        with pytest.raises(UsageError, match="in \\[0, 1\\) was wanted"):
            two_nn(x, discard)
    with pytest.raises(UsageError, match="leaves none of 30 rows"):
        two_nn(x, 0.99)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        two_nn(x * np.inf)


def test_rows_too_near_to_tell_apart_count_as_duplicates(rng):
    x = rng.normal(size=(40, 2))
    x = np.concatenate([x, [[0.0, 0.0], [0.0, 1e-200]]])
    found = two_nn(x)
    assert (found.rows, found.duplicates) == (40, 2)
