"""inner, norm and pool against gradients formed by `vmap(grad)` in float64; tied weights' cross terms included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests import programs
from uimjax import factors as algebra
from uimjax.errors import NonFiniteError, ShapeError
from uimjax.taps import Dense, Direct, Gather, form, sites
from uimjax.task import Task

NAMES = ["mlp", "nnx_cnn", "decoder_scanned", "oddities", "slices", "switches"]


def made(name, rng):
    loss, params, batch = programs.ALL[name](rng, jnp.float64)
    task = Task(loss)
    found = sites(task, params, jax.tree.map(lambda x: x[0], batch))

    def one(row):
        grads = jax.grad(lambda p: jnp.sum(loss(p, row)), allow_int=True)(params)
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.floating)])

    rows = np.asarray(jax.jit(jax.vmap(one))(batch))
    return found, params, batch, rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("x64")
def test_inner_and_norm_equal_the_formed_gradients(name, rng):
    found, params, batch, rows = made(name, rng)
    _, factors = programs.captured(found, params, batch)
    inner, norm = jax.jit(lambda x: (algebra.inner(found, x, x), algebra.norm(found, x)))(factors)
    np.testing.assert_allclose(inner, rows @ rows.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(norm, np.linalg.norm(rows, axis=1), rtol=1e-9)


@pytest.mark.parametrize("name", ["decoder_scanned", "decoder_unrolled", "slices"])
@pytest.mark.usefixtures("x64")
def test_both_ways_to_a_norm_agree(name, rng, monkeypatch):
    """Gram matrices (cross terms of tied and overlapping uses, none of slices apart) and the gradient formed."""
    found, params, batch, rows = made(name, rng)
    _, factors = programs.captured(found, params, batch)
    formed = []
    monkeypatch.setattr(algebra, "form", lambda leaf, uses: formed.append(leaf.path) or form(leaf, uses))
    by_formed = [leaf.path for leaf in found.used if algebra._overlaps(leaf, factors[leaf.path]) is None]
    for cost in (-1, 10**9):
        monkeypatch.setattr(algebra, "_gram_cost", lambda *_, cost=cost: cost)
        formed.clear()
        norm = jax.jit(lambda x: algebra.norm(found, x))(factors)  # noqa: B023  # called at once
        np.testing.assert_allclose(norm, np.linalg.norm(rows, axis=1), rtol=1e-9)
        assert sorted(formed) == sorted(by_formed if cost < 0 else [leaf.path for leaf in found.used])
    assert "overlap" in by_formed or name != "slices", "slices that meet in part"
    assert not {"qkv", "fused", "gate_up", "embed", "blocks/qkv"} & set(by_formed)


@pytest.mark.usefixtures("x64")
def test_both_orders_of_inner_agree(rng, monkeypatch):
    found, params, batch, rows = made("decoder_scanned", rng)
    _, factors = programs.captured(found, params, batch)
    for choice in (True, False):
        dense = algebra._ghost_is_cheaper
        monkeypatch.setattr(
            algebra, "_ghost_is_cheaper", lambda x, y, c=choice: c and type(x).__name__ == type(y).__name__ == "Dense"
        )
        inner = jax.jit(lambda x: algebra.inner(found, x, x))(factors)
        np.testing.assert_allclose(inner, rows @ rows.T, rtol=1e-9, atol=1e-12)
        monkeypatch.setattr(algebra, "_ghost_is_cheaper", dense)


@pytest.mark.parametrize("name", ["mlp", "decoder_scanned"])
@pytest.mark.usefixtures("x64")
def test_pool_sums_groups(name, rng):
    loss, params, batch = {"mlp": programs.mlp, "decoder_scanned": programs.decoder}[name](rng, jnp.float64, batch=6)
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))
    _, factors = programs.captured(found, params, batch)
    pooled, single = jax.jit(lambda x: (algebra.dense(found, algebra.pool(x, 3)), algebra.dense(found, x)))(factors)
    for path, value in single.items():
        np.testing.assert_allclose(pooled[path], value.reshape(2, 3, *value.shape[1:]).sum(1), rtol=1e-9, atol=1e-13)
    with pytest.raises(ShapeError, match="cannot be pooled in groups of 4"):
        algebra.pool(factors, 4)


@pytest.mark.parametrize("name", ["mlp", "nnx_cnn", "decoder_scanned", "oddities"])
@pytest.mark.usefixtures("x64")
def test_a_multiple_is_known_from_the_factors(name, rng):
    """Each row's loss scaled by a number of its own; where one parameter is pulled besides, it is not a multiple."""
    loss, params, batch = programs.ALL[name](rng, jnp.float64)
    size = len(jax.tree.leaves(batch)[0])
    times = rng.normal(size=size)
    first = next(x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)).shape
    pull = rng.normal(size=first)

    def scaled(p, e):
        return e[1] * loss(p, e[0])

    def pulled(p, e):
        one = next(x for x in jax.tree.leaves(p) if jnp.issubdtype(x.dtype, jnp.floating))
        return loss(p, e[0]) + e[2] * jnp.sum(one * pull)

    rows = (batch, times, np.arange(size) % 2 * 1.0)
    plain, by, other = (
        programs.captured(sites(Task(its), params, jax.tree.map(lambda x: x[0], rows)), params, rows)[1]
        for its in (lambda p, e: loss(p, e[0]), scaled, pulled)
    )
    ratio, fits = jax.jit(algebra.multiple)(by, plain)
    assert fits.all()
    np.testing.assert_allclose(ratio, times, rtol=1e-6)
    known = jax.jit(algebra.multiple)(other, plain)
    assert known is None or np.asarray(known[1]).tolist() == (np.arange(size) % 2 == 0).tolist()


