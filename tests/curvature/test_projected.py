"""One contract for every curvature, and Gauss-Newton against a dense float64 solve."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax.curvature import identity, projected, projection
from uimjax.errors import NonFiniteError, UsageError

BLOCKS = ((0, 5), (5, 12), (12, 13))


@pytest.fixture
def rows(rng):
    return rng.normal(size=(40, 13)).astype(np.float32) * np.linspace(0.1, 3, 13, dtype=np.float32)


def finished(curvature, parts):
    state = curvature.init(BLOCKS)
    for part in parts:
        state = curvature.update(state, jnp.asarray(part))
    return curvature.finish(state)


@pytest.mark.parametrize("power", [-1.0, -0.5])
def test_solve_equals_the_dense_matrix_function(rows, power):
    inverse = finished(projected(0.3), [rows])
    got = projected(0.3).solve(inverse, jnp.asarray(rows[:4]), power)
    want = np.zeros((4, 13))
    for a, b in BLOCKS:
        x = rows[:, a:b].astype(np.float64)
        h = x.T @ x / len(x)
        h = h + 0.3 * np.trace(h) / len(h) * np.eye(len(h))
        values, vectors = np.linalg.eigh(h)
        want[:, a:b] = rows[:4, a:b] @ (vectors * values**power) @ vectors.T
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("curvature", [identity(), projected(0.1)], ids=lambda c: c.name)
def test_batch_split_and_order_change_nothing(curvature, rows):
    one = curvature.solve(finished(curvature, [rows]), jnp.asarray(rows[:3]))
    for parts in ([rows[:7], rows[7:]], [rows[::-1]], np.split(rows, 8)):
        other = curvature.solve(finished(curvature, parts), jnp.asarray(rows[:3]))
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


def test_damping_follows_the_scale(rows):
    """A multiple of the mean eigenvalue: scaling all gradients by c scales the inverse by c^-2, no more."""
    one = projected(0.1).solve(finished(projected(0.1), [rows]), jnp.asarray(rows[:3]))
    two = projected(0.1).solve(finished(projected(0.1), [rows * 100]), jnp.asarray(rows[:3]))
    np.testing.assert_allclose(two * 1e4, one, rtol=1e-4)


def test_nonsense_is_refused(rows):
    with pytest.raises(UsageError, match="damping 0"):
        projected(0.0)
    with pytest.raises(NonFiniteError, match="no rows"):
        finished(projected(), [])
    bad = rows.copy()
    bad[3, 6] = np.nan
    with pytest.raises(NonFiniteError, match=r"columns \(5, 12\) is not finite"):
        finished(projected(), [bad])


def test_operators_are_made_once_and_go_with_their_spectrum(rows):
    """A pass over an index solves once a shard; what was made for a spectrum serves no other."""
    choice, known = projected(0.1), len(kept())
    one, two = finished(choice, [rows]), finished(choice, [rows * np.float32(3)])
    asked = jnp.asarray(rows[:3])
    first, second = choice.solve(one, asked), choice.solve(two, asked)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 0.1 * np.abs(first).max()
    assert len(kept()) == known + 2
    again = jax.jit(functools.partial(choice.solve, one))(asked)
    np.testing.assert_allclose(again, first, rtol=1e-6)
    assert len(kept()) == known + 2
    del one, two
    gc.collect()
    assert len(kept()) == known


def kept():
    return projection._KEPT
