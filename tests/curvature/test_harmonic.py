"""DataInf against the mean of explicit inverses, block by block, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from uimjax import rows
from uimjax.curvature import harmonic
from uimjax.errors import NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.taps import sites
from uimjax.task import Task

pytestmark = pytest.mark.usefixtures("x64")
DAMPING = 0.3


def tied(rng, dtype, batch):
    """A table looked up and multiplied with, over five positions, a bias, a scale, and slices of a matrix."""
    params = {
        k: jnp.asarray(rng.normal(size=s), dtype) for k, s in (("table", (7, 4)), ("w", (4, 8)), ("b", 4), ("s", 4))
    }

    def loss(p, tokens):
        h = p["table"][tokens] * p["s"][None]
        h = jnp.tanh(h @ p["w"][:, :4] + p["b"][None]) * (h @ p["w"][:, 4:])
        return programs.cross_entropy((h @ p["table"].T).sum(0), tokens[0])

    return loss, params, jnp.asarray(rng.integers(7, size=(batch, 5)))


def program(make, rng, count=6):
    """(sites, params, rows, per-example gradients `{path: [N, *shape]}`)."""
    loss, params, data = make(rng, jnp.float64, batch=count)
    found = sites(Task(loss), params, rows.example_spec(data))
    named = jax.tree_util.tree_flatten_with_path(programs.brute_force(loss, params, data)[1])[0]
    return found, params, data, {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(g) for p, g in named}


@pytest.fixture(scope="module")
def mlp():
    with jax.enable_x64(True):
        return program(programs.mlp, np.random.default_rng(0))


def drawn(found, rng, count=2):
    return {leaf.path: rng.normal(size=(count, *leaf.shape)) for leaf in found.leaves}


def by_the_book(found, gradients, v):
    """`(1/N) sum_i (lambda I + g_i g_i^T)^-1 v` with each matrix inverted."""
    out = {}
    for leaf in found.used:
        g = gradients[leaf.path].reshape(len(gradients[leaf.path]), -1)
        floor = DAMPING * (g**2).sum() / g.size
        inverse = np.linalg.inv(floor * np.eye(g.shape[1])[None] + g[:, :, None] * g[:, None, :]).mean(0)
        out[leaf.path] = (v[leaf.path].reshape(len(v[leaf.path]), -1) @ inverse).reshape(v[leaf.path].shape)
    return out


def same(got, want, rtol=1e-8):
    assert sorted(got) == sorted(want)
    for path, x in want.items():
        np.testing.assert_allclose(got[path], x, rtol=rtol, atol=1e-9 * np.abs(x).max(), err_msg=path)


def test_the_solve_equals_the_mean_of_the_inverses(mlp, rng):
    """Gradients of rank one; the second batch is padded."""
    found, params, data, gradients = mlp
    v = drawn(found, rng)
    got = harmonic.solve(found, params, functools.partial(rows.batches, data, 4), v, DAMPING)
    same(got, by_the_book(found, gradients, v))


def test_so_it_does_for_gradients_of_any_kind(rng, monkeypatch):
    monkeypatch.setattr(harmonic, "CHUNK_BYTES", 4 * 3 * 28)  # three gradients of the table at once, of four in a batch
    found, params, data, gradients = program(tied, rng, 7)
    v = drawn(found, rng)
    got = harmonic.solve(found, params, functools.partial(rows.batches, data, 4), v, DAMPING)
    same(got, by_the_book(found, gradients, v))


def test_split_padding_and_order_change_nothing(mlp, rng):
    found, params, data, _ = mlp
    v = drawn(found, rng)
    order = np.array([5, 2, 0, 4, 1, 3])
    whole, turned = (
        harmonic.solve(found, params, functools.partial(rows.selected, data, ids, 4), v, DAMPING)
        for ids in (np.arange(6), order)
    )
    same(turned, whole)
    same(harmonic.solve(found, params, lambda: rows.batches(data, 6), v, DAMPING), whole)


def test_one_row_is_sherman_morrison_and_much_damping_the_gradient(mlp, rng):
    found, params, data, gradients = mlp
    g = gradients["layers/2/w"][:2]
    x = harmonic.solve(found, params, lambda: rows.selected(data, np.array([0]), 4), {"layers/2/w": g}, DAMPING)
    square = (g[0] ** 2).sum()
    np.testing.assert_allclose(x["layers/2/w"][0], g[0] / (square + DAMPING * square / g[0].size), rtol=1e-8)
    assert not np.asarray(x["layers/0/w"]).any()  # nothing was asked there
    v = drawn(found, rng)
    x = harmonic.solve(found, params, lambda: rows.batches(data, 4), v, 1e9)
    for leaf in found.leaves:
        mean = (gradients[leaf.path] ** 2).sum() / gradients[leaf.path].size
        np.testing.assert_allclose(x[leaf.path] * 1e9 * mean, v[leaf.path], rtol=1e-5, atol=1e-7)


def test_a_parameter_that_is_used_without_a_gradient_stays_finite():
    task = Task(lambda p, x: (p["w"] @ x) * jnp.where(x.sum() > 1e9, p["gate"].sum(), 1.0))
    params, data = {"w": jnp.ones(3), "gate": jnp.ones(2)}, jnp.ones((4, 3))
    found = sites(task, params, rows.example_spec(data))
    v = {"w": jnp.ones((1, 3)), "gate": jnp.ones((1, 2))}
    x = harmonic.solve(found, params, lambda: rows.batches(data, 4), v, 0.5)
    assert all(np.isfinite(y).all() for y in x.values())


def test_nonsense_is_refused(mlp, rng):
    found, params, data, _ = mlp
    v = drawn(found, rng)
    ready = functools.partial(rows.batches, data, 4)
    with pytest.raises(UsageError, match="damping 0 should be above 0"):
        harmonic.solve(found, params, ready, v, 0)
    with pytest.raises(ShapeError, match=r"gradients of layers/0/b are \[2, 6\]; \[Q, 7\] was wanted"):
        harmonic.solve(found, params, ready, v | {"layers/0/b": np.ones((2, 6))}, DAMPING)
    with pytest.raises(UnknownNameError, match="Did you mean 'layers/0/b'"):
        harmonic.solve(found, params, ready, {"layer/0/b": np.ones((2, 7))}, DAMPING)
    with pytest.raises(NonFiniteError, match="no rows"):
        harmonic.solve(found, params, lambda: iter(()), v, DAMPING)
    bad = data | {"x": data["x"].at[3, 2].set(jnp.nan)}
    with pytest.raises(NonFiniteError, match=r"sums over gradients of layers/0/w .*uj.gradient_norms"):
        harmonic.solve(found, params, lambda: rows.batches(bad, 4), v, DAMPING)
