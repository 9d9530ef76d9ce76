"""Self-influence against formulas written out in numpy and against really leaving rows out; invariances, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.source import Source
from uimjax.errors import MismatchError, NonFiniteError, UsageError
from uimjax.interpret.self_influence import measure, self_influence

N, D, C, DECAY = 40, 4, 3, 0.02
EMPIRICAL = Source("empirical")


def outputs(params, example):
    return example["x"] @ params["w"] + params["b"]


TASK = uj.Task(loss=lambda p, e: -jax.nn.log_softmax(outputs(p, e))[e["y"]], outputs=outputs, label=lambda e: e["y"])


def rows(rng, count=N):
    y = rng.integers(C, size=count)
    return {"x": rng.normal(size=(count, D)) + np.eye(C, D)[y], "y": y.astype(np.int32)}


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def parameters(w):
    """`[D + 1, C]`, the bias as the last row."""
    return {"w": jnp.asarray(w[:D]), "b": jnp.asarray(w[D])}


def gradients(w, data):
    """`[x, 1]` `[N, D + 1]` and `softmax - onehot` `[N, C]`, whose outer products the gradients are."""
    a = np.concatenate([data["x"], np.ones((len(data["x"]), 1))], 1)
    return a, softmax(a @ w) - np.eye(C)[data["y"]]


@pytest.mark.parametrize(("kind", "positions"), [("ekfac", 1), ("ekfac", 3), ("diagonal", 3)])
@pytest.mark.usefixtures("x64")
def test_values_equal_the_formula_written_out(kind, positions, rng):
    """A row of several positions has the sum of their losses, and their outer products for a gradient."""
    many, w = rows(rng, N * positions), rng.normal(size=(D + 1, C))
    data = {name: x.reshape(N, positions, *x.shape[1:]) for name, x in many.items()}
    task = TASK if positions == 1 else uj.Task(lambda p, e: jnp.sum(jax.vmap(lambda r: TASK.loss(p, r))(e)))
    data = many if positions == 1 else data
    measured = measure(Kronecker(kind, EMPIRICAL, damping=0.1), task, parameters(w), data, 16)
    got = self_influence(task, parameters(w), data, measured, 16)
    a, g = gradients(w, many)
    if kind == "ekfac":
        a, g = (x @ np.linalg.eigh(x.T @ x)[1] for x in (a, g))
    squares = (a[:, :, None] * g[:, None, :]).reshape(N, positions, D + 1, C).sum(1) ** 2
    values = squares.mean(0)
    np.testing.assert_allclose(got, (squares / (values + 0.1 * values.mean())).sum((1, 2)), rtol=1e-6)


def newton(data, weights):
    """The minimum of the weighted mean loss and an L2 term, `[D + 1, C]`."""
    w = np.zeros((D + 1, C))
    for _ in range(30):
        a, g = gradients(w, data)
        p = softmax(a @ w)
        gradient = a.T @ (weights[:, None] * g) / N + 2 * DECAY * w
        hessian = np.einsum("n,ncd,ni,nj->icjd", weights, p[:, :, None] * (np.eye(C) - p[:, None]), a, a) / N
        hessian = hessian.reshape(w.size, w.size) + 2 * DECAY * np.eye(w.size)
        w = w - np.linalg.solve(hessian, gradient.ravel()).reshape(w.shape)
    return w


@pytest.mark.usefixtures("x64")
def test_a_row_that_counts_for_less_has_a_higher_loss_by_its_self_influence_over_n(rng):
    """Every row really counts for less, or is left out, and the model is trained to its minimum again."""
    data = rows(rng)
    whole = newton(data, np.ones(N))
    measured = measure(Kronecker("ekfac", damping=1.0), TASK, parameters(whole), data)
    inverse = measured.inverse._replace(damping=dict.fromkeys(measured.inverse.damping, 2 * DECAY))
    predicted = self_influence(TASK, parameters(whole), data, measured._replace(inverse=inverse)) / N

    def loss(w):
        return -np.log(softmax(gradients(w, data)[0] @ w)[np.arange(N), data["y"]])

    for share in (0.01, 1.0):
        again = [newton(data, 1 - share * (np.arange(N) == i)) for i in range(N)]
        rise = np.array([(loss(w) - loss(whole))[i] for i, w in enumerate(again)])
        assert (rise > 0).all()
        assert np.corrcoef(predicted, rise)[0, 1] > 0.97
        if share < 1:  # the first order; EK-FAC is near the Hessian here and not equal to it
            np.testing.assert_allclose(predicted.sum(), rise.sum() / share, rtol=0.1)


def test_a_wrong_label_has_the_largest_self_influence(rng):
    data = rows(rng)
    data["x"] = (data["x"] + 3 * np.eye(C, D)[data["y"]]).astype(np.float32)
    data["y"][7] = (data["y"][7] + 1) % C
    w = parameters(newton(data, np.ones(N)).astype(np.float32))
    measured = measure(Kronecker("ekfac"), TASK, w, data)
    assert self_influence(TASK, w, data, measured).argmax() == 7
    assert measured.damping.tried  # by the rule, with its evidence


def test_batch_size_and_order_change_nothing_and_no_gradient_is_no_influence(rng):
    data = {name: x.astype(np.float32) if name == "x" else x for name, x in rows(rng).items()}
    w = parameters(rng.normal(size=(D + 1, C)).astype(np.float32))
    measured = measure(Kronecker("ekfac", damping=0.1), TASK, w, data, 16)
    want, order = self_influence(TASK, w, data, measured), rng.permutation(N)
    assert want.min() > 0
    for size in (7, 64):
        np.testing.assert_allclose(self_influence(TASK, w, data, measured, size), want, rtol=1e-5)
    shuffled = jax.tree.map(lambda x: x[order], data)
    np.testing.assert_allclose(self_influence(TASK, w, shuffled, measured, 16), want[order], rtol=1e-5)
    few = jax.tree.map(lambda x: x[30:33], data)  # other rows than the curvature's
    np.testing.assert_allclose(self_influence(TASK, w, few, measured), want[30:33], rtol=1e-5)
    sure = {"w": w["w"] * 0, "b": jnp.asarray([200.0, 0, 0])}  # class 0 without doubt
    got = self_influence(TASK, sure, data, measured)
    assert ((got == 0) == (data["y"] == 0)).all()


def test_refusals(rng):
    data = rows(rng)
    data["x"] = data["x"].astype(np.float32)
    w = parameters(rng.normal(size=(D + 1, C)).astype(np.float32))
    measured = measure(Kronecker("ekfac", damping=0.1), TASK, w, data)
    part = uj.Task(TASK.loss, outputs, label=TASK.label, include=("w",))
    with pytest.raises(
        MismatchError, match=r"curvature is of other parameters than the loss: b \(\[.*\] against \[None\]"
    ):
        self_influence(part, w, data, measured)
    with pytest.raises(NonFiniteError, match="training rows: x holds"):
        self_influence(TASK, w, {**data, "x": data["x"] * np.nan}, measured)
    singular = measured.inverse._replace(
        values={path: x * 0 for path, x in measured.inverse.values.items()},
        damping=dict.fromkeys(measured.inverse.damping, 0.0),
    )
    with pytest.raises(UsageError, match="the curvature of w has eigenvalues of 0 and no damping"):
        self_influence(TASK, w, data, measured._replace(inverse=singular))
    with pytest.raises(UsageError, match="the fisher curvature needs the model's outputs"):
        measure(Kronecker("ekfac"), uj.Task(TASK.loss), w, data)
