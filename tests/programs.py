"""Small losses of every shape the taps must follow. Each returns (loss, params, batch) for the dtype asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import lax

from uimjax.taps import capture


def captured(found, params, batch):
    """(losses, factors) by one compiled pass: equation by equation it would compile each of them."""
    return jax.jit(functools.partial(capture, found))(params, batch)


def brute_force(loss, params, batch):
    """(losses `[B]`, gradients by `vmap(grad)`)."""

    def one(params, row):
        return jnp.sum(loss(params, row))

    def both(params, batch):
        grads = jax.vmap(lambda row: jax.grad(one, allow_int=True)(params, row))(batch)
        return jax.vmap(functools.partial(one, params))(batch), grads

    return jax.jit(both)(params, batch)


def _draw(rng, *shape, dtype, scale=0.5):
    return jnp.asarray(rng.normal(size=shape) * scale, dtype)


def cross_entropy(logits, label):
    return -jax.nn.log_softmax(logits)[..., label]


def mlp(rng, dtype, batch=5):
    params = {
        "layers": [
            {"w": _draw(rng, i, o, dtype=dtype), "b": _draw(rng, o, dtype=dtype)} for i, o in ((6, 7), (7, 4), (4, 3))
        ]
    }

    def loss(params, example):
        h = example["x"]
        for k, layer in enumerate(params["layers"]):
            h = h @ layer["w"] + layer["b"]
            h = jax.nn.relu(h) if k < 2 else h
        return cross_entropy(h, example["y"])

    rows = {"x": _draw(rng, batch, 6, dtype=dtype), "y": jnp.asarray(rng.integers(3, size=batch))}
    return loss, params, rows


def nnx_cnn(rng, dtype, batch=4):
    class Net(nnx.Module):
        def __init__(self, rngs):
            kw = {"param_dtype": dtype, "dtype": dtype, "rngs": rngs}
            self.one = nnx.Conv(2, 4, (3, 3), strides=2, padding="SAME", **kw)
            self.two = nnx.Conv(4, 6, (2, 3), padding="VALID", feature_group_count=2, kernel_dilation=1, **kw)
            self.norm = nnx.LayerNorm(6, **kw)
            self.head = nnx.Linear(6, 3, **kw)

        def __call__(self, x):
            x = nnx.gelu(self.two(nnx.relu(self.one(x))))
            return self.head(self.norm(x.mean((0, 1))))

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)

    def loss(params, example):
        return cross_entropy(nnx.merge(graph, params, copy=True)(example["x"]), example["y"])

    rows = {
        "x": _draw(rng, batch, 7, 8, 2, dtype=dtype, scale=1.0),
        "y": jnp.asarray(rng.integers(3, size=batch)),
    }
    return loss, params, rows


def linen_mlp(rng, dtype, batch=4):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.relu(linen.Dense(8, dtype=dtype, param_dtype=dtype)(x))
            x = linen.Dropout(0.4, deterministic=not train)(x)
            x = linen.LayerNorm(dtype=dtype, param_dtype=dtype)(x)
            return linen.Dense(3, dtype=dtype, param_dtype=dtype)(x)

    net = Net()
    params = net.init(jax.random.key(0), jnp.zeros(5, dtype), False)["params"]

    def loss(params, example):
        logits = net.apply({"params": params}, example["x"], True, rngs={"dropout": example["key"]})
        return cross_entropy(logits, example["y"])

    rows = {
        "x": _draw(rng, batch, 5, dtype=dtype, scale=1.0),
        "y": jnp.asarray(rng.integers(3, size=batch)),
        "key": jax.random.split(jax.random.key(1), batch),
    }
    return loss, params, rows


def _attention(h, layer, heads):
    """Causal attention written out: qkv fused, softmax in the input's own precision."""
    t, d = h.shape
    qkv = (h @ layer["qkv"] + layer["qkv_b"][None]).reshape(t, 3, heads, d // heads)
    q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
    scores = jnp.einsum("thc,shc->hts", q, k) / np.sqrt(d // heads)
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool))[None], scores, -1e9)
    mixed = jnp.einsum("hts,shc->thc", jax.nn.softmax(scores), v)
    return jnp.einsum("thc,hcd->td", mixed, layer["out"])


def _block(h, layer, heads):
    n = h * lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * (1 + layer["scale"])[None]
    h = h + _attention(n, layer, heads)
    return h + jax.nn.gelu(h @ layer["up"]) @ layer["up"].T * 0.3 + jnp.tanh(h @ layer["mlp"] / 2.0)


