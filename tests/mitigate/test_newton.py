"""Removal by one Newton step: exact where the loss is quadratic, and close to retraining where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax.curvature import Kronecker, Operator
from uimjax.errors import UsageError
from uimjax.mitigate.newton import remove
from uimjax.task import Task

N, D, C = 60, 4, 3
EXACT = Operator("dense", "hessian", damping=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("curvature", [EXACT, Operator("cg", "ggn", damping=1e-9, iterations=200, tolerance=1e-12)])
def test_least_squares_without_the_rows(curvature, rng):
    x, y = rng.normal(size=(N, D)), rng.normal(size=N)
    task = Task(
        lambda p, e: jnp.square(e["x"] @ p["w"] - e["y"]) / 2, outputs=lambda p, e: e["x"] @ p["w"],
        nll=lambda z, e: jnp.square(z - e["y"]) / 2,
    )  # fmt: skip
    solve = lambda kept: np.linalg.lstsq(x[kept], y[kept], rcond=None)[0]  # noqa: E731  # twice
    gone = np.array([3, 41, 7])
    rest = np.setdiff1d(np.arange(N), gone)
    params = {"w": jnp.asarray(solve(np.arange(N)))}
    found = remove(task, params, {"x": x, "y": y}, gone, curvature)
    np.testing.assert_allclose(found.params["w"], solve(rest), rtol=1e-6)
    np.testing.assert_allclose(found.norm, np.linalg.norm(solve(rest) - np.asarray(params["w"])), rtol=1e-6)
    half = remove(task, params, {"x": x, "y": y}, gone, curvature, share=0.5)
    np.testing.assert_allclose(half.params["w"], (solve(rest) + np.asarray(params["w"])) / 2, rtol=1e-6)


def outputs(params, example):
    return example["x"] @ params["w"] + params["b"]


DECAY = 0.05
SOFTMAX = Task(
    lambda p, e: (
        -jax.nn.log_softmax(outputs(p, e))[e["y"]] + DECAY / 2 * sum(jnp.sum(jnp.square(v)) for v in jax.tree.leaves(p))
    ),
    outputs=outputs,
    label=lambda e: e["y"],
)


def minimum(rows, kept):
    """Newton's method on the mean loss of the rows that are kept, in float64."""
    some = jax.tree.map(lambda v: jnp.asarray(v[kept]), rows)

    def loss(flat):
        params = {"b": flat[:C], "w": flat[C:].reshape(D, C)}
        return jnp.mean(jax.vmap(lambda e: SOFTMAX.loss(params, e))(some))

    flat = jnp.zeros(C + D * C)
    for _ in range(30):
        flat = flat - jnp.linalg.solve(jax.hessian(loss)(flat), jax.grad(loss)(flat))
    return {"b": flat[:C], "w": flat[C:].reshape(D, C)}


@pytest.mark.usefixtures("x64")
def test_a_softmax_goes_most_of_the_way_to_the_retrained_one(rng):
    rows = {"x": rng.normal(size=(N, D)), "y": rng.integers(C, size=N)}
    rows["y"][:5] = 0
    rows["x"][:5] += 2.0
    gone = np.arange(5)
    whole, without = minimum(rows, np.arange(N)), minimum(rows, np.arange(5, N))
    flat = lambda p: np.concatenate([np.ravel(v) for v in jax.tree.leaves(p)])  # noqa: E731  # thrice
    far = np.linalg.norm(flat(whole) - flat(without))
    found = remove(SOFTMAX, whole, rows, gone, EXACT)
    assert np.linalg.norm(flat(found.params) - flat(without)) < 0.25 * far
    plain = Task(lambda p, e: -jax.nn.log_softmax(outputs(p, e))[e["y"]], outputs=outputs, label=lambda e: e["y"])
    rough = remove(plain, whole, rows, gone, Kronecker(damping=0.1))
    assert np.linalg.norm(flat(rough.params) - flat(without)) < 0.8 * far
    assert rough.how["damping"]


def test_what_is_wrong_is_refused(rng):
    rows = {"x": rng.normal(size=(N, D)).astype(np.float32), "y": rng.integers(C, size=N).astype(np.int32)}
    params = {"b": jnp.zeros(C), "w": jnp.zeros((D, C))}
    for ids, match in (([], "0 row ids to remove"), ([60], "each in 0..59"), ([1, 1], "name 1 of 60 rows")):
        with pytest.raises(UsageError, match=match):
            remove(SOFTMAX, params, rows, ids)
    with pytest.raises(UsageError, match="share=0"):
        remove(SOFTMAX, params, rows, [1], share=0)
