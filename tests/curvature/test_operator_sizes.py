"""Solvers at the sizes of real layers, where the compiler takes other paths than for small ones."""

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature import operator, products
from uimjax.curvature.operator import Operator
from uimjax.rows import Pass, example_spec
from uimjax.taps import sites
from uimjax.task import Task

LENGTH, WIDTH, VOCAB, ROWS = 128, 64, 32, 64  # that many were wrong; half as many were not


def logits(params, tokens):
    h = params["embed"][tokens[:-1]]
    h = params["gain"][None] * (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    return h @ params["out"]


def loss(params, tokens):
    likely = jax.nn.log_softmax(logits(params, tokens))
    return -jnp.take_along_axis(likely, tokens[1:, None], 1).sum()


def test_conjugate_gradients_through_a_layer_norm_are_those_by_the_book(rng):
    """From a constant zero XLA:CPU (JAX 0.10.2) made NaN or 1e16 of the first product with the gains."""
    params = {
        "embed": jnp.asarray(rng.normal(size=(VOCAB, WIDTH)), jnp.float32),
        "gain": jnp.ones(WIDTH),
        "out": jnp.asarray(rng.normal(size=(WIDTH, VOCAB)), jnp.float32),
    }
    data = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    task = Task(loss, outputs=logits, label=lambda tokens: tokens[1:])
    found, damping = sites(task, params, example_spec(data)), 0.01
    v = {path: rng.normal(size=(1, *leaf.shape)).astype(np.float32) for path, leaf in params.items()}
    got, _ = operator.solve(Operator("cg", iterations=2), found, task, params, data, v, Pass(ROWS), damping)
    h = products.matrix("ggn", found, task, params, data, Pass(ROWS))

    def times(p):
        return products.flat(h, products.times(h, products.split(h, p[None])))[0] + damping * p

    r = p = products.flat(h, {path: jnp.asarray(x) for path, x in v.items()})[0]
    x = np.zeros_like(r)
    for _ in range(2):  # Hestenes & Stiefel, in float64
        made = times(p)
        step = (r @ r) / (p @ made)
        x, left = x + step * p, r - step * made
        p, r = left + (left @ left) / (r @ r) * p, left
    np.testing.assert_allclose(products.flat(h, got)[0], x, rtol=1e-3, atol=1e-4 * np.abs(x).max())
