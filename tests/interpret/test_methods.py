"""Methods against formulas in float64, the sign against a real retraining, the baselines, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests import programs
from uimjax.curvature import Source, projected
from uimjax.errors import NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.interpret import lexical, methods
from uimjax.interpret.base import EXACT, Method, remove_span, span_of

ROWS = [name for name, method in methods.PRESETS.items() if not isinstance(method.curvature, EXACT)]


def made(rng, batch=30, dtype=jnp.float64):
    loss, params, rows = programs.mlp(rng, dtype, batch=batch)
    data = jax.tree.map(np.asarray, rows)
    queries = jax.tree.map(lambda x: x[:3], data)
    task = uj.Task(loss, outputs=logits, label=lambda e: e["y"])
    return task, params, data, uj.Measurement("nll", loss), queries


def logits(params, example):
    h = example["x"]
    for k, layer in enumerate(params["layers"]):
        h = h @ layer["w"] + layer["b"]
        h = jax.nn.relu(h) if k < 2 else h
    return h


def log_odds(params, example):
    p = jax.nn.softmax(logits(params, example))[example["y"]]
    return jnp.log(p) - jnp.log1p(-p)


def brute(loss, params, rows):
    def one(row):
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(jax.grad(loss)(params, row))])

    return np.asarray(jax.vmap(one)(rows), np.float64)


def dense_oracle(name, g, q, kept, sizes, margins, damping):
    """Scores from formed gradients in numpy: no sketch, block-diagonal second moments of the loss's gradients (of the
    margins' for TRAK), damping x mean."""
    if name == "retain_cos":
        kept = kept / np.linalg.norm(kept, axis=1, keepdims=True)
        q = q - q @ np.linalg.pinv(kept, rcond=1e-4) @ kept
    if name in ("logra", "trackstar", "trak", "grass"):
        power, rows = (-0.5 if name == "trackstar" else -1.0), (margins if name == "trak" else g)
        start, blocks = 0, []
        for size in sizes:
            x = rows[:, start : start + size]
            h = x.T @ x / len(x)
            h = h + damping * np.trace(h) / size * np.eye(size)
            values, vectors = np.linalg.eigh(h)
            blocks.append((start, start + size, (vectors * values**power) @ vectors.T))
            start += size
        q = np.concatenate([q[:, a:b] @ m for a, b, m in blocks], 1)
        if name == "trackstar":
            g = np.concatenate([g[:, a:b] @ m for a, b, m in blocks], 1)
    if name in ("grad_cos", "retain_cos", "trackstar"):
        g = g / np.linalg.norm(g, axis=1, keepdims=True)
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return -g @ q.T


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("each", [True, False])
@pytest.mark.usefixtures("x64")
def test_scores_equal_the_formula(name, each, rng):
    task, params, data, measurement, queries = made(rng)
    kept = jax.tree.map(lambda x: x[5:9], data)
    exact = methods.get(name, uj.Sketch(64))  # wide enough to keep every axis whole
    retain = kept if exact.retain else None
    got = uj.score(task, params, data, measurement, queries, exact, each=each, retain=retain, batch_size=8)
    g, q = brute(task.loss, params, data), brute(task.loss, params, queries)
    sizes = [leaf.size for leaf in uj.sites(task, params, jax.tree.map(lambda x: x[0], data)).leaves]
    q = q if each else q.mean(0, keepdims=True)
    damping = got.how["damping"].value if "damping" in got.how else None
    want = dense_oracle(name, g, q, brute(task.loss, params, kept), sizes, brute(log_odds, params, data), damping)
    np.testing.assert_allclose(got.values, want, rtol=2e-4, atol=1e-5 * np.abs(want).max())
    assert got.unit.startswith("nats" if name in ("logra", "trak", "grass") else "relative")


@pytest.mark.parametrize("name", ROWS)
def test_sign_positive_means_that_training_on_the_row_raises_f(name, rng):
    """Take one real gradient step on a single row: f rises for the strongest proponent, falls for the opponent."""
    task, params, data, measurement, queries = made(rng, dtype=jnp.float32)
    method = methods.get(name, uj.Sketch(64))
    kept = jax.tree.map(lambda x: x[5:7], data) if method.retain else None
    scores = uj.score(task, params, data, measurement, queries, method, retain=kept).values[:, 0]

    def f(p):
        return float(np.mean(jax.vmap(lambda e: measurement.fun(p, e))(queries)))

    def stepped(row):
        gradient = jax.grad(task.loss)(params, jax.tree.map(lambda x: x[row], data))
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    assert scores.max() > 0 > scores.min()
    assert f(stepped(int(scores.argmax()))) > f(params) > f(stepped(int(scores.argmin())))


