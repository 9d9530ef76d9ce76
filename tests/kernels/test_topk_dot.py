"""The contract of `topk_dot`, for every implementation, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax_kernels import topk_dot
from uimjax_kernels.dispatch import KernelError
from uimjax_kernels.topk_dot import pallas_gpu, pallas_tpu, shapes
from uimjax_kernels.topk_dot.api import _TABLE
from uimjax_kernels.topk_dot.select import select

IMPLEMENTATIONS = list(_TABLE)


RAGGED = [(50, 8, 3, 5, 1), (8193, 5, 2, 7, 1), (9000, 3, 1, 100, 1), (3, 4, 2, 3, 1), (300, 256, 65, 9, 2)]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("n", "d", "q", "k", "c"), RAGGED)
def test_equals_numpy(name, dtype, n, d, q, k, c, rng):
    queries = rng.normal(size=(q, d)).astype(np.float32)
    rows = jnp.asarray(np.round(50 * rng.normal(size=(n, d))).clip(-127, 127), dtype)
    scale, blocks = (rng.uniform(0.5, 2, shape).astype(np.float32) for shape in (n, (n, c)))
    inputs = [jnp.asarray(queries), rows, jnp.asarray(scale), k, jnp.asarray(blocks) if c > 1 else None]
    if refused := _TABLE[name].refuses(*inputs):
        with pytest.raises(KernelError, match="wanted"):
            topk_dot(*inputs, implementation=name)
        pytest.skip(refused)
    got = topk_dot(*inputs, implementation=name)
    stored = np.asarray(rows, np.float64).reshape(n, c, -1) * (blocks if c > 1 else np.ones((n, 1)))[:, :, None]
    scores = (queries.astype(np.float64) @ stored.reshape(n, d).T) * scale
    size, order = np.abs(scores).max(), np.argsort(-scores, axis=1, kind="stable")
    for values, index, want in (
        (got.largest, got.largest_index, order[:, :k]),
        (got.smallest, got.smallest_index, order[:, ::-1][:, :k]),
    ):
        np.testing.assert_allclose(values, np.take_along_axis(scores, want, 1), rtol=1e-4, atol=1e-5 * size)
        where = np.take_along_axis(scores, np.asarray(index), 1)  # near-equal neighbours may change places
        np.testing.assert_allclose(where, values, rtol=1e-4, atol=1e-5 * size)
        assert all(len(set(row)) == k for row in np.asarray(index).tolist())


@pytest.mark.parametrize("module", [pallas_gpu, pallas_tpu])
def test_scores_that_do_not_fit_together_are_taken_in_turn(module, monkeypatch, rng):
    monkeypatch.setattr(shapes, "SCORES", 1)  # one tile of rows at a time
    queries, rows = rng.normal(size=(3, 64)).astype(np.float32), rng.integers(-9, 9, (1300, 64)).astype(np.int8)
    jax.clear_caches()
    got = module.topk_dot(jnp.asarray(queries), jnp.asarray(rows), jnp.ones(1300), 5)
    order = np.argsort(-(queries.astype(np.float64) @ rows.T), axis=1, kind="stable")
    np.testing.assert_array_equal(got.largest_index, order[:, :5])
    np.testing.assert_array_equal(got.smallest_index, order[:, ::-1][:, :5])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [4, 200])
def test_ties_keep_the_lower_index_across_tiles_and_chunks(name, k):
    rows = jnp.ones((20_000, 2), jnp.bfloat16)
    got = topk_dot(jnp.ones((1, 2)), rows, jnp.ones(20_000), k, implementation=name)
    assert got.largest_index.tolist() == got.smallest_index.tolist() == [list(range(k))]


def test_selection_is_that_of_a_sort_where_many_scores_are_equal(rng):
    scores = rng.integers(0, 9, (5, 5000)).astype(np.float32)
    got = select(jnp.asarray(scores), 30)
    np.testing.assert_array_equal(got.largest_index, np.argsort(-scores, axis=1, kind="stable")[:, :30])
    np.testing.assert_array_equal(got.smallest_index, np.argsort(scores, axis=1, kind="stable")[:, :30])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_rows_that_do_not_count_are_passed_over(name, rng):
    queries, rows = rng.normal(size=(3, 64)).astype(np.float32), rng.integers(-9, 9, (9000, 64)).astype(np.int8)
    kept = rng.random(9000) < 0.01
    got = topk_dot(jnp.asarray(queries), rows, jnp.ones(9000), 200, None, jnp.asarray(kept), implementation=name)
    scores = np.where(kept, queries.astype(np.float64) @ rows.T, -np.inf)
    some = int(kept.sum())
    np.testing.assert_array_equal(got.largest_index[:, :some], np.argsort(-scores, axis=1, kind="stable")[:, :some])
    assert (np.asarray(got.largest_index)[:, some:] == -1).all()
    assert (np.asarray(got.smallest_index)[:, some:] == -1).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_more_than_there_are_is_marked(name):
    got = topk_dot(jnp.ones((1, 2)), jnp.ones((2, 2), jnp.int8), jnp.ones(2), 4, implementation=name)
    assert got.largest_index.tolist() == [[0, 1, -1, -1]]
    assert np.isneginf(np.asarray(got.largest)[0, 2:]).all()
    assert np.isposinf(np.asarray(got.smallest)[0, 2:]).all()


def test_what_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(KernelError, match=r"queries \(1, 3\) and rows \(4, 2\)"):
        topk_dot(jnp.ones((1, 3)), jnp.ones((4, 2)), jnp.ones(4), 1)
    with pytest.raises(KernelError, match="no implementation 'cuda'; it has pallas_gpu"):
        topk_dot(jnp.ones((1, 2)), jnp.ones((4, 2)), jnp.ones(4), 1, implementation="cuda")
    with pytest.raises(KernelError, match=r"counted float32\(4,\) should be bool"):
        topk_dot(jnp.ones((1, 2)), jnp.ones((4, 2)), jnp.ones(4), 1, None, jnp.ones(4))
    with pytest.raises(KernelError, match="k = 0"):
        topk_dot(jnp.ones((1, 2)), jnp.ones((4, 2)), jnp.ones(4), 0)
