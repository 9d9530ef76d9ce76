"""Representations against numpy: similarities, layers by name, and representer points with their sign by retraining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from uimjax.errors import NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.interpret import representation
from uimjax.interpret.representation import fit_head, rep_sim, representer
from uimjax.task import RELATIVE

N, D, C, DECAY = 24, 5, 3, 0.05
W = np.random.default_rng(7).normal(size=(4, D))


def features(params, example):
    return jnp.tanh(example["x"] @ params)


TASK = uj.Task(
    loss=lambda p, e: -jax.nn.log_softmax(features(p, e)[:C])[e["y"]],
    outputs=lambda p, e: features(p, e)[:C],
    features=features,
    label=lambda e: e["y"],
)


def rows(rng, count=N):
    y = rng.integers(C, size=count).astype(np.int32)
    return {"x": (rng.normal(size=(count, 4)) + np.eye(C, 4)[y] * 1.5).astype(np.float32), "y": y}


def with_features(fun):
    return uj.Task(TASK.loss, TASK.outputs, fun, TASK.label)


@pytest.fixture
def params():
    return jnp.asarray(W, jnp.float32)


# ---------------------------------------------------------------- similarity


@pytest.mark.parametrize("similarity", representation.SIMILARITIES)
def test_similarities_equal_the_formula(similarity, params, rng):
    data, queries = rows(rng), rows(rng, 4)
    data["x"][3] = 0  # a representation of zeros is like nothing
    got = rep_sim(TASK, params, data, queries, 8, similarity=similarity)
    h, q = np.tanh(data["x"].astype(float) @ W), np.tanh(queries["x"].astype(float) @ W)
    if similarity == "cosine":
        h, q = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (h, q))
    want = -((h[:, None] - q[None]) ** 2).sum(2) if similarity == "l2" else h @ q.T
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    if similarity != "l2":
        np.testing.assert_array_equal(got[3], 0)


def test_batch_size_and_order_change_nothing(params, rng):
    data, queries, order = rows(rng), rows(rng, 3), rng.permutation(N)
    shuffled = jax.tree.map(lambda x: x[order], data)
    sim, value = rep_sim(TASK, params, data, queries), representer(TASK, params, data, queries, decay=DECAY).values
    for size in (1, 7):
        np.testing.assert_allclose(rep_sim(TASK, params, data, queries, size), sim, rtol=1e-5, atol=1e-6)
        got = representer(TASK, params, data, queries, size, decay=DECAY).values
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rep_sim(TASK, params, shuffled, queries), sim[order], rtol=1e-5, atol=1e-6)
    got = representer(TASK, params, shuffled, queries, decay=DECAY).values
    np.testing.assert_allclose(got, value[order], rtol=1e-3, atol=1e-5)


def test_a_layer_is_chosen_by_name_or_place(params, rng):
    data = rows(rng)

    def several(kind):
        one, two = (lambda _, e: e["x"][:2, None] * jnp.ones((1, 3))), features
        pack = {
            "dict": lambda a, b: {"early": a, "deep": b},
            "tuple": lambda *ab: ab,
            "list": lambda a, b: [{"h": a}, b],
        }
        return with_features(lambda p, e: pack[kind](one(p, e), two(p, e)))

    early = rep_sim(with_features(lambda _, e: jnp.repeat(e["x"][:2], 3)), params, data, data)
    deep = rep_sim(TASK, params, data, data)
    for kind, layer, want in [
        ("dict", "early", early), ("dict", "deep", deep), ("tuple", 0, early), ("tuple", "1", deep),
        ("tuple", None, deep), ("list", None, deep), ("list", "0/h", early), ("list", -2, early),
    ]:  # fmt: skip
        got = rep_sim(several(kind), params, data, data, layer=layer)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=f"{kind} {layer}")
    only = with_features(lambda p, e: {"deep": features(p, e)})
    np.testing.assert_allclose(rep_sim(only, params, data, data), deep, rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="the layers deep, early, in no order; choose one by its name"):
        rep_sim(several("dict"), params, data, data)
    with pytest.raises(UnknownNameError, match="unknown layer of features 'eary'. Did you mean 'early'"):
        rep_sim(several("dict"), params, data, data, layer="eary")
    with pytest.raises(UnknownNameError, match="unknown layer of features '2'"):
        rep_sim(several("tuple"), params, data, data, layer=2)
    with pytest.raises(UsageError, match="returns one array, and no layers to choose 'deep' from"):
        rep_sim(TASK, params, data, data, layer="deep")


def test_of_a_contrast_the_failing_half_is_compared_and_rows_may_be_tuples(params, rng):
    data, bad, safe = rows(rng), rows(rng, 3), rows(rng, 3)
    want = rep_sim(TASK, params, data, bad)
    np.testing.assert_array_equal(rep_sim(TASK, params, data, (bad, safe)), want)
    paired = with_features(lambda p, e: features(p, {"x": e[0]}))
    as_pair = lambda its: (its["x"], its["y"])  # noqa: E731  # one line, used three times
    np.testing.assert_array_equal(rep_sim(paired, params, as_pair(data), as_pair(bad)), want)
    np.testing.assert_array_equal(rep_sim(paired, params, as_pair(data), (as_pair(bad), as_pair(safe))), want)


# ---------------------------------------------------------------- representer points


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def newton(h, y, weights, decay=DECAY):
    """The last layer's minimum in float64, by Newton's method with the Hessian written out."""
    w, one = np.zeros((C, h.shape[1])), np.eye(C)[y]
    for _ in range(30):
        p = softmax(h @ w.T)
        gradient = (weights[:, None] * (p - one)).T @ h / len(h) + 2 * decay * w
        hessian = np.einsum("n,ncd,ni,nj->cidj", weights, p[:, :, None] * (np.eye(C) - p[:, None]), h, h) / len(h)
        hessian = hessian.reshape(w.size, w.size) + 2 * decay * np.eye(w.size)
        w = w - np.linalg.solve(hessian, gradient.ravel()).reshape(w.shape)
    return w


def failure(w, h, y):
    return -np.log(softmax(h @ w.T)[np.arange(len(y)), y])


def represented(data):
    return np.tanh(data["x"].astype(float) @ W), data["y"]


def test_representer_values_equal_the_formula_and_add_up_to_the_logits(params, rng):
    data, queries = rows(rng), rows(rng, 4)
    got = representer(TASK, params, data, queries, 8, decay=DECAY)
    (h, y), (hq, yq) = represented(data), represented(queries)
    w = newton(h, y, np.ones(N))
    alpha = -(softmax(h @ w.T) - np.eye(C)[y]) / (2 * DECAY * N)
    u = softmax(hq @ w.T) - np.eye(C)[yq]
    np.testing.assert_allclose(alpha.T @ h, w, atol=1e-10)  # the theorem
    np.testing.assert_allclose(got.values, (alpha @ u.T) * (h @ hq.T), rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(got.values.sum(0), (u * (hq @ w.T)).sum(1), rtol=1e-2, atol=1e-4)
    assert got.unit == RELATIVE
    assert got.how["gradient"] < representation.STATIONARY
    assert got.how["accuracy"] == np.mean((h @ w.T).argmax(1) == y)


def test_sign_positive_means_that_weighting_the_row_up_raises_the_querys_loss(params, rng):
    """The last layer is really fitted again with one row counted by 1.5: every row, every query."""
    data, queries = rows(rng), rows(rng, 4)
    values = representer(TASK, params, data, queries, decay=DECAY).values
    (h, y), asked = represented(data), represented(queries)
    before = failure(newton(h, y, np.ones(N)), *asked)
    change = np.stack([failure(newton(h, y, 1 + 0.5 * (np.arange(N) == i)), *asked) - before for i in range(N)])
    for query in range(4):
        assert values[:, query].max() > 0 > values[:, query].min()
        assert change[values[:, query].argmax(), query] > 0 > change[values[:, query].argmin(), query]
        assert np.corrcoef(values[:, query], change[:, query])[0, 1] > 0.8


def test_a_heavy_penalty_makes_it_the_influence_itself(params, rng):
    """H = 2 decay I is then all of the curvature: the change by an upweighted row is value * N * eps / N."""
    data, queries, decay, eps = rows(rng), rows(rng, 4), 20.0, 1e-3
    values = representer(TASK, params, data, queries, decay=decay).values
    (h, y), asked = represented(data), represented(queries)
    before = failure(newton(h, y, np.ones(N), decay), *asked)
    for i in range(3):
        after = failure(newton(h, y, 1 + eps * (np.arange(N) == i), decay), *asked)
        np.testing.assert_allclose((after - before) / eps, values[i], rtol=0.03, atol=1e-6)


def test_a_contrast_is_the_difference_of_its_halves(params, rng):
    data, bad, safe = rows(rng), rows(rng, 3), rows(rng, 3)
    one, two, both = (representer(TASK, params, data, q, decay=DECAY).values for q in (bad, safe, (bad, safe)))
    np.testing.assert_allclose(both, one - two, atol=1e-12)
    np.testing.assert_allclose(representer(TASK, params, data, (bad, bad), decay=DECAY).values, 0, atol=1e-12)


def test_the_head_is_the_minimum_of_the_weighted_loss(rng):
    h, y = represented(rows(rng))
    weights = rng.integers(0, 3, size=N).astype(float)
    head = fit_head(h, y, C, DECAY, weights)
    np.testing.assert_allclose(head.weights, newton(h, y, weights), atol=1e-3)
    np.testing.assert_array_equal(fit_head(h * 0, y, C, DECAY).weights, 0)


# ---------------------------------------------------------------- refusals


def test_refusals(params, rng, monkeypatch):
    data = rows(rng)
    both = [rep_sim, representer]
    for call in both:
        with pytest.raises(UsageError, match=f"{call.__name__} compares representations: give the task features"):
            call(uj.Task(TASK.loss, TASK.outputs, label=TASK.label), params, data, data)
        packed = uj.Task(TASK.loss, features=features, label=TASK.label, segments=lambda e: e["y"], documents=2)
        with pytest.raises(UsageError, match=f"{call.__name__} takes one document a row, and this task packs"):
            call(packed, params, data, data)
        with pytest.raises(NonFiniteError, match="queries: x holds"):
            call(TASK, params, data, {**data, "x": data["x"] * np.nan})
        with pytest.raises(ShapeError, match=r"task.features cannot be taken of one of the queries, .*\[3\]"):
            call(TASK, params, data, {**data, "x": data["x"][:, :3]})
        ragged = with_features(lambda _, e: e["x"])
        with pytest.raises(ShapeError, match="features differ in length: {'training rows': 4, 'queries': 3}"):
            call(ragged, params, data, {**data, "x": data["x"][:, :3]})
        hot = with_features(lambda _, e: jnp.log(e["x"] * 0))
        with pytest.raises(NonFiniteError, match="representations hold NaN"):
            call(hot, params, data, data)
    with pytest.raises(UnknownNameError, match="unknown similarity 'cosin'. Did you mean 'cosine'"):
        rep_sim(TASK, params, data, data, similarity="cosin")
    with pytest.raises(UsageError, match=r"representer fits a softmax .* give the task outputs"):
        representer(uj.Task(TASK.loss, features=features), params, data, data)
    with pytest.raises(UsageError, match="decay=0: the representer theorem holds for an L2 penalty above 0"):
        representer(TASK, params, data, data, decay=0)
    with pytest.raises(
        ShapeError, match=r"labels are int32\[24\] from 0 to 5; one class a row, integers \[N\] from 0 to 2"
    ):
        representer(TASK, params, {**data, "y": data["y"] * 0 + np.arange(N, dtype=np.int32) % 6}, data)
    sequence = uj.Task(TASK.loss, lambda *_: jnp.zeros((2, C)), features, TASK.label)
    with pytest.raises(ShapeError, match=r"outputs of one row have shape \[2, 3\]; logits \[C\]"):
        representer(sequence, params, data, data)
    monkeypatch.setattr(representation, "STEPS", 1)
    with pytest.raises(NonFiniteError, match=r"not at its stationary point: after 1 steps of L-BFGS .* raise decay"):
        representer(TASK, params, data, data, decay=1e-3)
