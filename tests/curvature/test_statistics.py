"""Covariances and eigenvalues from factors, against gradients and factors formed one by one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from uimjax.curvature import statistics
from uimjax.curvature.blocks import Laid, blocks
from uimjax.taps import Direct, Gather, each_example, pair, sites, to_matrices
from uimjax.task import Task
from uimjax_kernels import gram_square

NAMES = ["mlp", "decoder_scanned", "nnx_cnn", "slices"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("x64")
def test_statistics_equal_those_of_the_gradients(name, rng, monkeypatch):
    loss, params, batch = programs.ALL[name](rng, jnp.float64)
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))
    _, factors = programs.captured(found, params, batch)
    want = jax.tree_util.tree_flatten_with_path(programs.brute_force(loss, params, batch)[1])[0]
    gradients = {jax.tree_util.keystr(p, simple=True, separator="/"): g for p, g in want}
    sums = jax.jit(lambda f: statistics.covariances(blocks(Laid(found, ()), f)))(factors)
    bases = statistics.eigenbases(sums)
    small = {}
    for chunk in (1, 4 * 2 * 96, 1 << 30):  # one by one, a few with a rest, all at once
        monkeypatch.setattr(statistics, "CHUNK_BYTES", chunk)
        small[chunk] = jax.jit(lambda f, q: statistics.eigenvalues(blocks(Laid(found, ()), f), q))(factors, bases)
    for leaf in found.used:
        n, i, o = leaf.layout.shape
        formed = np.asarray(to_matrices(gradients[leaf.path], leaf.layout))
        rows, cols = (np.eye(size)[None].repeat(n, 0) if q is None else np.asarray(q)
                      for q, size in zip(bases[leaf.path], (i, o), strict=True))  # fmt: skip
        rotated = np.einsum("bnio,nik,nol->bnkl", formed, rows, cols)
        for got in small.values():
            np.testing.assert_allclose(got[leaf.path], (rotated**2).sum(0), rtol=1e-8, atol=1e-14, err_msg=leaf.path)
        np.testing.assert_allclose(small[1][leaf.path].sum(), (formed**2).sum(), rtol=1e-9)
        for side, basis in zip(sums[leaf.path][:2], bases[leaf.path], strict=True):
            if side.ndim == 3:
                diagonal = np.einsum("nji,njk,nkl->nil", basis, side, basis)
                assert np.abs(diagonal - np.einsum("nii->ni", diagonal)[..., None] * np.eye(side.shape[1])).max() < 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("x64")
def test_covariances_equal_the_sums_over_positions(name, rng):
    loss, params, batch = programs.ALL[name](rng, jnp.float64)
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))
    _, factors = programs.captured(found, params, batch)
    mask = jnp.asarray([True, False, *[True] * (len(jax.tree.leaves(batch)[0]) - 2)])
    got = statistics.covariances(blocks(Laid(found, ()), factors), mask)
    checked = 0
    for leaf in found.used:
        n, i, o = leaf.layout.shape
        uses = factors[leaf.path]
        if any(isinstance(use, Direct) for use in uses):
            continue
        checked += 1
        rows, cols = np.zeros((n, i, i)), np.zeros((n, o, o))
        for use, where in pair(leaf, uses):
            stack, at, to = (
                np.arange(k) if w is None else w for k, w in zip((n, i, o), where or [None] * 3, strict=True)
            )
            a = np.zeros((*use.g.shape[:3], len(at)))
            if isinstance(use, Gather):
                np.put_along_axis(a, np.asarray(use.ids)[..., None], 1.0, 3)
            else:
                a = np.asarray(use.a)
            g = np.asarray(use.g)
            for b in np.flatnonzero(np.asarray(mask)):
                for k, entry in enumerate(stack):
                    rows[entry][np.ix_(at, at)] += a[b, k].T @ a[b, k]
                    cols[entry][np.ix_(to, to)] += g[b, k].T @ g[b, k]
        looked_up = any(isinstance(use, Gather) for use in uses)
        for side, want in zip(got[leaf.path][:2], (rows, cols), strict=True):
            if side.ndim == 2:
                assert want.shape[1] == 1 or looked_up
                np.testing.assert_allclose(side, np.einsum("nii->ni", want), rtol=1e-6, err_msg=leaf.path)
            else:
                np.testing.assert_allclose(side, want, rtol=1e-9, atol=1e-14, err_msg=leaf.path)
    assert checked >= 2


def test_padding_and_the_order_of_batches_change_nothing(rng):
    loss, params, batch = programs.decoder(rng, jnp.float32, batch=5)
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))

    @jax.jit
    def both(batch, mask, bases):
        factors = programs.capture(found, params, batch)[1]
        made = blocks(Laid(found, ()), factors)
        return statistics.covariances(made, mask), statistics.eigenvalues(made, bases, mask)

    first = programs.captured(found, params, batch)[1]
    bases = statistics.eigenbases(statistics.covariances(blocks(Laid(found, ()), first)))
    whole = both(batch, jnp.ones(5, bool), bases)
    ids = np.array([3, 1, 3, 0, 4, 2])  # row 3 stands there twice, and its first copy is padding
    parts = [both({"tokens": batch["tokens"][ids[k : k + 3]]}, jnp.asarray([k > 0, True, True]), bases) for k in (0, 3)]
    for one, two, every in zip(*map(jax.tree.leaves, (*parts, whole)), strict=True):
        np.testing.assert_allclose(one + two, every, rtol=2e-4, atol=1e-5 * float(np.abs(every).max()))


@pytest.mark.usefixtures("x64")
def test_packed_documents_add_what_they_add_alone(rng):
    """Each position once, however many documents a row may hold, and padding never; also of a transposed use."""
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=(5, 4)))}

    def loss(p, e):
        return jnp.square(jnp.tanh(jnp.tanh(e["x"] @ p["w"]) @ p["v"].T)).sum(-1)

    segments = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 3, 3, 3]])
    rows = {"x": jnp.asarray(rng.normal(size=(2, 7, 3))), "s": segments}
    task = Task(loss, segments=lambda e: e["s"], documents=3)
    found = sites(task, params, jax.tree.map(lambda x: x[0], rows))
    factors = each_example(task, found, params, rows)[1]
    mask = jnp.asarray([True, True, True, True, False, True])  # one document of the second row is left out
    documents = [(0, 0, 3), (0, 3, 5), (1, 0, 2), (1, 4, 7)]
    alone = Task(loss)
    want, squares, bases = None, None, None
    for which in ("covariances", "eigenvalues"):
        total = None
        for row, start, stop in documents:
            document = {"x": rows["x"][row, start:stop][None]}
            single = sites(alone, params, {"x": document["x"][0]})
            one = programs.captured(single, params, document)[1]
            made = (
                statistics.covariances(blocks(Laid(single, ()), one))
                if which == "covariances"
                else statistics.eigenvalues(blocks(Laid(single, ()), one), bases)
            )
            total = made if total is None else jax.tree.map(jnp.add, total, made)
        if which == "covariances":
            want, bases = total, statistics.eigenbases(total)
        else:
            squares = total
    made = blocks(Laid(found, ()), factors)
    got = statistics.covariances(made, mask), statistics.eigenvalues(made, bases, mask)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves((want, squares)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_parameter_of_another_precision_than_its_use(rng):
    w = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    rows = jnp.asarray(rng.normal(size=(5, 6, 3)))
    found = sites(Task(lambda w, x: jnp.sum(jnp.tanh(x @ w.astype(jnp.float64)))), w, rows[0])
    factors = programs.captured(found, w, rows)[1]
    bases = statistics.eigenbases(statistics.covariances(blocks(Laid(found, ()), factors)))
    ((_, values),) = statistics.eigenvalues(blocks(Laid(found, ()), factors), bases).items()
    gradients = programs.brute_force(lambda w, x: jnp.sum(jnp.tanh(x @ w.astype(jnp.float64))), w, rows)[1]
    np.testing.assert_allclose(values.sum(), np.square(np.asarray(gradients, np.float64)).sum(), rtol=1e-5)


@pytest.mark.parametrize("positions", [1, 12])
def test_models_in_half_precision_have_their_gradients_squared_in_it(positions, rng, monkeypatch):
    """As on a GPU, where a kernel does it; here by its reference. Of 2^-9 a number, hundreds of sums keep the mean."""

    def loss(p, x):
        return jnp.square(jnp.tanh(x @ p["one"]) @ p["two"]).astype(jnp.float32).sum()

    params = {k: jnp.asarray(rng.normal(size=s), jnp.bfloat16) for k, s in (("one", (20, 24)), ("two", (24, 16)))}
    batch = jnp.asarray(rng.normal(size=(9, positions, 20)), jnp.bfloat16)
    found = sites(Task(loss), params, batch[0])
    made = blocks(Laid(found, ()), programs.captured(found, params, batch)[1])
    bases = statistics.eigenbases(statistics.covariances(made))
    mask = jnp.arange(len(batch)) > 0
    want, met = statistics.eigenvalues(made, bases, mask), []
    monkeypatch.setattr(statistics, "IN_HALF", (jax.default_backend(),))
    monkeypatch.setattr(statistics, "gram_square", lambda a, g: met.append(a.dtype) or gram_square(a, g))
    got = statistics.eigenvalues(made, bases, mask)
    assert met == ([] if positions == 1 else [jnp.bfloat16] * 2), "rows of one position are squared by their factors"
    for path, values in want.items():
        assert float(jnp.abs(got[path] - values).sum()) < 1e-2 * float(jnp.abs(values).sum())
