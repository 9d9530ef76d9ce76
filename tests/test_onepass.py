"""One pass, many outputs: each equals what it is by itself, and adds its own arithmetic alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests import programs
from uimjax import factors as algebra
from uimjax import onepass, sketch
from uimjax.curvature import identity, projected
from uimjax.errors import ShapeError, UnknownNameError, UsageError
from uimjax.rows import batches
from uimjax.taps import capture, sites


def classifier(rng, batch=6):
    loss, params, rows = programs.mlp(rng, jnp.float32, batch=batch)

    def outputs(p, e):
        h = e["x"]
        for k, layer in enumerate(p["layers"]):
            h = h @ layer["w"] + layer["b"]
            h = jax.nn.relu(h) if k < 2 else h
        return h

    return uj.Task(loss, outputs=outputs, label=lambda e: e["y"]), params, rows


def test_every_output_equals_what_it_is_by_itself(rng):
    task, params, rows = classifier(rng)
    choice = uj.Sketch(3, seed=5)
    found = uj.collect(task, params, rows, onepass.OUTPUTS, sketch=choice, curvature=projected(0.1))
    assert set(found) == set(onepass.OUTPUTS)
    grads = jax.vmap(lambda row: jax.grad(task.loss)(params, row))(rows)
    flat = np.concatenate([np.asarray(g).reshape(6, -1) for g in jax.tree.leaves(grads)], 1)
    losses = jax.vmap(functools.partial(task.loss, params))(rows)
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(found["norm"], np.linalg.norm(flat, axis=1), rtol=1e-5)
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(found["gradients"][name], leaf, rtol=1e-4, atol=1e-6)
        want = np.linalg.norm(np.asarray(leaf).reshape(6, -1), axis=1)
        np.testing.assert_allclose(found["leaf_norms"][name], want, rtol=1e-4, atol=1e-6)
    seen = sites(task, params, jax.tree.map(lambda x: x[0], rows))
    np.testing.assert_allclose(algebra.norm(seen, found["factors"]), found["norm"], rtol=1e-5)
    want = sketch.rows(seen, choice, sketch.drawn(seen, choice), capture(seen, params, rows)[1])
    np.testing.assert_allclose(found["sketch"], want, rtol=1e-4, atol=1e-5)
    logits = np.asarray(jax.vmap(functools.partial(task.outputs, params))(rows), np.float64)
    for b, y in enumerate(np.asarray(rows["y"])):
        others = np.delete(logits[b], y)
        assert found["signals"]["margin"][b] == pytest.approx(logits[b, y] - others.max(), abs=1e-5)
        assert found["signals"]["probability"][b] == pytest.approx(np.exp(-losses[b]), rel=1e-5)
        assert bool(found["signals"]["correct"][b]) == (logits[b, y] > others.max())


def test_a_curvature_streams_from_the_pass_and_padding_adds_nothing(rng):
    task, params, rows = classifier(rng, batch=7)
    choice, curvature = uj.Sketch(2), projected(0.1)
    seen = sites(task, params, jax.tree.map(lambda x: x[0], rows))
    blocks = sketch.columns(seen, choice)
    state, every = curvature.init(blocks), []
    for batch in batches(rows, 4):
        out = uj.collect(
            task, params, batch.rows, ("sketch", "curvature"), sketch=choice, curvature=curvature, mask=batch.mask
        )
        state = curvature.add(state, out["curvature"], int(batch.mask.sum()))
        every.append(np.asarray(out["sketch"], np.float64)[batch.mask])
    whole = np.concatenate(every)
    assert state.rows == 7
    for (a, b), moment in zip(blocks, state.moments, strict=True):
        np.testing.assert_allclose(moment, whole[:, a:b].T @ whole[:, a:b], rtol=1e-5, atol=1e-6)
    assert uj.collect(task, params, rows, "curvature", curvature=identity()) == {"curvature": ()}


def test_a_mask_is_of_rows_or_of_the_documents_in_them(rng):
    params = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    rows = {"x": jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32), "s": jnp.asarray([[1, 1, 2, 2]] * 3)}
    task = uj.Task(lambda p, e: jnp.tanh(e["x"] @ p["w"]).sum(-1), segments=lambda e: e["s"], documents=2)
    choice = {"sketch": uj.Sketch(2), "curvature": projected(0.1)}
    of_rows, of_documents = (
        uj.collect(task, params, rows, "curvature", mask=jnp.asarray(mask), **choice)["curvature"]
        for mask in ([True, False, True], [True, True, False, False, True, True])
    )
    for one, other in zip(of_rows, of_documents, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ShapeError, match=r"a mask of shape \(3, 1\)"):
        uj.collect(task, params, rows, "curvature", mask=jnp.ones((3, 1), bool), **choice)
    for size in (1, 2, 4, 12):
        with pytest.raises(ShapeError, match=f"a mask of {size} entries arrived for 3 rows"):
            uj.collect(task, params, rows, "curvature", mask=jnp.ones(size, bool), **choice)


def test_a_further_output_adds_its_own_arithmetic_alone(rng):
    task, params, rows = classifier(rng, batch=64)
    seen = sites(task, params, jax.tree.map(lambda x: x[0], rows))
    drawn = sketch.drawn(seen, uj.Sketch(2))

    def flops(*wanted):
        program = onepass._program(task, seen, wanted, uj.Sketch(2) if "sketch" in wanted else None, None)
        return program.lower(params, rows, drawn, None).compile().cost_analysis()["flops"]

    loss, norm, sketched, both = (
        flops(*w) for w in (("loss",), ("loss", "norm"), ("loss", "sketch"), ("loss", "norm", "sketch"))
    )
    assert both <= 1.01 * (norm + sketched - loss)
    assert loss < sketched < both


def test_a_stream_with_a_ragged_end_is_traced_once(rng):
    task, params, rows = classifier(rng, batch=23)
    traced = []

    def loss(p, e):
        traced.append(1)
        return task.loss(p, e)

    counted = uj.Task(loss)
    stream = list(batches(rows, 5))
    uj.collect(counted, params, stream[0].rows, ("loss", "norm", "sketch"))
    warm = len(traced)
    for batch in stream:
        uj.collect(counted, params, batch.rows, ("loss", "norm", "sketch"))
    assert len(traced) == warm


def test_nonsense_is_refused(rng):
    task, params, rows = classifier(rng)
    for more, error, words in [
        ({"want": ("los",)}, UnknownNameError, "Did you mean 'loss'"),
        ({"want": "curvature"}, UsageError, "which curvature"),
        ({"want": "loss", "sketch": uj.Sketch(2)}, UsageError, "is for the output sketch or curvature"),
        ({"want": "loss", "mask": np.ones(6, bool)}, UsageError, "changes the output curvature alone"),
    ]:
        with pytest.raises(error, match=words):
            uj.collect(task, params, rows, **more)
    with pytest.raises(UsageError, match="give the task outputs"):
        uj.collect(uj.Task(task.loss), params, rows, "signals")
