"""The contract of `topk_dot`, for every implementation, against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from uimjax_kernels import topk_dot
from uimjax_kernels.dispatch import KernelError
from uimjax_kernels.topk_dot.api import _TABLE

IMPLEMENTATIONS = list(_TABLE)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(("n", "d", "q", "k"), [(50, 8, 3, 5), (4097, 5, 2, 7), (9000, 3, 1, 100), (3, 4, 2, 3)])
def test_equals_numpy(name, n, d, q, k, rng):
    queries, rows = rng.normal(size=(q, d)).astype(np.float32), rng.normal(size=(n, d)).astype(np.float32)
    scale = rng.uniform(0.5, 2, n).astype(np.float32)
    got = topk_dot(jnp.asarray(queries), jnp.asarray(rows), jnp.asarray(scale), k, implementation=name)
    scores = (queries.astype(np.float64) @ rows.T) * scale
    order = np.argsort(-scores, axis=1, kind="stable")
    np.testing.assert_array_equal(got.largest_index, order[:, :k])
    np.testing.assert_array_equal(got.smallest_index, order[:, ::-1][:, :k])
    np.testing.assert_allclose(got.largest, np.take_along_axis(scores, order[:, :k], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_ties_keep_the_lower_index_across_blocks(name):
    rows = jnp.ones((10_000, 2))
    got = topk_dot(jnp.ones((1, 2)), rows, jnp.ones(10_000), 4, implementation=name)
    assert got.largest_index.tolist() == got.smallest_index.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_more_than_there_are_is_marked(name):
    got = topk_dot(jnp.ones((1, 2)), jnp.ones((2, 2)), jnp.ones(2), 4, implementation=name)
    assert got.largest_index.tolist() == [[0, 1, -1, -1]]
    assert np.isneginf(np.asarray(got.largest)[0, 2:]).all()
    assert np.isposinf(np.asarray(got.smallest)[0, 2:]).all()


def test_what_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(KernelError, match=r"queries \(1, 3\) and rows \(4, 2\)"):
        topk_dot(jnp.ones((1, 3)), jnp.ones((4, 2)), jnp.ones(4), 1)
    with pytest.raises(KernelError, match="no implementation 'cuda'; it has reference"):
        topk_dot(jnp.ones((1, 2)), jnp.ones((4, 2)), jnp.ones(4), 1, implementation="cuda")
    with pytest.raises(KernelError, match="k = 0"):
        topk_dot(jnp.ones((1, 2)), jnp.ones((4, 2)), jnp.ones(4), 0)