def _decoder_params(rng, dtype, layers, d, heads, vocab, t):
    def stack(*shape):
        return _draw(rng, layers, *shape, dtype=dtype, scale=0.3)

    return {
        "embed": _draw(rng, vocab, d, dtype=dtype),
        "position": _draw(rng, t + 2, d, dtype=dtype),
        "blocks": {
            "qkv": stack(d, 3 * d),
            "qkv_b": stack(3 * d),
            "out": stack(heads, d // heads, d),
            "scale": stack(d),
            "up": stack(d, 2 * d),
            "mlp": stack(d, d),
        },
        "temperature": _draw(rng, dtype=dtype),
    }


def decoder(rng, dtype, batch=3, scanned=True, remat=False):
    """Tied embeddings (one-sided by lookup, the other by matmul), learned positions, RMSNorm with 1 + scale."""
    layers, d, heads, vocab, t = 3, 8, 2, 11, 5
    params = _decoder_params(rng, dtype, layers, d, heads, vocab, t)

    def block(h, layer):
        return _block(h, layer, heads), None

    body = jax.checkpoint(block) if remat else block

    def loss(params, example):
        tokens = example["tokens"]
        h = params["embed"][tokens[:-1]] + jnp.take(params["position"], jnp.arange(t), axis=0)
        if scanned:
            h, _ = lax.scan(body, h, params["blocks"])
        else:
            for k in range(layers):
                h, _ = body(h, jax.tree.map(lambda w, k=k: w[k], params["blocks"]))
        logits = (h @ params["embed"].T) * params["temperature"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], axis=1)[:, 0]
        return -picked.sum()

    rows = {"tokens": jnp.asarray(rng.integers(vocab, size=(batch, t + 1)))}
    return loss, params, rows


def oddities(rng, dtype, batch=4):
    """Weight normalisation, an L2 term, custom_vjp, a weight shared over a scan, carried state, div, concatenation."""
    params = {
        "v": _draw(rng, 4, 5, dtype=dtype),
        "length": _draw(rng, 5, dtype=dtype),
        "shared": _draw(rng, 5, 5, dtype=dtype),
        "start": _draw(rng, 5, dtype=dtype),
        "divide": _draw(rng, 5, dtype=dtype) + 2,
        "token": _draw(rng, 1, 5, dtype=dtype),
        "rounded": _draw(rng, 5, 3, dtype=dtype),
        "stopped": _draw(rng, 5, dtype=dtype),
        "normed_in_scan": _draw(rng, 3, 5, 5, dtype=dtype),
        "count": jnp.asarray(3),
    }

    @jax.custom_vjp
    def straight_through(w):
        return jnp.round(w * 4) / 4

    straight_through.defvjp(lambda w: (straight_through(w), None), lambda _, g: (g * 0.7,))

    @jax.custom_vjp
    def scaled(x, w):
        return x @ w

    scaled.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (r[1] @ g, 26 * jnp.outer(r[0], g)))

    def loss(params, example):
        w = params["v"] * (params["length"] / jnp.sqrt(jnp.sum(params["v"] ** 2, 0)))[None]
        h = example["x"] @ w / (params["divide"] ** 2)
        stack = jnp.concatenate([params["token"], h[None]], 0)
        h = jnp.tanh(stack).sum(0) * lax.stop_gradient(params["stopped"])

        def body(carry, w):
            h, state = carry
            unit = w / jnp.sqrt(jnp.sum(w * w))
            state = jnp.tanh(state @ params["shared"] + h @ unit)
            return (h, state), None

        (h, state), _ = lax.scan(body, (h, params["start"]), params["normed_in_scan"])
        logits = h @ straight_through(params["rounded"]) + scaled(state, params["rounded"])
        decay = 0.1 * sum(jnp.sum(params[k] ** 2) for k in ("v", "shared"))
        return cross_entropy(logits, example["y"]) + decay * params["count"].astype(dtype)

    rows = {"x": _draw(rng, batch, 4, dtype=dtype), "y": jnp.asarray(rng.integers(3, size=batch))}
    return loss, params, rows


def scan_unrolled(rng, dtype):
    return decoder(rng, dtype, scanned=False)


def scan_remat(rng, dtype):
    return decoder(rng, dtype, remat=True)


