"""Models of other libraries, as they come: Equinox, Haiku, Flax NNX and Linen; dropout with a key per example."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import uimjax as uj
from tests.programs import brute_force

IMAGE, CLASSES = (6, 6, 2), 3


def equinox_model(key):
    one, two = jax.random.split(key)
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, key=one),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.LayerNorm(64),
            eqx.nn.MLP(64, CLASSES, 8, 1, key=two),
        ]
    )
    drop = eqx.nn.Dropout(0.3)
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def logits(params, example):
        return eqx.combine(params, static)(drop(jnp.moveaxis(example["x"], -1, 0), key=example["key"]))

    return params, logits


def haiku_model(key):
    def forward(x):
        x = hk.dropout(hk.next_rng_key(), 0.3, x)
        x = jax.nn.relu(hk.Conv2D(4, 3, padding="VALID")(x[None])[0]).ravel()
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        return hk.nets.MLP([8, CLASSES])(x)

    made = hk.transform(forward)
    params = made.init(key, jnp.zeros(IMAGE))
    return params, lambda params, example: made.apply(params, example["key"], example["x"])


def linen_model(key):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dropout(0.3, deterministic=False)(x)
            x = linen.relu(linen.Conv(4, (3, 3), padding="VALID")(x)).ravel()
            return linen.Dense(CLASSES)(linen.LayerNorm()(x))

    net = Net()
    params = net.init({"params": key, "dropout": key}, jnp.zeros(IMAGE))["params"]
    return params, lambda p, e: net.apply({"params": p}, e["x"], rngs={"dropout": e["key"]})


def nnx_model(key):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), padding="VALID", rngs=rngs)
            self.norm = nnx.LayerNorm(64, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=rngs)
            self.head = nnx.Linear(64, CLASSES, rngs=rngs)

        def __call__(self, x, key):
            x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0.0)
            x = self.norm(nnx.relu(self.conv(x)).ravel()).reshape(8, 8)
            return self.head(self.attention(x[None])[0].ravel())

    graph, params, rest = nnx.split(Net(nnx.Rngs(key)), nnx.Param, ...)

    def logits(params, example):
        return nnx.merge(graph, params, rest, copy=True)(example["x"], example["key"])

    return params, logits


@pytest.mark.parametrize("make", [equinox_model, haiku_model, linen_model, nnx_model])
def test_gradients_and_norms_of_a_library_model_equal_vmap_grad(make, rng):
    with jax.numpy_rank_promotion("allow"):  # theirs, not ours
        params, logits = make(jax.random.key(0))
        rows = {
            "x": jnp.asarray(rng.normal(size=(5, *IMAGE)), jnp.float32),
            "y": jnp.asarray(rng.integers(CLASSES, size=5)),
            "key": jax.random.split(jax.random.key(1), 5),
        }
        task = uj.Task(lambda p, e: -jax.nn.log_softmax(logits(p, e))[e["y"]])
        losses, want = brute_force(task.loss, params, rows)
        found = uj.collect(task, params, rows, ("loss", "norm", "gradients"))
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
        squares = 0.0
        for path, leaf in jax.tree_util.tree_flatten_with_path(want)[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            np.testing.assert_allclose(found["gradients"][name], leaf, rtol=2e-4, atol=2e-5, err_msg=name)
            squares = squares + np.square(np.asarray(leaf, np.float64)).reshape(5, -1).sum(1)
        np.testing.assert_allclose(found["norm"], np.sqrt(squares), rtol=1e-4)
        every = uj.sites(task, params, jax.tree.map(lambda x: x[0], rows)).leaves
        matrices = [leaf for leaf in every if leaf.size > 100]
        assert matrices
        for leaf in matrices:
            assert {site.kind for site in leaf.sites} <= {"dense", "conv"}, f"{leaf.path} would be formed"
