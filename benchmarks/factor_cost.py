"""What per-example, sketched gradients cost against ONE ordinary batch gradient of the same program.

Claim: rank-16 sketches of every parameter take at most 0.9 of `value_and_grad`, on a GPT and on an MLP.
Run: python -m benchmarks.factor_cost --json
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from uimjax import sketch, taps
from uimjax.task import Task


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
    logits = _norm(h, params["ln"]) @ params["token"].T
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], 1).mean()


def mlp_params(key, widths=(784, 512, 512, 10)):
    keys = jax.random.split(key, len(widths))
    return [
        {"w": jax.random.normal(k, (i, o)) / np.sqrt(i), "b": jnp.zeros(o)}
        for k, i, o in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


def mlp_loss(params, example):
    h, label = example
    for k, layer in enumerate(params):
        h = h @ layer["w"] + layer["b"]
        h = jax.nn.relu(h) if k < len(params) - 1 else h
    return -jax.nn.log_softmax(h)[label]


def measure(loss, params, batch, repeats: int, rank: int = 16) -> dict[str, float]:
    """Ratios to the plain batch gradient; the factors are checked against it first."""
    task, choice = Task(loss), sketch.Sketch(rank)
    found = taps.sites(task, params, jax.tree.map(lambda x: x[0], batch))
    taps.verify(task, found, params, batch)
    drawn = jax.jit(lambda: sketch.matrices(choice, found))()

    @jax.jit
    def plain(params, batch):
        return jax.value_and_grad(lambda p: jax.vmap(functools.partial(loss, p))(batch).sum())(params)

    @jax.jit
    def sketched(params, batch):
        losses, factors = taps.capture(found, params, batch)
        return losses, sketch.rows(found, sketch.project(found, drawn, factors))

    calls = {"plain": lambda: plain(params, batch), "sketch": lambda: sketched(params, batch)}
    times = timing.interleaved(calls, repeats)
    ratio = times["sketch"]["median_s"] / times["plain"]["median_s"]
    return {"ratio": ratio} | {f"{k}_{m}": round(v, 5) for k, t in times.items() for m, v in t.items()}


def main() -> None:
    args = timing.arguments(__doc__ or "")
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    tokens = jnp.asarray(rng.integers(256, size=(32, 129)))
    images = jnp.asarray(rng.normal(size=(1024, 784)), jnp.float32), jnp.asarray(rng.integers(10, size=1024))
    repeats = 7 if args.quick else 25
    gpt = measure(gpt_loss, gpt_params(key), tokens, repeats)
    mlp = measure(mlp_loss, mlp_params(key), images, repeats)
    result = {
        "ratio_sketch_to_backward": round(gpt.pop("ratio"), 3),
        "ratio_mlp": round(mlp.pop("ratio"), 3),
        "gpt": gpt | {"shape": "4 layers, d=128, 4 heads, T=128, vocab 256, batch 32"},
        "mlp": mlp | {"shape": "784-512-512-10, batch 1024"},
        "rank": 16,
        **timing.machine(),
    }
    timing.report(result, args.json)


if __name__ == "__main__":
    main()
