"""The networks that benchmarks run: plain functions of (params, one example), random weights."""

import jax
import jax.numpy as jnp
import numpy as np


def gpt_params(key, layers=4, d=128, vocab=256, t=128):
    names = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    keys = iter(jax.random.split(key, layers * len(names) + 2))
    blocks = [
        {name: jax.random.normal(next(keys), shape) / np.sqrt(shape[0]) for name, shape in names.items()}
        | {"ln1": jnp.ones(d), "ln2": jnp.ones(d)}
        for _ in range(layers)
    ]
    table = {"token": jax.random.normal(next(keys), (vocab, d)) * 0.02}
    return table | {
        "position": jax.random.normal(next(keys), (t, d)) * 0.02,
        "blocks": blocks,
        "ln": jnp.ones(d),
    }


def _norm(x, scale):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * scale


def gpt_loss(params, tokens, heads=4):
    """Mean nats per token of one sequence `[T + 1]`."""
    logits = gpt_logits(params, tokens, heads)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], 1).mean()


def gpt_logits(params, tokens, heads=4):
    """`[T, vocab]` of one sequence `[T + 1]`."""
    t = tokens.shape[0] - 1
    h = params["token"][tokens[:-1]] + params["position"][:t]
    mask = jnp.tril(jnp.ones((t, t), bool))
    for block in params["blocks"]:
        n = _norm(h, block["ln1"])
        q, k, v = ((n @ block[name]).reshape(t, heads, -1) for name in "qkv")
        scores = jnp.einsum("thc,shc->hts", q, k) / np.sqrt(q.shape[-1])
        mixed = jnp.einsum("hts,shc->thc", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v)
        h = h + mixed.reshape(t, -1) @ block["o"]
        h = h + jax.nn.gelu(_norm(h, block["ln2"]) @ block["up"]) @ block["down"]
    return _norm(h, params["ln"]) @ params["token"].T


def scanned_params(key, layers, d, vocab, dtype):
    """A decoder with its layers stacked, for networks that should compile in a minute."""
    names = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    keys = iter(jax.random.split(key, len(names) + 1))
    blocks = {
        name: (jax.random.normal(next(keys), (layers, *shape)) / np.sqrt(shape[0])).astype(dtype)
        for name, shape in names.items()
    }
    table = (jax.random.normal(next(keys), (vocab, d)) * 0.02).astype(dtype)
    return {
        "token": table,
        "blocks": blocks | {"ln1": jnp.ones((layers, d), dtype), "ln2": jnp.ones((layers, d), dtype)},
    }


def scanned_loss(params, tokens, heads):
    """Mean nats per token of one sequence `[T + 1]`; activations are kept, logits and softmax are float32."""
    t = tokens.shape[0] - 1
    mask = jnp.tril(jnp.ones((t, t), bool))

    def layer(h, block):
        n = _norm(h, block["ln1"]).astype(h.dtype)
        q, k, v = ((n @ block[name]).reshape(t, heads, -1) for name in "qkv")
        scores = jnp.einsum("thc,shc->hts", q, k, preferred_element_type=jnp.float32) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9)).astype(h.dtype)
        h = h + jnp.einsum("hts,shc->thc", weights, v).reshape(t, -1) @ block["o"]
        return h + jax.nn.gelu(_norm(h, block["ln2"]).astype(h.dtype) @ block["up"]) @ block["down"], None

    h, _ = jax.lax.scan(layer, params["token"][tokens[:-1]], params["blocks"])
    logits = jnp.einsum("td,vd->tv", h, params["token"], preferred_element_type=jnp.float32)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], 1).mean()


def mlp_params(key, widths=(784, 512, 512, 10)):
    keys = jax.random.split(key, len(widths))
    return [
        {"w": jax.random.normal(k, (i, o)) / np.sqrt(i), "b": jnp.zeros(o)}
        for k, i, o in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


def mlp_loss(params, example):
    return -jax.nn.log_softmax(mlp_logits(params, example))[example[1]]


def mlp_logits(params, example):
    h = mlp_features(params, example)
    return h @ params[-1]["w"] + params[-1]["b"]


def mlp_features(params, example):
    """The last hidden layer of one (vector, label)."""
    h = example[0]
    for layer in params[:-1]:
        h = jax.nn.relu(h @ layer["w"] + layer["b"])
    return h


def resnet_params(key, width=16, classes=10):
    """ResNet-20 (arXiv 1512.03385) for 32x32 images, normalisation folded into a scale and a shift a channel."""
    shapes = [(3, width)] + [
        pair
        for stage in range(3)
        for block in range(3)
        for pair in (((width << stage) // (2 if stage and not block else 1), width << stage), (width << stage,) * 2)
    ]
    keys = jax.random.split(key, len(shapes) + 1)
    convs = [
        {
            "kernel": jax.random.normal(k, (3, 3, i, o)) * np.sqrt(2 / (9 * i)),
            "scale": jnp.ones(o),
            "shift": jnp.zeros(o),
        }
        for k, (i, o) in zip(keys, shapes, strict=False)
    ]
    head = jax.random.normal(keys[-1], (4 * width, classes)) / np.sqrt(4 * width)
    return {"convs": convs, "head": head, "bias": jnp.zeros(classes)}


def resnet_loss(params, example):
    """Nats of one (image `[32, 32, 3]`, label)."""
    image, label = example

    def conv(h, layer, stride=1):
        h = jax.lax.conv_general_dilated(
            h[None], layer["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        return h * layer["scale"] + layer["shift"]

    h = jax.nn.relu(conv(image, params["convs"][0]))
    for k in range(9):
        one, two = params["convs"][1 + 2 * k : 3 + 2 * k]
        stride = 2 if k in (3, 6) else 1
        short = h[::stride, ::stride]
        grown = one["kernel"].shape[3] - short.shape[2]
        short = jnp.pad(short, ((0, 0), (0, 0), (grown // 2, grown - grown // 2)))
        h = jax.nn.relu(conv(jax.nn.relu(conv(h, one, stride)), two) + short)
    return -jax.nn.log_softmax(h.mean((0, 1)) @ params["head"] + params["bias"])[label]