def slices(rng, dtype, batch=3):
    """Parts of parameters: fused qkv and gate-up matrices, layers of a stack, a window of positions, half a table."""
    d, vocab, t = 6, 10, 4
    params = {
        "table": _draw(rng, vocab + 4, d, dtype=dtype),
        "position": _draw(rng, t + 5, d, dtype=dtype),
        "qkv": _draw(rng, d, 3 * d, dtype=dtype),
        "fused": _draw(rng, 3, d, d, dtype=dtype),
        "gate_up": _draw(rng, d, 2 * d, dtype=dtype),
        "stack": _draw(rng, 5, d, d, dtype=dtype),
        "shifts": _draw(rng, 5, d, dtype=dtype),
        "overlap": _draw(rng, d, d, dtype=dtype),
        "strided": _draw(rng, 2 * d, 2, dtype=dtype),
        "kernel": _draw(rng, 3, 2 * d, 4, dtype=dtype),
        "transposed": _draw(rng, 2 * d, d, dtype=dtype),
    }

    def loss(params, example):
        h = params["table"][2:12][example["tokens"]] + params["position"][3 : 3 + t]
        q, k, v = (h @ params["qkv"][:, n * d : (n + 1) * d] for n in range(3))
        h = h + jax.nn.softmax(q @ k.T) @ v
        h = h + jnp.tanh(h @ params["fused"][0]) @ params["fused"][2]
        gate, up = jnp.split(params["gate_up"], 2, axis=1)
        h = h + jax.nn.silu(h @ gate) * (h @ up)
        h = h + jnp.tanh(h @ params["stack"][-1] + params["shifts"][4][None])

        def body(h, layer):
            return h + jnp.tanh(h @ layer[0] + layer[1][None]), None

        h, _ = lax.scan(body, h, (params["stack"][1:3], params["shifts"][1:3]))
        h = h + h[:, :4] @ params["overlap"][:4] + h[:, 2:] @ params["overlap"][2:, :]
        h = h + h @ params["transposed"].T[:, 3:9] + h @ params["transposed"].reshape(2, d, d)[1]
        h = h @ jnp.concatenate([params["strided"][::2], params["strided"][1::2]], 1)
        y = lax.conv_general_dilated(h.T[None], params["kernel"][:, :4].transpose(2, 1, 0), (1,), "SAME")
        return cross_entropy(y.sum((0, 2)), example["y"])

    rows = {"tokens": jnp.asarray(rng.integers(vocab, size=(batch, t))), "y": jnp.asarray(rng.integers(4, size=batch))}
    return loss, params, rows


def switches(rng, dtype, batch=6):
    """Branches that depend on the example: parameters inside, nested, in a scan, and one branch that uses none."""
    params = {
        "one": _draw(rng, 4, 4, dtype=dtype),
        "two": _draw(rng, 4, 4, dtype=dtype),
        "both": _draw(rng, 4, dtype=dtype),
        "out": _draw(rng, 4, 3, dtype=dtype),
        "stack": _draw(rng, 3, 4, 4, dtype=dtype),
        "normed": _draw(rng, 4, 4, dtype=dtype),
        "handed": _draw(rng, 4, dtype=dtype),
        "on": _draw(rng, 4, dtype=dtype),
    }

    def loss(params, example):
        def first(h):
            return jnp.tanh(h @ params["one"]) * params["both"]

        def second(h):
            unit = params["normed"] / jnp.sqrt(jnp.sum(params["normed"] ** 2))
            return lax.cond(h.sum() > 0, lambda: h @ params["two"], lambda: (h @ params["one"]) @ unit) + params["both"]

        h = lax.switch(example["way"], [first, second, lambda h: h], example["x"])
        h = h * lax.cond(h[1] > 0, lambda: params["handed"] ** 2, lambda: params["on"])

        def body(h, w):
            return lax.cond(h[0] > 0, lambda: jnp.tanh(h @ w), lambda: h * 0.5), None

        h, _ = lax.scan(body, h, params["stack"])
        return cross_entropy(h @ params["out"], example["y"])

    rows = {
        "x": _draw(rng, batch, 4, dtype=dtype),
        "y": jnp.asarray(rng.integers(3, size=batch)),
        "way": jnp.arange(batch) % 3,
    }
    return loss, params, rows


ALL = {
    "slices": slices,
    "switches": switches,
    "mlp": mlp,
    "nnx_cnn": nnx_cnn,
    "linen_mlp_dropout": linen_mlp,
    "decoder_scanned": decoder,
    "decoder_unrolled": scan_unrolled,
    "decoder_remat": scan_remat,
    "oddities": oddities,
}
