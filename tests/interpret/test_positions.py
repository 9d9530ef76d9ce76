"""Token scores against brute force: a token's own gradient formed in plain JAX, one at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from uimjax import sketch as sketching
from uimjax.errors import ShapeError, UsageError
from uimjax.interpret import trace
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.positions import query_token_scores, token_scores
from uimjax.interpret.trajectory import over_checkpoints
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder
from uimjax.rows import example_spec
from uimjax.sketch import Sketch
from uimjax.taps import Direct, sites


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("index")
    task, params = build_decoder(Shape(vocabulary=13, length=7, layers=1, width=8, heads=2, kv_heads=1), 0)
    tokens = rng.integers(13, size=(12, 7)).astype(np.int32)
    data = {"tokens": tokens, "counted": (np.arange(7) < rng.integers(3, 8, size=(12, 1))).astype(np.float32)}
    index = uj.build_index(task, params, data, tmp_path / "i", sketch=Sketch(5, seed=2), batch_size=4)
    query = jax.tree.map(lambda x: x[:2], data)
    f = uj.Measurement("f", lambda p, q: -jnp.sum(task.loss(p, q)))
    return task, params, data, index, f, query


@pytest.mark.parametrize("name", ["grad_dot", "grad_cos", "retain_cos", "logra", "trackstar"])
def test_the_shares_of_a_row_add_up_to_its_score(made, name):
    task, params, data, index, f, query = made
    retain = jax.tree.map(lambda x: x[5:8], data) if name == "retain_cos" else None
    asked = trace.ask(index, task, params, data, f, query, name, retain=retain)
    shares = token_scores(asked, task, params, data, batch_size=5)
    want = trace.score_all(asked).values[:, 0]
    np.testing.assert_allclose(shares.sum(1), want, rtol=2e-3, atol=2e-4 * np.abs(want).max())
    assert (shares[data["counted"] == 0] == 0).all()


def parts(task, params, query):
    """Of the mean over both queries: one's tokens, then the other's."""
    return jnp.concatenate([-task.loss(params, jax.tree.map(lambda x, k=k: x[k], query)) for k in range(2)]) / 2


@pytest.mark.parametrize("name", ["grad_dot", "grad_cos", "retain_cos", "logra", "trackstar"])
def test_the_shares_of_a_question_add_up_to_the_scores_of_rows(made, name):
    task, params, data, index, f, query = made
    retain = jax.tree.map(lambda x: x[5:8], data) if name == "retain_cos" else None
    asked = trace.ask(index, task, params, data, f, query, name, retain=retain)
    both = functools.partial(parts, task)
    shares = query_token_scores(asked, both, task, params, query, data, batch_size=5)
    want = trace.score_all(asked).values[:, 0]
    np.testing.assert_allclose(shares.sum(1), want, rtol=2e-3, atol=2e-4 * np.abs(want).max())
    assert (shares[:, np.concatenate(query["counted"]) == 0] == 0).all()


def test_each_question_has_shares_of_its_own(made):
    task, params, data, index, f, query = made
    asked = trace.ask(index, task, params, data, f, query, "trackstar", each=True)
    want = trace.score_all(asked).values
    one = jax.tree.map(lambda x: x[1], query)
    theirs = query_token_scores(asked, lambda p, q: -task.loss(p, q), task, params, one, data, number=1)
    mine = token_scores(asked, task, params, data, number=1)
    for shares in (theirs, mine):
        np.testing.assert_allclose(shares.sum(1), want[:, 1], rtol=2e-3, atol=2e-4 * np.abs(want).max())
    with pytest.raises(ShapeError, match="one number a token"):
        query_token_scores(asked, f.fun, task, params, one, data)


def test_a_share_of_the_question_is_the_product_with_that_tokens_gradient(made):
    task, params, data, index, f, query = made
    asked = trace.ask(index, task, params, data, f, query, "grad_dot")
    shares = query_token_scores(asked, functools.partial(parts, task), task, params, query, data)
    own = jax.jit(jax.grad(lambda p, e, t: -task.loss(p, e)[t] / 2))
    stored = np.concatenate([index.vectors(shard) * shard.norm[:, None] for shard in index.shards()])
    for k, t in [(0, 1), (0, 2), (1, 1)]:
        gradient = own(params, jax.tree.map(lambda x, k=k: x[k], query), t)
        want = -stored @ np.asarray(sketched_by(made, gradient))
        np.testing.assert_allclose(shares[:, 7 * k + t], want, rtol=1e-3, atol=1e-5)


def test_rows_to_retain_are_refused_where_nothing_is_retained(made):
    task, params, data, index, f, query = made
    with pytest.raises(UsageError, match="logra keeps nothing of what is right: leave retain out"):
        trace.ask(index, task, params, data, f, query, "logra", retain=data)


def sketched_by(made, gradient):
    task, params, data, index, *_ = made
    found = sites(task, params, example_spec(data))
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(gradient)[0], strict=True)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
    factors = {n: (Direct(leaf[None]),) for n, leaf in zip(names, leaves, strict=True)}
    return sketching.rows(found, index.sketch, sketching.drawn(found, index.sketch), factors)[0]


def test_a_share_is_the_product_with_that_tokens_own_gradient(made):
    task, params, data, index, f, query = made
    asked = trace.ask(index, task, params, data, f, query, "grad_dot")
    shares = token_scores(asked, task, params, data)
    own = jax.jit(jax.grad(lambda p, e, t: task.loss(p, e)[t]))
    for k, t in [(0, 1), (0, 2), (3, 1), (7, 2)]:
        gradient = own(params, jax.tree.map(lambda x, k=k: x[k], data), t)
        want = float(sketched_by(made, gradient) @ asked.directions[0])
        assert shares[k, t] == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_lifting_is_the_adjoint_of_sketching(made, rng):
    task, params, data, *_ = made
    found = sites(task, params, example_spec(data))
    gradients = uj.per_example_gradients(task, params, data)
    factors = {n: (Direct(g),) for n, g in gradients.items()}
    kinds = (Sketch(3), None, uj.DenseSketch(40), uj.SparseSketch(8, 3, 2))
    for sketch in kinds:
        drawn = sketching.drawn(found, sketch)
        flat = np.asarray(jax.jit(functools.partial(sketching.rows, found, sketch))(drawn, factors))
        vector = jnp.asarray(rng.normal(size=(2, flat.shape[1])), jnp.float32)
        lifted = jax.jit(functools.partial(sketching.lift, found, sketch))(drawn, vector)
        for q in range(2):
            inner = sum(np.asarray(gradients[n]).reshape(12, -1) @ np.asarray(v[q]).ravel() for n, v in lifted.items())
            np.testing.assert_allclose(inner, flat @ np.asarray(vector[q]), rtol=1e-3, atol=1e-4)


def test_a_loss_without_tokens_is_refused(made):
    task, params, data, index, f, query = made
    scalar = uj.Task(lambda p, e: jnp.sum(task.loss(p, e)))
    asked = trace.ask(index, task, params, data, f, query, "grad_dot")
    with pytest.raises(ShapeError, match="a loss that returns"):
        token_scores(asked, scalar, params, data)


def test_a_loss_that_can_only_be_differentiated_backwards_has_the_same_shares(made, tmp_path):
    task, params, data, index, f, query = made

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (g,))
    backwards = uj.Task(lambda p, e: same(task.loss(p, e)))
    shares = []
    for one, at in ((task, "a"), (backwards, "b")):
        built = uj.build_index(one, params, data, tmp_path / at, sketch=Sketch(3), batch_size=4)
        asked = trace.ask(built, one, params, data, f, query, "grad_dot")
        shares.append(token_scores(asked, one, params, data))
    np.testing.assert_allclose(shares[1], shares[0], rtol=1e-5, atol=1e-7)


def test_checkpoints_are_averaged_by_learning_rate():
    a, b = (Scores(np.full((3, 1), v), "grad_cos", "nats") for v in (1.0, 4.0))
    found = over_checkpoints([a, b], [1.0, 0.5])
    np.testing.assert_allclose(found.values, 2.0)
    assert found.method == "grad_cos, 2 checkpoints"
    assert found.unit.startswith("relative")
    assert over_checkpoints([a], [0.3]) == a
    for scores, rates in (([], []), ([a, b], [1.0]), ([a, b], [0.0, 0.0]), ([a, b], [1.0, -1.0])):
        with pytest.raises(UsageError, match="one positive rate each"):
            over_checkpoints(scores, rates)
    with pytest.raises(UsageError, match="several methods"):
        over_checkpoints([a, b._replace(method="other")], [1, 1])


def test_a_row_has_no_part_in_steps_that_it_was_away_from():
    a, b = (Scores(np.full((3, 1), v), "grad_cos", "nats") for v in (1.0, 4.0))
    found = over_checkpoints([a, b], [1.0, 0.5], [np.array([1, 0, 0.5]), np.array([1, 1, 0])])
    np.testing.assert_allclose(found.values[:, 0], [(1 + 2) / 1.5, 2 / 1.5, 0.5 / 1.5])
    with pytest.raises(UsageError, match="met of lengths"):
        over_checkpoints([a, b], [1.0, 0.5], [np.ones(3)])
    with pytest.raises(UsageError, match="met of lengths"):
        over_checkpoints([a, b], [1.0, 0.5], [np.ones(3), np.ones(2)])


def test_methods_are_values(made):
    """A method of one's own goes the same way."""
    task, params, data, index, f, query = made
    own = Method("own", sketch=index.sketch, normalize="none")
    one, two = (trace.ask(index, task, params, data, f, query, m) for m in (own, "grad_dot"))
    np.testing.assert_array_equal(token_scores(one, task, params, data), token_scores(two, task, params, data))