def test_rounding_is_no_difference_and_others_are(rng):
    a, g = (jnp.asarray(rng.normal(size=(6, 1, 1, k)), jnp.float32) for k in (5, 4))
    one = {"w": (Dense(a, g),), "b": (Direct(g[:, 0, 0]),)}
    noise = jnp.asarray(1 + 1e-7 * rng.normal(size=g.shape), jnp.float32)
    tiny = jnp.asarray([1, 0, 1e-7, 1, 1, 1], jnp.float32)[:, None]
    other = {"w": (Dense(a, g * noise * tiny[..., None, None]),), "b": (Direct(g[:, 0, 0] * tiny),)}
    ratio, fits = algebra.multiple(other, one)
    assert fits.all()
    np.testing.assert_allclose(ratio, tiny[:, 0], rtol=1e-5)
    for changed in (
        {"w": (Dense(a, g),), "b": (Direct(2 * g[:, 0, 0]),)},  # another multiple for another parameter
        {"w": (Dense(a[::-1], g),), "b": (Direct(g[:, 0, 0]),)},  # other inputs
        {"w": (Dense(a, g * jnp.asarray([[[[1, 1, 1, 1.001]]]])),), "b": (Direct(g[:, 0, 0]),)},
    ):
        assert not algebra.multiple(changed, one)[1].any()
    assert algebra.multiple({"w": (Direct((jnp.swapaxes(a, 2, 3) @ g)[:, 0]),), "b": one["b"]}, one) is None
    assert algebra.multiple({"w": (), "b": one["b"]}, one) is None
    ids = jnp.asarray(rng.integers(0, 9, (6, 1, 1)))
    ratio, fits = algebra.multiple({"w": (Gather(ids, g),)}, {"w": (Gather(ids, 2 * g),)})
    assert fits.all()
    np.testing.assert_allclose(ratio, 0.5, rtol=1e-6)
    assert not algebra.multiple({"w": (Gather(ids + 1, g),)}, {"w": (Gather(ids, g),)})[1].any()


def test_public_calls_on_a_plain_loss(rng):
    loss, params, batch = programs.mlp(rng, jnp.float32)
    task = uj.Task(loss)
    losses, factors = uj.factors(task, params, batch)
    grads = uj.per_example_gradients(task, params, batch)
    want = jax.vmap(lambda row: jax.grad(loss)(params, row))(batch)
    np.testing.assert_allclose(grads["layers/0/w"], want["layers"][0]["w"], rtol=1e-4, atol=1e-6)
    flat = np.concatenate([np.asarray(g).reshape(5, -1) for g in grads.values()], 1)
    np.testing.assert_allclose(uj.gradient_norms(task, params, batch), np.linalg.norm(flat, axis=1), rtol=1e-5)
    assert losses.shape == (5,)
    assert set(factors) == set(grads)


def test_nan_parameters_and_rows_are_named(rng):
    loss, params, batch = programs.mlp(rng, jnp.float32)
    bad = jax.tree.map(lambda x: x, params)
    bad["layers"][1]["w"] = bad["layers"][1]["w"].at[2, 3].set(jnp.nan)
    with pytest.raises(NonFiniteError, match=r"parameters: layers/1/w holds 1 value.*first at index \(2, 3\)"):
        uj.gradient_norms(uj.Task(loss), bad, batch)
    rows = {**batch, "x": batch["x"].at[3].set(jnp.inf)}
    with pytest.raises(NonFiniteError, match=r"rows: x holds 6 value.*first at index \(3, 0\)"):
        uj.gradient_norms(uj.Task(loss), params, rows)


def test_real_gradient_norms_of_a_trained_mlp():
    """GraNd at epoch 10 of a 64-64-10 MLP on digits with flipped labels, computed elsewhere in float64."""
    import json
    from pathlib import Path

    from sklearn.datasets import load_digits

    known = json.loads((Path(__file__).parent / "reference" / "digits_grand.json").read_text())
    params = {k: jnp.asarray(v, jnp.float32) for k, v in known["params"].items()}
    images = load_digits().data[known["rows"]] / 16.0

    def loss(p, example):
        x, label = example
        return programs.cross_entropy(jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], label)

    rows = jnp.asarray(images, jnp.float32), jnp.asarray(known["labels"])
    np.testing.assert_allclose(uj.gradient_norms(uj.Task(loss), params, rows), known["grand"], rtol=2e-4, atol=1e-6)


def test_real_gradient_norms_of_every_row(reference_data):
    """The same on all 1,797 rows at six epochs, with the large reference set."""
    import csv
    import gzip
    import io

    from sklearn.datasets import load_digits

    folder = reference_data / "digits_dynamics"
    stored = np.load(folder / "digits_mlp_dynamics.npz")
    table = list(csv.DictReader(io.TextIOWrapper(gzip.open(folder / "golden_scores.csv.gz"))))
    images = jnp.asarray(load_digits().data / 16.0, jnp.float32)

    def loss(p, example):
        x, label = example
        return programs.cross_entropy(jax.nn.relu(x @ p[0] + p[1]) @ p[2] + p[3], label)

    task = uj.Task(loss)
    for epoch in (1, 10, 40):
        flat = jnp.asarray(stored["params"][list(stored["param_epochs"]).index(epoch)])
        params = [flat[:4096].reshape(64, 64), flat[4096:4160], flat[4160:4800].reshape(64, 10), flat[4800:]]
        want = [float(row[f"grand_e{epoch}"]) for row in table]
        got = uj.gradient_norms(task, params, (images, jnp.asarray(stored["labels"])))
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