def test_what_a_method_would_not_look_at_is_refused(rng):
    task, params, data, measurement, queries = made(rng, dtype=jnp.float32)
    ask = task, params, data, measurement, queries
    for name in ("ekfac", "logra", "auto"):
        with pytest.raises(UsageError, match=f"{name} reads no texts, bm25 and ngram do"):
            uj.score(*ask, name, texts=(["a"] * 30, ["b"]))
    with pytest.raises(UsageError, match="ekfac keeps nothing of what is right: leave retain out, or take retain_cos"):
        uj.score(*ask, "ekfac", retain=data)
    with pytest.raises(UsageError, match="random is a baseline, and keeps nothing of what is right"):
        uj.score(*ask, "random", retain=data)


def test_a_damping_is_given_to_every_preset_that_has_one():
    names = [name for name, its in methods.PRESETS.items() if methods.with_damping(its, 0.3) != its]
    assert names == [
        "trak", "logra", "grass", "trackstar", "diagonal", "kfac", "ekfac", "relatif", "datainf", "arnoldi", "cg",
        "lissa",
    ]  # fmt: skip
    for name in names:
        its = methods.with_damping(methods.PRESETS[name], 0.3)
        assert its.curvature.damping == 0.3
        assert dataclasses.replace(its, curvature=None) == dataclasses.replace(methods.PRESETS[name], curvature=None)
    trak = methods.with_damping(methods.PRESETS["trak"], 0.3).curvature
    assert (trak.name, trak.source) == ("projected(damping=0.3)", Source("margin"))
    with pytest.raises(UsageError, match="damping 0 should be above 0"):
        methods.with_damping(methods.PRESETS["logra"], 0)


def test_batch_size_and_order_change_nothing(rng):
    task, params, data, measurement, queries = made(rng, dtype=jnp.float32)
    order = rng.permutation(30)
    shuffled = jax.tree.map(lambda x: x[order], data)
    for name in ("grad_cos", "logra", "trackstar"):
        one = uj.score(task, params, data, measurement, queries, name, batch_size=30).values
        for size in (7, 64):
            other = uj.score(task, params, data, measurement, queries, name, batch_size=size).values
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * np.abs(one).max())
        if methods.PRESETS[name].curvature is not None:  # an open damping depends on the rows' order
            name = dataclasses.replace(methods.PRESETS[name], curvature=projected(0.1))
            one = uj.score(task, params, data, measurement, queries, name).values
        moved = uj.score(task, params, shuffled, measurement, queries, name).values
        np.testing.assert_allclose(moved, one[order], rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_a_contrast_cancels_what_both_halves_share(rng):
    task, params, data, *_ = made(rng, dtype=jnp.float32)
    pair = uj.contrast("c", task.loss)
    rows = jax.tree.map(lambda x: x[:4], data)
    same = uj.score(task, params, data, pair, (rows, rows), "grad_dot").values
    np.testing.assert_allclose(same, 0, atol=1e-7)
    plain = uj.Measurement("p", task.loss)
    other = jax.tree.map(lambda x: x[4:8], data)
    both = uj.score(task, params, data, pair, (rows, other), "grad_dot").values
    parts = [uj.score(task, params, data, plain, r, "grad_dot").values for r in (rows, other)]
    np.testing.assert_allclose(both, parts[0] - parts[1], rtol=1e-4, atol=1e-5)


def test_remove_span_is_a_projection(rng):
    v, span = rng.normal(size=(2, 9)), rng.normal(size=(3, 9))
    span = np.concatenate([span, span[:1] * 5])  # dependent rows
    got = np.asarray(remove_span(v, span_of(span)))
    np.testing.assert_allclose(got @ span.T, 0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(remove_span(got, span_of(span))), got, atol=1e-6)


def test_a_row_without_gradient_scores_zero():
    def loss(w, x):
        return jnp.sum(jax.nn.relu(x @ w))

    w = jnp.ones((3,))
    rows = np.array([[1, 1, 1], [-1, -1, -1], [2, 0, 1]], np.float32)
    scores = uj.score(uj.Task(loss), w, rows, uj.Measurement("m", loss), rows[:1], "grad_cos").values[:, 0]
    np.testing.assert_allclose(scores[0], -1, rtol=1e-6)
    assert scores[1] == 0


def test_baselines(rng):
    task, params, data, measurement, queries = made(rng, dtype=jnp.float32)
    args = (task, params, data, measurement, queries)
    losses = uj.score(*args, "loss").values[:, 0]
    np.testing.assert_allclose(losses, jax.vmap(lambda e: task.loss(params, e))(data), rtol=1e-5)
    norms = uj.score(*args, "grad_norm", batch_size=7).values[:, 0]
    np.testing.assert_allclose(norms, uj.gradient_norms(task, params, data), rtol=1e-5)
    one, two = (uj.score(*args, "random", seed=s).values for s in (0, 1))
    assert not np.array_equal(one, two)
    with pytest.raises(UsageError, match=r"give the task features"):
        uj.score(*args, "rep_sim")
    featured = uj.Task(task.loss, features=lambda _, e: e["x"])
    sims = uj.score(featured, *args[1:], "rep_sim", each=True).values
    np.testing.assert_allclose(np.diag(sims), 1, rtol=1e-5)
    with pytest.raises(UnknownNameError, match="Did you mean 'bm25'"):
        uj.score(*args, "bm52", texts=(["a"], ["b"]))
    with pytest.raises(UsageError, match="pass texts="):
        uj.score(*args, "bm25")
    texts = (["the cat", "a dog", "cat cat"], ["cat"])
    assert uj.score(*args, "bm25", texts=texts, each=True).values[:, 0].argmax() == 2


def test_bm25_equals_the_formula():
    documents, idf = ["red fish", "blue fish fish", "one bird"], np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    lengths = np.array([2, 3, 2])
    counts = np.array([1, 2, 0])
    want = idf * counts / (counts + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    got = lexical.bm25(documents, ["Fish", "zebra"])
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-5)
    np.testing.assert_array_equal(got[:, 1], 0)


def test_refusals(rng):
    task, params, data, measurement, queries = made(rng, dtype=jnp.float32)
    with pytest.raises(UnknownNameError, match="unknown method 'grad_cosine'. Did you mean 'grad_cos'"):
        uj.score(task, params, data, measurement, queries, "grad_cosine")
    with pytest.raises(ShapeError, match="'nll' cannot be applied to one query of .*float32"):
        uj.score(task, params, data, measurement, {**queries, "x": queries["x"][:, :4]}, "grad_cos")
    with pytest.raises(ShapeError, match="cannot be applied"):
        uj.score(task, params, data, measurement, {"wrong": queries["x"]}, "grad_cos")
    with pytest.raises(UsageError, match="pass retain=rows"):
        uj.score(task, params, data, measurement, queries, "retain_cos")
    bad = {**queries, "x": queries["x"] * np.nan}
    with pytest.raises(NonFiniteError, match="queries: x holds"):
        uj.score(task, params, data, measurement, bad, "grad_cos")
    hot = uj.Measurement("log", lambda p, e: jnp.log(jnp.sum(e["x"]) * 0.0 * p["layers"][0]["b"][0]))
    with pytest.raises(NonFiniteError, match="gradients of the measurement 'log'"):
        uj.score(task, params, data, hot, queries, "grad_cos")


def test_methods_are_values():
    assert methods.get("logra", uj.Sketch(8)).sketch == uj.Sketch(8)
    assert methods.PRESETS["logra"].sketch == uj.Sketch(16)
    nats, other = (uj.Measurement("m", programs.cross_entropy, unit=u) for u in ("nats", "accuracy"))
    assert methods.get("logra").unit(nats).startswith("nats")
    assert methods.get("logra").unit(other).startswith("relative")
    assert Method("mine", curvature=projected(0.5)).unit(nats).startswith("relative")
    with pytest.raises(UnknownNameError, match="unknown normalisation 'cosine'"):
        Method("mine", normalize="cosine")
